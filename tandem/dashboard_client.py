"""The coordinator's dashboard as commands read it: snapshots, a stream of them, records."""

import http.client
import os
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from tandem.errors import UnavailableError
from tandem.messages.operations import RequestRecord, Snapshot

KEY_VARIABLE = "TANDEM_OPERATOR_KEY"
ANSWER_S = 10.0
View = TypeVar("View", Snapshot, RequestRecord)


def read_key(file: Path | None, env: Mapping[str, str] = os.environ) -> str | None:
    """The operator's key from a file, else from the environment; None where there is none.

    Raises ValueError for a file that cannot be used.
    """
    if file is None:
        return env.get(KEY_VARIABLE) or None
    try:
        key = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read the key in {file}: {error}") from None
    if not key.isascii() or not key.isprintable() or not key:
        raise ValueError(f"{file} holds no key: write what `tandem keys bearer` printed into it")
    return key


class Dashboard:
    """One dashboard, `http://host:port`; every call raises UnavailableError with what to do."""

    def __init__(self, url: str, key: str | None = None) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url} is no dashboard's address: use http://host:port")
        try:
            self._port = parts.port
        except ValueError:
            raise ValueError(f"{url} has no port that exists: use http://host:port") from None
        self._host, self._is_secure, self._key = parts.hostname, parts.scheme == "https", key
        self.url = url

    def snapshot(self) -> Snapshot:
        """The state of everything now."""
        return self._get("/api/snapshot", Snapshot)

    def record(self, request_id: str) -> RequestRecord:
        """One request by its id, or by the id's first digits. ValueError where it is unknown."""
        return self._get(f"/api/requests/{urllib.parse.quote(request_id, safe='')}", RequestRecord)

    def stream(self) -> Iterator[Snapshot]:
        """Snapshots as they are made, once per second, until the connection ends."""
        connection, response = self._open("/api/stream")
        try:
            for data in event_data(response):
                yield self._decode(data, Snapshot)
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from None
        finally:
            connection.close()

    def _get(self, path: str, kind: type[View]) -> View:
        connection, response = self._open(path)
        try:
            return self._decode(response.read(), kind)
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from None
        finally:
            connection.close()

    def _open(self, path: str) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """The answer of a route, its head read. ValueError for an id that it does not know."""
        make = http.client.HTTPSConnection if self._is_secure else http.client.HTTPConnection
        connection = make(self._host, self._port, timeout=ANSWER_S)
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        try:
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            if response.status == 200:
                return connection, response
            raise self._explain(response.status, response.read())
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise self._unreachable(error) from None
        except BaseException:
            connection.close()
            raise

    def _decode(self, data: bytes, kind: type[View]) -> View:
        try:
            return msgspec.json.decode(data, type=kind)
        except msgspec.DecodeError as error:
            raise _unavailable(f"{self.url} is no dashboard of this version: {error}") from None

    def _explain(self, status: int, body: bytes) -> Exception:
        try:
            message = msgspec.json.decode(body, type=_Failure).error.message
        except msgspec.DecodeError:
            message = f"status {status}"
        if status in (401, 403):
            return _unavailable(
                f"{self.url}: {message} (commands take it by --key-file FILE or {KEY_VARIABLE})"
            )
        if status == 404:
            return ValueError(message)
        return _unavailable(f"{self.url} answers: {message}")

    def _unreachable(self, error: Exception) -> UnavailableError:
        return _unavailable(
            f"no dashboard answers at {self.url} ({str(error) or type(error).__name__}): start a "
            "deployment with `tandem up --model MODEL`, or give the address that its coordinator "
            "prints as `dashboard http://host:port` (none with --dashboard-port -1)"
        )


class _Problem(msgspec.Struct):
    message: str


class _Failure(msgspec.Struct):
    error: _Problem


def event_data(lines: Iterable[bytes]) -> Iterator[bytes]:
    """The data of each event of a stream of server-sent events; comments are skipped."""
    data: list[bytes] = []
    for line in lines:
        text = line.rstrip(b"\r\n")
        if text.startswith(b"data:"):
            data.append(text.removeprefix(b"data:").removeprefix(b" "))
        elif not text and data:
            yield b"\n".join(data)
            data.clear()


def connect(args: Any) -> Dashboard:  # noqa: ANN401  argparse's namespace
    """The dashboard that a command's flags name."""
    return Dashboard(args.dashboard, read_key(args.key_file))


def _unavailable(text: str) -> UnavailableError:
    return UnavailableError(text, code="unavailable")
