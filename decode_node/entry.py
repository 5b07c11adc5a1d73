"""One request of the decode guest, and what it reports at its end."""

from dataclasses import dataclass
from enum import Enum, auto

from kv_transfer.actions import FirstToken
from node.resident import Resident
from tandem.messages.common import DecodeReport, ErrorCode, FinishReason
from tandem.messages.serving import Ending


class Phase(Enum):
    """Where a request is on its way."""

    EXPECTED = auto()  # its command is here, its KV is not
    WAITING = auto()  # KV and command are here; the batch policy has not admitted it
    RUNNING = auto()  # one token per step
    RECOMPUTING = auto()  # preempted: the prefill guest has it, and computes its KV again
    SWAPPED = auto()  # preempted: its KV is in host memory


@dataclass(slots=True)
class Entry:
    """One request with its command; `kv_at` and `started_at` are for its timeline."""

    resident: Resident
    is_local: bool = False  # this node computes its prompt: nothing of it comes from another
    phase: Phase = Phase.EXPECTED
    first_token: FirstToken | None = None
    kv_at: float | None = None
    started_at: float | None = None
    num_transfer_bytes: int = 0
    num_cached_tokens: int = 0  # of this node, so they were not sent
    move_wished_at: float | None = None

    @property
    def awaits_transfer(self) -> bool:
        """Whether its KV may come from another node, or be said not to."""
        return self.phase is Phase.EXPECTED and not self.is_local

    @property
    def has_pages(self) -> bool:
        """Whether its pages are the decode guest's to give back."""
        return self.phase in (Phase.WAITING, Phase.RUNNING)

    def ending(
        self,
        reason: FinishReason,
        node_id: str,
        now: float,
        *,
        code: ErrorCode | None = None,
        message: str | None = None,
    ) -> Ending:
        """How it ended, with both reports."""
        resident = self.resident
        return Ending(
            request_id=resident.key[0],
            attempt=resident.key[1],
            end_index=resident.num_output_tokens,
            reason=reason,
            code=code,
            message=message,
            prefill=self.first_token.report if self.first_token is not None else None,
            decode=self._report(node_id, now),
        )

    def _report(self, node_id: str, now: float) -> DecodeReport:
        arrived_at = self.resident.arrived_at
        kv_at = now if self.kv_at is None else self.kv_at
        started_at = now if self.started_at is None else self.started_at
        return DecodeReport(
            node_id=node_id,
            transfer_end_after_s=max(0.0, kv_at - arrived_at),
            started_after_s=max(0.0, started_at - arrived_at),
            ended_after_s=max(0.0, now - arrived_at),
            transfer_bytes=self.num_transfer_bytes,
            num_cached_tokens=self.num_cached_tokens,
        )
