"""Who a simulated node process is, what it serves, and where its pages are found."""

from collections.abc import Callable
from dataclasses import dataclass

from simulator.bulk import BulkSide
from simulator.knobs import Knobs
from tandem.messages.common import ModelIdentity

EOS = 7


def model_identity(knobs: Knobs) -> ModelIdentity:
    """The model that everybody serves."""
    return ModelIdentity(
        served_name="fake",
        weights_fingerprint="w",
        tokenizer_fingerprint="t",
        dtype="float32",
        max_model_len=knobs.max_prompt + knobs.max_output,
        vocab_size=knobs.vocab_size,
    )


@dataclass(frozen=True, slots=True)
class NodeSetup:
    """Who a node process is."""

    node_id: str
    index: int
    incarnation: int
    clock_offset_s: float
    drift: float


class Directory:
    """Bulk sides by the address that a welcome names."""

    def __init__(self, transport_of: Callable[[str, str], str]) -> None:
        self.sides: dict[str, BulkSide] = {}
        self.transport_of = transport_of
