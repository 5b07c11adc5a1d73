"""One of two processes on a device, told what to do: `python -m benchmarks.gpu_all.handoff_peer`.

A JSON list per line in, a JSON value per line out. The other process is at the socket whose number
is the first argument; the second is "cuda" or "cpu".
"""

import json
import socket
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch

from benchmarks.gpu_all.handoff_device import CudaDevice, HandoffDevice, HostDevice
from benchmarks.gpu_all.setting import Setting, make_setting
from benchmarks.gpu_all.timing import captured, seconds_per_call
from kernels.pages import gather_pages, scatter_pages
from kernels.rope import rope_write

TOKENS = 8192


class Peer:
    """A pool of twice the pages of one prompt of 8k tokens, and, once opened, the other's."""

    def __init__(self, setting: Setting, other: socket.socket) -> None:
        self.setting, self.other = setting, other
        self.device: HandoffDevice = HostDevice() if setting.is_dry else CudaDevice()
        self.num_pages = setting.pick(TOKENS, 64) // setting.page_size
        shape = setting.shape
        sizes = (shape.num_layers, 2, shape.num_kv_heads, setting.page_size, shape.head_dim)
        self.sizes = (2 * self.num_pages, *sizes)
        numbers = torch.Size(self.sizes).numel()
        self.num_bytes = numbers * setting.dtype.itemsize
        self.pool = self.view(self.device.allocate(self.num_bytes))
        self.theirs = self.pool
        order = torch.randperm(2 * self.num_pages)[: self.num_pages]
        self.page_ids = order.to(setting.device, torch.int32)
        self.event, self.event_handle = self.device.event()

    def view(self, flat: torch.Tensor) -> torch.Tensor:
        """The pool [P, L, 2, Hkv, N, D] in its bytes."""
        return flat.view(self.setting.dtype).view(self.sizes)

    def export(self) -> list[str]:
        """Handles of the pool and of the event."""
        return [self.device.export(), self.event_handle]

    def open(self, pool: str, event: str) -> bool:
        """Map the other's pool; its event is the one to wait for."""
        self.theirs = self.view(self.device.open(pool, self.num_bytes))
        self.their_event = self.device.open_event(event)
        return True

    def rates(self) -> dict[str, float]:
        """Seconds of 8k tokens into the other's pages, by way; the device's own time."""
        staging = gather_pages(self.pool, self.page_ids)
        sources = [self.pool[i] for i in range(self.num_pages)]
        targets = [self.theirs[i] for i in self.page_ids.tolist()]

        def page_by_page() -> None:
            for source, target in zip(sources, targets, strict=True):
                target.copy_(source)

        def whole(pool: torch.Tensor) -> float:
            return seconds_per_call(
                self.setting, [lambda: scatter_pages(staging, pool, self.page_ids)]
            )

        layer = gather_pages(self.pool, self.page_ids, (0, 1))
        return {
            "page kernel into the other's pool": whole(self.theirs),
            "page kernel into the own pool": whole(self.pool),
            "page kernel, one layer": seconds_per_call(
                self.setting, [lambda: scatter_pages(layer, self.theirs, self.page_ids, (0, 1))]
            ),
            "a copy per page": seconds_per_call(self.setting, [page_by_page], as_graph=False),
            "rope_write into the other's pool, all layers": self._rope(self.theirs),
            "rope_write into the own pool, all layers": self._rope(self.pool),
        }

    def _rope(self, pool: torch.Tensor) -> float:
        setting, shape = self.setting, self.setting.shape
        tokens = self.num_pages * setting.page_size
        heads = shape.num_heads + 2 * shape.num_kv_heads
        qkv = torch.randn(tokens, heads * shape.head_dim, device=setting.device).to(setting.dtype)
        rows = torch.arange(tokens, dtype=torch.int32, device=setting.device)
        cos_sin = torch.randn(tokens, shape.head_dim, device=setting.device)
        pages = self.page_ids[(rows // setting.page_size).long()]
        slots = (pages, rows % setting.page_size, shape.num_heads)
        calls = [
            partial(rope_write, qkv, cos_sin, rows, pool, layer, *slots)
            for layer in range(shape.num_layers)
        ]
        return seconds_per_call(setting, calls) * shape.num_layers

    def send(self, value: float, work: int) -> float:
        """After `work` products write `value` to 8k tokens of pages and say so; when begun.

        Nothing is waited for: the event alone orders what the other does next.
        """
        staging = torch.full(
            (self.num_pages, self.pool[0].numel()), value,
            dtype=self.setting.dtype, device=self.setting.device,
        )  # fmt: skip
        a = torch.randn(self.setting.pick(4096, 16), self.setting.pick(4096, 16))
        a = a.to(self.setting.device)
        self.device.synchronize()
        begin = time.monotonic()
        for _ in range(work):
            a = torch.nn.functional.normalize(a @ a)
        scatter_pages(staging, self.theirs, self.page_ids)
        self.event.record()
        self.other.sendall(json.dumps([self.page_ids.tolist()]).encode() + b"\n")
        return begin

    def receive(self, value: float) -> list[float]:
        """Wait by the event for what `send` wrote: how much of it is wrong, when it was there."""
        (pages,) = json.loads(self.other.makefile().readline())
        self.device.wait(self.their_event)
        rows = torch.tensor(pages, device=self.setting.device)
        first = self.pool[rows[:1].long(), 0].amax()  # the first thing a step would read
        torch.Tensor.item(first)
        there_at = time.monotonic()
        wrong = (self.pool[rows.long()] != value).sum()
        return [float(wrong), there_at]

    def flood(self) -> bool:
        """Write to the other's pages until this process is ended."""
        staging = torch.ones_like(gather_pages(self.pool, self.page_ids))
        print("true", flush=True)
        while True:
            scatter_pages(staging, self.theirs, self.page_ids)
            self.device.synchronize()

    def clear_and_watch(self, seconds: float) -> list[float]:
        """Seconds until the device was idle; numbers that changed after the pool was cleared."""
        begin = time.monotonic()
        self.device.synchronize()
        settled_s = time.monotonic() - begin
        self.pool.zero_()
        changed, ends_at = 0.0, time.monotonic() + seconds
        while time.monotonic() < ends_at:
            changed += float((self.pool != 0).sum())
        return [settled_s, changed]

    def alive(self) -> bool:
        """Whether the device still computes for this process."""
        a = torch.ones(64, 64, device=self.setting.device)
        return float((a @ a).sum()) == 64.0**3

    def prefill(self, seconds: float) -> int:
        """Products as large as a prompt's for so long; how many."""
        size = self.setting.pick(8192, 32)
        a = torch.randn(size, size, device=self.setting.device).to(self.setting.dtype)
        print("true", flush=True)
        count, ends_at = 0, time.monotonic() + seconds
        while time.monotonic() < ends_at:
            for _ in range(8):
                torch.mm(a, a)
            self.device.synchronize()
            count += 8
        return count

    def steps(self, seconds: float) -> list[float]:
        """ms of a decode-like step (reads of 1 GiB in 64 launches): median, p99, largest."""
        words = torch.zeros(self.setting.pick(1 << 29, 64), dtype=torch.int16)
        parts = words.to(self.setting.device).split(len(words) // 64)
        step = self._step(parts)
        times, ends_at = [], time.monotonic() + seconds
        while time.monotonic() < ends_at:
            begin = time.monotonic()
            step()
            self.device.synchronize()
            times.append((time.monotonic() - begin) * 1e3)
        times.sort()
        return [statistics.median(times), times[int(len(times) * 0.99)], times[-1]]

    def _step(self, parts: Sequence[torch.Tensor]) -> Callable[[], object]:
        calls = [partial(part.add_, 1) for part in parts]
        if not self.setting.is_dry:
            return captured(calls)
        return lambda: [call() for call in calls]


def main() -> None:
    """Obey until the input ends."""
    other = socket.socket(fileno=int(sys.argv[1]))
    peer = Peer(make_setting(is_dry=sys.argv[2] == "cpu", ceilings={}), other)
    print("true", flush=True)
    with torch.inference_mode():
        for line in sys.stdin:
            name, *arguments = json.loads(line)
            print(json.dumps(getattr(peer, name)(*arguments)), flush=True)


if __name__ == "__main__":
    main()
