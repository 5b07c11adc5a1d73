"""Counts of ended requests per SLA class, each request once however often its end is reported."""

from dataclasses import dataclass

from scheduling.sla import SlaTable
from tandem.messages.placement import ClassCounts, RequestEnded

MAX_REMEMBERED_ENDS = 65_536  # reports are resent for seconds, not for so many requests


@dataclass(slots=True)
class _Counts:
    num_ended: int = 0
    num_attained: int = 0
    num_failed: int = 0


class ClassAccounts:
    """Ended requests by class since the coordinator started."""

    def __init__(self, table: SlaTable) -> None:
        self._table = table
        self._counts = {name: _Counts() for name in table.classes}
        self._ends: dict[tuple[int, bytes], None] = {}
        self.num_repeated = 0

    def ended(self, report: RequestEnded) -> None:
        """Count a request's end once; a class that is not on offer is not counted."""
        key = (report.incarnation, report.request_id)
        if key in self._ends:
            self.num_repeated += 1
            return
        self._ends[key] = None
        if len(self._ends) > MAX_REMEMBERED_ENDS:
            del self._ends[next(iter(self._ends))]
        counts = self._counts.get(report.sla_class)
        if counts is None:
            return
        counts.num_ended += 1
        counts.num_attained += report.sla_attained
        counts.num_failed += report.reason == "failed"

    def has_ended(self, incarnation: int, request_id: bytes) -> bool:
        """Whether a request's end was reported."""
        return (incarnation, request_id) in self._ends

    def snapshot(self) -> tuple[ClassCounts, ...]:
        """Counts of every class on offer."""
        return tuple(
            ClassCounts(
                targets=self._table.classes[name].targets,
                num_ended=counts.num_ended,
                num_attained=counts.num_attained,
                num_failed=counts.num_failed,
            )
            for name, counts in self._counts.items()
        )
