"""When shipped pages arrive: links that are shared, first come first served. Pure."""

from collections.abc import Sequence

from simulator.performance.profiles import Profile


class Links:
    """One link per node and direction, each a server of `transfer_bytes_per_s`.

    Chunks of a prompt are shipped while later ones compute, so only what is left at its end delays
    the hand-off. A transfer takes its links from its first chunk on, in the order in which prompts
    end; gaps between its chunks are given to nobody else.
    """

    def __init__(self, profile: Profile, num_nodes: int) -> None:
        self._profile = profile
        self._sender_free_at = [0.0] * num_nodes
        self._receiver_free_at = [0.0] * num_nodes
        self.num_bytes = 0

    def ship(self, sender: int, receiver: int, chunks: Sequence[tuple[float, int]]) -> float:
        """When all chunks, each (ready at, bytes), are there. Chunks are in the order of time."""
        rate = self._profile.transfer_bytes_per_s
        num_bytes = sum(size for _, size in chunks)
        self.num_bytes += num_bytes
        ready_at = chunks[-1][0] if chunks else 0.0
        if rate <= 0 or not num_bytes:
            return ready_at + self._profile.transfer_s
        alone = 0.0  # when the last byte would leave with the links to itself
        for at, size in chunks:
            alone = max(alone, at) + size / rate
        first = chunks[0][0]
        work = num_bytes / rate
        sent_at = max(self._sender_free_at[sender], first) + work
        taken_at = max(self._receiver_free_at[receiver], first) + work
        done_at = max(alone, sent_at, taken_at)
        self._sender_free_at[sender] = max(sent_at, first)
        self._receiver_free_at[receiver] = max(taken_at, first)
        return done_at + self._profile.transfer_s
