"""How long answers will be: asked at admission, told at the end. Part of the gateway's shell.

Predictions are hints for whoever orders, places and sets pages aside; nothing depends on them.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from gateway.actions import NewRequest
from gateway.config import GatewayConfig
from gateway.features import features
from gateway.length_model import LengthPredictor, load_predictor
from gateway.length_records import LengthRecord, LengthRecorder
from scheduling.lengths import LengthTable
from tandem.messages.client import Done, Submit


@dataclass(frozen=True, slots=True)
class _Open:
    """What is kept of a request until its end."""

    tenant: str
    sla_class: str
    max_tokens: int
    features: tuple[float, ...] | None


class Lengths:
    """See the module. Without a predictor, and where it has nothing to go by, the table serves."""

    def __init__(self, predictor: LengthPredictor | None, recorder: LengthRecorder | None) -> None:
        self._predictor = predictor
        self._recorder = recorder
        self._table = LengthTable()
        self._open: dict[bytes, _Open] = {}

    def predicted(self, submit: Submit, new: NewRequest) -> NewRequest:
        """The request with a prediction; its end is to be told."""
        limit = new.params.max_tokens
        assert limit is not None, "admission resolves max_tokens"
        sla_class = submit.sla_class or ""
        prediction = self._table.predict(new.tenant, sla_class, limit)
        row = None
        if self._predictor is not None or self._recorder is not None:
            row = features(
                submit,
                num_prompt_tokens=len(new.prompt_ids),
                max_tokens=limit,
                table_q50=prediction.q50,
            )
        if self._predictor is not None and row is not None:
            prediction = self._predictor.predict(row, limit)
        self._open[new.request_id] = _Open(new.tenant, sla_class, limit, row)
        return replace(new, prediction=prediction)

    def ended(self, done: Done) -> None:
        """A request of which `predicted` was asked has ended. What failed tells nothing.

        One that reached its limit, or that its client cancelled, would have been longer.
        """
        known = self._open.pop(done.request_id, None)
        num_tokens = done.usage.num_output_tokens
        if known is None or done.reason == "failed" or not num_tokens:
            return
        is_cut = done.reason != "stop"
        self._table.note(known.tenant, known.sla_class, num_tokens, is_cut=is_cut)
        if self._recorder is not None and known.features is not None:
            record = LengthRecord(
                features=known.features,
                num_tokens=num_tokens,
                max_tokens=known.max_tokens,
                is_cut=is_cut,
            )
            self._recorder.write(record)

    def close(self) -> None:
        """End the recording."""
        if self._recorder is not None:
            self._recorder.close()


def make_lengths(config: GatewayConfig) -> Lengths:
    """As an operator wants it. Raises ValueError with advice."""
    predictor = None
    if config.length_predictor is not None:
        predictor = load_predictor(config.length_predictor)
    recorder = None
    if config.record_dir is not None:
        recorder = LengthRecorder(Path(config.record_dir), config.name or "gateway")
    return Lengths(predictor, recorder)
