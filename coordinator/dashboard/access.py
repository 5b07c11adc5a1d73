"""Who may see the dashboard, and who may give orders through it.

With keys: operators' bearer keys. Without any, programs of this host, or of the network where the
operator said so: then a browser is the danger. A page from elsewhere must not read by a name that
it made point here (DNS rebinding), so names that could be anybody's are refused; it must not write
by a form, so orders are JSON only, which a form cannot send, and from our own pages.
"""

import ipaddress
import logging
import re
from pathlib import Path

from starlette.requests import Request

from coordinator.dashboard.errors import ApiError
from tandem.bearer import BearerKeys

PROBES = ("/health", "/ready")  # a status, and nothing else
OPEN_PATHS = ("/", "/favicon.ico", *PROBES)
STATIC_PREFIX = "/static/"
HOW_TO_GET_A_KEY = "`tandem keys bearer NAME --role operator --keys FOLDER` makes one"
logger = logging.getLogger(__name__)
HOST = re.compile(r"(?P<name>\[[0-9a-f:.%]+\]|[a-z0-9._-]+)(:\d{1,5})?", re.IGNORECASE)


class Access:
    """See the module."""

    def __init__(self, keys_folder: str | None, *, host: str) -> None:
        """Raises ValueError where the folder of keys cannot be used."""
        self._keys = None if keys_folder is None else BearerKeys(Path(keys_folder))
        self._name = host.lower()
        if self._keys is not None and not len(self._keys):
            logger.warning("nobody has a key for the dashboard yet: %s", HOW_TO_GET_A_KEY)

    def check(self, request: Request) -> None:
        """Raises ApiError for a caller that may not do this."""
        path = request.scope["path"]
        if self._keys is not None:
            if path not in OPEN_PATHS and not path.startswith(STATIC_PREFIX):
                self._check_key(self._keys, request)
        elif path not in PROBES and not self._is_ours(request.headers.get("host", "")):
            raise ApiError(
                403,
                "without keys the dashboard answers only to addresses, to names without a dot and "
                "to its own --dashboard-host: use one of these in the URL, or keys",
                code="wrong_host",
            )
        if request.method not in ("GET", "HEAD"):
            self._check_origin(request)

    def _check_key(self, keys: BearerKeys, request: Request) -> None:
        given = [value for name, value in request.headers.raw if name == b"authorization"]
        found = keys.find(given[0] if len(given) == 1 else None)
        if found is None:
            raise ApiError(
                401,
                f"the dashboard needs an operator's key: {HOW_TO_GET_A_KEY}; send it as "
                "Authorization: Bearer KEY",
                code="invalid_api_key",
            )
        if found[1] != "operator":
            raise ApiError(
                403,
                f"the key of {found[0]} is a client's: the dashboard takes keys made with --role "
                "operator",
                code="wrong_role",
            )

    def _check_origin(self, request: Request) -> None:
        """Browsers name the page that an order comes from."""
        origin = request.headers.get("origin")
        if origin is not None and origin.partition("://")[2] != request.headers.get("host"):
            raise ApiError(403, "orders come from the dashboard's own page", code="wrong_origin")

    def _is_ours(self, host: str) -> bool:
        """Whether a Host header is an address, what we were told to be, or a name without a dot:
        of this network, since nobody's own name on the internet is one.
        """
        match = HOST.fullmatch(host)
        if match is None:
            return False
        name = match["name"].lower()
        return name == self._name or "." not in name or _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
