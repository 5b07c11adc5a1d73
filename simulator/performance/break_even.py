"""From which prompt length on a prefill node beats the decode node itself; by the cost model. Pure.

A decode node that computes a prompt does so in chunks beside its rows, as large as its time per
token allows; a prefill node computes it in full chunks and ships what is left at the end. Compared
is the time from placement to the first step that decodes the request, with no queue at either; both
wait for the decode node's step in progress, one before and one after its prompt is computed.
"""

from dataclasses import dataclass

from scheduling.costs import StepShape, num_pairs
from simulator.performance.profiles import Profile


@dataclass(frozen=True, slots=True)
class BreakEven:
    """`num_tokens` None: the prefill node never wins up to the longest prompt that fits."""

    num_tokens: int | None
    num_rows: int
    chunk_tokens: int

    def __str__(self) -> str:
        """In words."""
        where = f"beside {self.num_rows} rows, with chunks of {self.chunk_tokens} tokens there"
        if self.num_tokens is None:
            return f"no prompt gains from a prefill node ({where})"
        return f"prompts of {self.num_tokens} tokens and more gain from a prefill node ({where})"


def break_even(
    profile: Profile, *, num_rows: int, num_context: int, tpot_s: float, chunk_tokens: int
) -> BreakEven:
    """For a decode node that runs `num_rows` rows with `num_context` tokens together."""
    local = _largest_chunk(profile, num_rows, num_context, tpot_s, chunk_tokens)
    limit = profile.num_pages * profile.page_size
    low, high = 0, 1
    while not _is_remote_faster(profile, high, num_rows, num_context, local, chunk_tokens):
        low, high = high, high * 2
        if high > limit:
            return BreakEven(None, num_rows, local)
    while high - low > 1:
        middle = (low + high) // 2
        if _is_remote_faster(profile, middle, num_rows, num_context, local, chunk_tokens):
            high = middle
        else:
            low = middle
    return BreakEven(high, num_rows, local)


def _largest_chunk(
    profile: Profile, num_rows: int, num_context: int, tpot_s: float, limit: int
) -> int:
    """Tokens beside the rows that keep the step within the target, at least one page."""
    low, high = profile.page_size, max(profile.page_size, limit - num_rows)
    while high > low:
        middle = (low + high + 1) // 2
        shape = StepShape(middle, num_pairs(middle, 0), num_rows, num_context)
        if profile.step_s(shape) <= tpot_s:
            low = middle
        else:
            high = middle - 1
    return low


def _chunked_s(
    profile: Profile, num_tokens: int, chunk_tokens: int, num_rows: int, num_context: int
) -> float:
    seconds, num_computed = 0.0, 0
    while num_computed < num_tokens:
        num_new = min(chunk_tokens, num_tokens - num_computed)
        shape = StepShape(num_new, num_pairs(num_new, num_computed), num_rows, num_context)
        seconds += profile.step_s(shape, num_computed)
        num_computed += num_new
    return seconds


def _is_remote_faster(
    profile: Profile,
    num_tokens: int,
    num_rows: int,
    num_context: int,
    local_chunk: int,
    remote_chunk: int,
) -> bool:
    local_s = _chunked_s(profile, num_tokens, local_chunk, num_rows, num_context)
    remote_s = _chunked_s(profile, num_tokens, remote_chunk, 0, 0)
    last = (num_tokens - 1) % remote_chunk + 1  # earlier chunks are shipped while it computes
    if profile.transfer_bytes_per_s > 0:
        remote_s += last * profile.kv_bytes_per_token / profile.transfer_bytes_per_s
    remote_s += profile.transfer_s + 2 * profile.control_s  # Reserve and Grant
    return remote_s < local_s
