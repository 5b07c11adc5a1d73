"""Hardware profiles: what steps, transfers and swaps take, and how much KV fits.

A step takes the base of what it does (prefill, decode; the larger one of both), and a share for
each token, each pair of tokens that attend, each decode row. Coefficients change where a batch
grows past a bound, as published fits do (DistServe: decode below 95 rows and above; Niyama: up to
512 tokens and above), so a profile has one `Regime` or several. Times are in seconds.
"""

import tomllib
from pathlib import Path
from typing import Any

import msgspec

from scheduling.costs import StepShape
from tandem.messages.common import NodeCosts

FITTED_STEPS = 10_000  # nodes that have run for a while: policies may rely on their costs
MEDIAN_OF_NORMAL = 0.6745  # of the absolute value

FOLDER = Path(__file__).parent / "hardware"


class Regime(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Coefficients of steps of up to `max_decode_rows` rows and `max_tokens` tokens.

    prefill_prefix_s is for each token that was computed before a chunk, in earlier chunks or from
    the cache; other names are those of `NodeCosts`.
    """

    prefill_base_s: float
    decode_base_s: float
    prefill_token_s: float = 0.0
    prefill_context_s: float = 0.0
    prefill_prefix_s: float = 0.0
    decode_row_s: float = 0.0
    decode_context_s: float = 0.0
    max_decode_rows: int | None = None
    max_tokens: int | None = None

    def takes(self, num_rows: int, num_tokens: int) -> bool:
        """Whether a step of `num_rows` rows among `num_tokens` tokens is within its bounds."""
        rows, tokens = self.max_decode_rows, self.max_tokens
        return (rows is None or num_rows <= rows) and (tokens is None or num_tokens <= tokens)


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One kind of node with one model.

    source: where the figures are from; those of different sources must not be mixed. noise_sigma:
    of the lognormal factor (median 1) on every step; stall_probability: of a further `stall_s` in a
    step. control_s: a message between two processes. swap_bytes_per_s 0: nothing can be swapped.
    """

    name: str
    source: str
    num_pages: int
    kv_bytes_per_token: int
    regimes: tuple[Regime, ...]
    page_size: int = 16
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 512
    transfer_bytes_per_s: float = 0.0
    transfer_s: float = 0.0
    control_s: float = 0.0
    swap_bytes_per_s: float = 0.0
    swap_s: float = 0.0
    noise_sigma: float = 0.0
    stall_probability: float = 0.0
    stall_s: float = 0.0

    def __post_init__(self) -> None:
        """Check what types cannot say."""
        problem = _explain_fault(self)
        if problem is not None:
            raise ValueError(f"profile {self.name!r}: {problem}")

    def regime(self, num_rows: int, num_tokens: int) -> Regime:
        """The first one whose bounds hold; the last one has none."""
        return next(r for r in self.regimes if r.takes(num_rows, num_tokens))

    def step_s(self, shape: StepShape, num_prefix_tokens: int = 0) -> float:
        """Seconds of a step without noise; `num_prefix_tokens` were computed before its chunks."""
        num_rows = shape.num_decode_rows
        regime = self.regime(num_rows, num_rows + shape.num_prefill_tokens)
        bases = (
            regime.prefill_base_s if shape.num_prefill_tokens else 0.0,
            regime.decode_base_s if num_rows else 0.0,
        )
        return (
            max(bases)
            + regime.prefill_token_s * shape.num_prefill_tokens
            + regime.prefill_context_s * shape.num_prefill_pairs
            + regime.prefill_prefix_s * num_prefix_tokens
            + regime.decode_row_s * num_rows
            + regime.decode_context_s * shape.num_decode_tokens
        )

    @property
    def costs(self) -> NodeCosts:
        """What policies are told: the linear model of a typical step, as a node fits it online.

        A prefix costs each token of a full chunk its share.
        """
        regime = self.regime(1, self.max_num_batched_tokens)
        return NodeCosts(
            step_s=max(regime.prefill_base_s, regime.decode_base_s),
            prefill_token_s=regime.prefill_token_s,
            prefill_context_s=regime.prefill_context_s
            + regime.prefill_prefix_s / self.max_num_batched_tokens,
            decode_row_s=regime.decode_row_s,
            decode_context_s=regime.decode_context_s,
            error=MEDIAN_OF_NORMAL * self.noise_sigma,
            num_steps=FITTED_STEPS,
            transfer_s=self.transfer_s,
            transfer_bytes_per_s=self.transfer_bytes_per_s,
        )

    @property
    def page_bytes(self) -> int:
        """Bytes of a page."""
        return self.kv_bytes_per_token * self.page_size


def _explain_fault(profile: Profile) -> str | None:
    if not profile.regimes:
        return "needs at least one [[regimes]] table"
    last = profile.regimes[-1]
    if last.max_decode_rows is not None or last.max_tokens is not None:
        return "its last [[regimes]] table must have no max_decode_rows and no max_tokens"
    if min(profile.num_pages, profile.page_size, profile.kv_bytes_per_token) < 1:
        return "num_pages, page_size and kv_bytes_per_token must be at least 1"
    if profile.max_num_seqs < 1 or profile.max_num_batched_tokens < profile.max_num_seqs:
        return "max_num_seqs must be at least 1, and max_num_batched_tokens no less"
    if not 0 <= profile.stall_probability < 1 or min(profile.noise_sigma, profile.stall_s) < 0:
        return "stall_probability must be below 1, and noise_sigma and stall_s not negative"
    if any(max(r.prefill_base_s, 0.0) + r.prefill_token_s <= 0 for r in profile.regimes):
        return "a prefill step must take time: give prefill_base_s or prefill_token_s"
    if any(max(r.decode_base_s, 0.0) + r.decode_row_s <= 0 for r in profile.regimes):
        return "a decode step must take time: give decode_base_s or decode_row_s"
    return None


def profile_names() -> list[str]:
    """The profiles that come with Tandem, one TOML file each."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load_profile(name_or_path: str) -> Profile:
    """A shipped profile by name, or one from a TOML file. Raises ValueError with advice."""
    path = Path(name_or_path)
    if not name_or_path.endswith(".toml"):
        path = FOLDER / f"{name_or_path}.toml"
    if not path.is_file():
        raise ValueError(
            f"no profile {name_or_path!r}: use one of {', '.join(profile_names())}, or the "
            "path of a .toml file (copy one from simulator/performance/hardware)"
        )
    try:
        return parse_profile(tomllib.loads(path.read_text()))
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None


def parse_profile(document: dict[str, Any]) -> Profile:
    """A profile from the keys of its file. Raises ValueError naming the key."""
    try:
        return msgspec.convert(document, Profile, strict=False)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None
