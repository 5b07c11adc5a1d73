"""Wakes a polling thread from another one."""

import socket


class Wake:
    """A pollable flag: `set` from any thread, `clear` on the polling one."""

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self.descriptor = self._reader.fileno()

    def set(self) -> None:
        """Make the descriptor readable."""
        try:
            self._writer.send(b"\0")
        except OSError:
            return  # full, so it is readable; or closed, so nobody polls

    def clear(self) -> None:
        """Make it unreadable; call it before looking at what was announced."""
        try:
            while self._reader.recv(4096):
                pass
        except BlockingIOError:
            return

    def close(self) -> None:
        """Release both ends."""
        self._reader.close()
        self._writer.close()
