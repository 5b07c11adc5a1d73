"""The tenants' file: read at the start, and again when it changes."""

import logging
from pathlib import Path

from gateway.tenants import Tenant, parse_tenants

logger = logging.getLogger(__name__)


class TenantFile:
    """See the module. Without a path there are no tenants but the default.

    Raises ValueError where the file cannot be used.
    """

    def __init__(self, path: str | None) -> None:
        self._path = None if path is None else Path(path)
        self._stamp: tuple[int, int] | None = None
        self.tenants = self._load()

    def _load(self) -> dict[str, Tenant]:
        if self._path is None:
            return {}
        try:
            self._stamp = self._stamp_now()
            return parse_tenants(self._path.read_text())
        except (OSError, ValueError) as error:
            raise ValueError(f"tenants file {self._path}: {error}") from None

    def changed(self) -> dict[str, Tenant] | None:
        """The new content, once, where the file has changed; a bad file is logged and left."""
        if self._path is None:
            return None
        try:
            if self._stamp_now() == self._stamp:
                return None
            self.tenants = self._load()
        except OSError:
            return None  # it is being replaced
        except ValueError as error:
            logger.error("%s; the old one stays in force", error)
            return None
        logger.info("%d tenants are in force from %s", len(self.tenants), self._path)
        return self.tenants

    def _stamp_now(self) -> tuple[int, int]:
        assert self._path is not None, "the callers checked"
        status = self._path.stat()
        return status.st_mtime_ns, status.st_size
