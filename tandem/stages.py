"""The stages of a request's timeline: where its time went, in metrics and traces."""

from dataclasses import dataclass

from tandem.messages.common import Timeline


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage, in seconds after the request was received."""

    name: str
    begins_s: float
    ends_s: float

    @property
    def seconds(self) -> float:
        """How long it took; what nodes and gateway measured may disagree, so not below 0."""
        return max(0.0, self.ends_s - self.begins_s)


def stages_of(timeline: Timeline) -> tuple[Stage, ...]:
    """The stages that happened, in order: queue, prefill, transfer, decode_admission, decode.

    A request that ended within a stage has neither that one nor those after it. Where the nodes
    were lost, or left, after token 0, its times before are those of the first placement, and all
    that came after token 0 is decode: queue and prefill of later attempts held up no first token.
    """
    ends: tuple[tuple[str, float | None], ...] = (
        ("queue", timeline.prefill_start_s),
        ("prefill", timeline.first_token_s),
        ("transfer", timeline.transfer_end_s),
        ("decode_admission", timeline.decode_start_s),
        ("decode", timeline.finished_s),
    )
    if _began_anew(timeline):
        ends = (("queue", timeline.placed_s), *ends[1:2], *ends[-1:])
    stages: list[Stage] = []
    begins_s = 0.0
    for name, ends_s in ends:
        if ends_s is None:
            break
        stages.append(Stage(name, begins_s, ends_s))
        begins_s = max(begins_s, ends_s)
    return tuple(stages)


def _began_anew(timeline: Timeline) -> bool:
    """Whether the last attempt's prefill came after token 0, which an earlier one had brought."""
    start_s, first_s = timeline.prefill_start_s, timeline.first_token_s
    return start_s is not None and first_s is not None and start_s > first_s
