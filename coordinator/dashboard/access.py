"""Who may see the dashboard, and who may give orders through it.

With keys: operators' bearer keys. Without any, programs of this host, or of the network where the
operator said so: then a browser is the danger. A page from elsewhere must not read by a name that
it made point here (DNS rebinding), so names other than our own are refused; it must not write by a
form, so orders are JSON only, which a form cannot send, and from our own pages.
"""

import ipaddress
import re
from pathlib import Path

from starlette.requests import Request

from coordinator.dashboard.errors import ApiError
from tandem.bearer import BearerKeys

OPEN_PATHS = ("/", "/health", "/ready", "/favicon.ico")
STATIC_PREFIX = "/static/"
HOST = re.compile(r"(?P<name>\[[0-9a-f:.%]+\]|[a-z0-9._-]+)(:\d{1,5})?", re.IGNORECASE)


class Access:
    """See the module."""

    def __init__(self, keys_folder: str | None, *, host: str) -> None:
        """Raises ValueError where the folder of keys cannot be used."""
        self._keys = None if keys_folder is None else BearerKeys(Path(keys_folder))
        self._names = {"localhost", host.lower()}

    def check(self, request: Request) -> None:
        """Raises ApiError for a caller that may not do this."""
        path = request.scope["path"]
        if self._keys is not None:
            if path not in OPEN_PATHS and not path.startswith(STATIC_PREFIX):
                self._check_key(self._keys, request)
        elif not self._is_ours(request.headers.get("host", "")):
            raise ApiError(
                403,
                "without keys the dashboard answers only to addresses, localhost and its own "
                "--dashboard-host: use one of these in the URL",
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
                "the dashboard needs an operator's key: `tandem keys bearer NAME --role operator "
                "--keys FOLDER` makes one; send it as Authorization: Bearer KEY",
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
        """Whether a Host header is an address, localhost, or what we were told to be."""
        match = HOST.fullmatch(host)
        if match is None:
            return False
        name = match["name"].lower()
        return name in self._names or _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
