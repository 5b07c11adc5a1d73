"""Whoever has no key, or no manners, against every socket on which a process listens."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import zmq

from scripts.fault_matrix.deployment import listening_ports
from tandem.codec import MAGIC, encode
from tandem.messages.client import ClientPing
from tandem.messages.membership import StatusQuery

OVERSIZE = bytes(24 << 20)
NULL_GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(16) + b"\x00" + bytes(31)
READY = b"\x04\x1c\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"
NOISE = (
    b"\xff" * 100_000,
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    NULL_GREETING + READY + b"\x02\x00\x00\x00\x02\x00\x00\x00\x00" + bytes(100),  # 8 GB to come
)
ANSWER_MS = 1_000


def make_bomb(folder: Path) -> tuple[bytes, Path]:
    """A pickle that makes a folder when it is loaded, and that folder; it was tried."""
    marker = folder / "it-was-loaded"
    bomb = b"cos\nmkdir\n(V" + str(marker).encode() + b"\ntR."
    load = "import pickle, sys; pickle.loads(sys.stdin.buffer.read())"
    subprocess.run([sys.executable, "-c", load], input=bomb, check=True, timeout=30)
    marker.rmdir()
    return bomb, marker


def unix_sockets(pid: int) -> Iterator[tuple[str, int]]:
    """Unix sockets on which a process listens, with their type; abstract ones begin with a zero."""
    links = [os.readlink(entry.path) for entry in os.scandir(f"/proc/{pid}/fd")]
    ours = {link[8:-1] for link in links if link.startswith("socket:[")}
    for line in Path(f"/proc/{pid}/net/unix").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[6] in ours and int(fields[3], 16) & 0x10000 and len(fields) > 7:
            name = fields[7].replace("@", "\0", 1) if fields[7][0] == "@" else fields[7]
            yield name, int(fields[4], 16)


def memory_of(pid: int) -> int:
    """Bytes that a process holds."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class Strangers:
    """Attackers of these processes; close them, or use them as a context manager."""

    def __init__(self, pids: Sequence[int], bomb: bytes) -> None:
        self.ports = [port for pid in pids for port in listening_ports(pid)]
        self.unix = [found for pid in pids for found in unix_sockets(pid)]
        self._bomb = bomb
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()

    def shout(self) -> None:
        """Bytes that are no ZeroMQ, at every socket."""
        noises = (*NOISE, self._bomb)
        for port in self.ports:
            for noise in noises:
                self._say(socket.create_connection(("127.0.0.1", port), 5), noise)
        for name, kind in self.unix:
            for noise in noises:
                attacker = socket.socket(socket.AF_UNIX, kind)
                attacker.connect(name)
                self._say(attacker, noise)

    @staticmethod
    def _say(attacker: socket.socket, noise: bytes) -> None:
        with attacker, suppress(OSError):  # hung up on before the end, or after it
            attacker.settimeout(2)
            attacker.sendall(noise)

    def talk(self, server_keys: Sequence[str | None] = (None,)) -> int:
        """ZeroMQ messages to every port; how many sockets were answered in our protocol.

        With `server_keys` as a program of one's own key that learnt these of the servers, else
        without encryption.
        """
        public, secret = zmq.curve_keypair()
        opened = []
        for port in self.ports:
            for server_key in server_keys:
                dealer = self._context.socket(zmq.DEALER)
                dealer.set(zmq.LINGER, 0)
                if server_key is not None:
                    dealer.set(zmq.CURVE_SERVERKEY, server_key.encode())
                    dealer.set(zmq.CURVE_PUBLICKEY, public)
                    dealer.set(zmq.CURVE_SECRETKEY, secret)
                dealer.connect(f"tcp://127.0.0.1:{port}")
                opened.append(dealer)
        for frames in self._messages():
            for dealer in opened:
                with suppress(zmq.Again):  # the server hung up for good
                    dealer.send_multipart(frames, zmq.NOBLOCK)
        poller = zmq.Poller()
        for dealer in opened:
            poller.register(dealer, zmq.POLLIN)
        answered = set()
        while ready := poller.poll(ANSWER_MS):
            for dealer, _ in ready:
                poller.unregister(dealer)
                # An HTTP port's "HTTP/1.1 400" looks to libzmq like a message of ZMTP 1.0.
                if dealer.recv_multipart()[0] == MAGIC:
                    answered.add(dealer)
        for dealer in opened:
            dealer.close()
        return len(answered)

    def _messages(self) -> Iterator[list[bytes]]:
        ping = encode(ClientPing(label="stranger"))
        yield ping
        yield encode(StatusQuery())
        yield [self._bomb]
        yield [MAGIC, self._bomb]
        yield [*ping, self._bomb]
        yield [MAGIC, *[self._bomb] * 20]
        yield [MAGIC, OVERSIZE]

    def __enter__(self) -> "Strangers":
        return self

    def __exit__(self, *exception: object) -> None:
        self._context.destroy(linger=0)
