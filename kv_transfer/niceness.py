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

import zmq

NICENESS = 6


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
