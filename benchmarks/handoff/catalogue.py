"""Parts of the hand-off benchmark by name."""

from collections.abc import Callable

from benchmarks.handoff import copying, exposed, stream
from benchmarks.options import Options
from benchmarks.report import Report

ALL = "all"


def run_all(options: Options) -> Report:
    """One report of all parts."""
    reports = [part(options) for name, part in PARTS.items() if name != ALL]
    return Report(
        [table for report in reports for table in report.tables],
        [note for report in reports for note in report.notes],
        {key: value for report in reports for key, value in report.figures.items()},
    )


PARTS: dict[str, Callable[[Options], Report]] = {
    ALL: run_all,
    "copying": copying.run,
    "exposed": exposed.run,
    "stream": stream.run,
}
