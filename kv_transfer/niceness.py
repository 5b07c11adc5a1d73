"""Bulk threads give way: what handles control messages wakes up at once, while pages move.

On two busy cores a thread that wakes waits until another is put off its core. With six steps of
niceness for what moves pages, p99 of a control message fell from 12 to 7 ms beside encrypted pages
over zmq (with three it stayed at 10), and pages were as fast as before; more steps won little and
leave a tenth of a busy core (decision 0014). Linux has niceness per thread, inherited by the
threads that a thread starts; elsewhere nothing happens.
"""

import os
import sys
import threading
import time

import zmq

NICENESS = 6
# A thread that never waits keeps its core, and others, with little to do, wait for it at each
# turn: with two cores, p99 of control messages was 6 ms beside shared memory. A nap in every
# 8 MiB or so made it 3 ms (decision 0014). It lasts 0.12 ms, as Linux has it: half of what a
# hand-off of 20 MiB waited for. So the first 32 MiB after a rest are moved without one.
NAP_S = 50e-6
ROUNDS_PER_NAP = 8
ROUNDS_AT_ONCE = 32


def give_way() -> None:
    """Let the calling thread, and the threads that it starts from now on, be preferred less."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


def yielding_context() -> "zmq.Context[zmq.Socket[bytes]]":
    """A ZeroMQ context whose own threads, which encrypt and copy, give way."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()

    def start_threads() -> None:
        give_way()
        context.socket(zmq.PAIR).close(0)  # a context starts its threads with its first socket

    thread = threading.Thread(target=start_threads, name="bulk-context")
    thread.start()
    thread.join()
    return context


class Naps:
    """Lets a thread that moves pages sleep a little now and then, but not in short work."""

    def __init__(self) -> None:
        self._num_rounds = 0  # since there was nothing to do

    def round_begins(self, *, has_work: bool) -> None:
        """Before the thread looks at requests and sockets, to wait there if it has no work."""
        self._num_rounds = self._num_rounds + 1 if has_work else 0
        if self._num_rounds > ROUNDS_AT_ONCE and self._num_rounds % ROUNDS_PER_NAP == 0:
            time.sleep(NAP_S)
