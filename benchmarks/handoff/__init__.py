"""What a hand-off costs: the time nobody computes in, the copy, the bytes per second of zmq."""
