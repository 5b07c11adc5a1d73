"""The files of the page. They are open to everybody and hold no data."""

import re
from pathlib import Path

from starlette.responses import Response

from coordinator.dashboard.errors import ApiError

FOLDER = Path(__file__).parent / "static"
# Names without dots in front: nothing outside the folder can be said.
NAME = re.compile(r"[a-z0-9_-]+(/[a-z0-9_-]+)*(\.[a-z0-9]+)+", re.IGNORECASE)
MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
}


def read_asset(name: str) -> Response:
    """A file of the page. Raises ApiError where there is none.

    Small files, read as they are: an upgrade needs no cleared cache.
    """
    media_type = MEDIA_TYPES.get(Path(name).suffix)
    if media_type is None or NAME.fullmatch(name) is None:
        raise ApiError(404, "there is no such file", code="not_found")
    try:
        content = (FOLDER / name).read_bytes()
    except OSError:
        raise ApiError(404, "there is no such file", code="not_found") from None
    return Response(content, headers={"Cache-Control": "no-cache"}, media_type=media_type)
