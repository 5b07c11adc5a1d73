"""A prefill node of one prompt at a time, in chunks: what the order of prompts does to TTFT."""

from msgspec import structs

from scheduling.prefill.catalogue import make_prefill_policy
from scheduling.views import RequestKey, SequenceView, Services
from tandem.messages.common import LengthPrediction, NodeCosts

TOKEN_S = 1e-3
CHUNK = 100
SERVICES = Services(
    NodeCosts(
        step_s=0.0,
        prefill_token_s=TOKEN_S,
        prefill_context_s=0.0,
        decode_row_s=0.0,
        decode_context_s=0.0,
    )
)


def prompt(
    n: int,
    num_tokens: int,
    *,
    at: float = 0.0,
    ttft_s: float = float("inf"),
    priority: int = 0,
    answer: float | None = None,
    prefix_id: bytes | None = None,
    is_begun: bool = False,
    num_pages: int = 0,
    num_cached: int = 0,
) -> SequenceView:
    prediction = None if answer is None else LengthPrediction(score=answer, q50=answer, q90=answer)
    return SequenceView(
        key=(n.to_bytes(16, "big"), 1),
        age=n,
        arrived_at=at,
        priority=priority,
        tenant="default",
        num_prompt_tokens=num_tokens,
        num_tokens=num_tokens,
        num_computed=num_cached,
        max_total_tokens=num_tokens + 100,
        num_pages=num_pages,
        ttft_s=ttft_s,
        prediction=prediction,
        is_begun=is_begun,
        num_cached=num_cached,
        prefix_id=prefix_id,
    )


def order(name: str, prompts: list[SequenceView], now: float = 0.0, **options: str) -> list[int]:
    """The order that a fresh policy gives, as numbers."""
    return numbers(make_prefill_policy(name, options).order(prompts, now, SERVICES))


def numbers(keys: list[RequestKey]) -> list[int]:
    return [int.from_bytes(key[0], "big") for key in keys]


def serve(name: str, prompts: list[SequenceView], **options: str) -> dict[int, float]:
    """When each prompt's first token came, one chunk after another in the policy's order."""
    policy = make_prefill_policy(name, options)
    todo = sorted(prompts, key=lambda s: s.arrived_at)
    here: dict[RequestKey, SequenceView] = {}
    done: dict[int, float] = {}
    now = 0.0
    while todo or here:
        while todo and todo[0].arrived_at <= now:
            sequence = todo.pop(0)
            here[sequence.key] = sequence
        keys = policy.order(list(here.values()), now, SERVICES)
        if not keys:
            assert todo, "prompts left out, and nothing will change"
            now = todo[0].arrived_at
            continue
        sequence = here[keys[0]]
        num_tokens = min(CHUNK, sequence.num_left)
        now += num_tokens * TOKEN_S
        num_computed = sequence.num_computed + num_tokens
        here[sequence.key] = structs.replace(sequence, num_computed=num_computed, is_begun=True)
        if num_computed == sequence.num_tokens:
            del here[sequence.key]
            done[int.from_bytes(sequence.key[0], "big")] = now
    return done
