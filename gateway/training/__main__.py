"""`python -m gateway.training RECORDS --out FILE`: what `tandem train-predictor` starts."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from gateway.length_records import read_records
from gateway.training.trainer import Report, train


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 where the records do not allow it."""
    parser = argparse.ArgumentParser(prog="tandem train-predictor", allow_abbrev=False)
    parser.add_argument("records", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    try:
        model, report = train(list(read_records(args.records)))
        args.out.write_bytes(msgspec.json.encode(model))
    except OSError as error:
        print(f"tandem train-predictor: cannot write {args.out}: {error.strerror}", file=sys.stderr)
        return 1
    except ValueError as error:
        print(f"tandem train-predictor: {error}", file=sys.stderr)
        return 1
    print(describe(report))
    print(msgspec.json.encode(report).decode())
    return 0


def describe(report: Report) -> str:
    """The report for people."""
    model = report.model
    return "\n".join(
        (
            f"{report.num_records} answers, {report.num_cut} of them cut; judged on the newest "
            f"{report.num_held_out} that ended by themselves",
            f"Kendall's tau      {model.tau:.3f}  (the table's {report.table_tau:.3f})",
            f"over 20 % apart    {model.tau_far:.3f}  (the table's {report.table_tau_far:.3f})",
            f"median off by      {model.mae:.1f} tokens in the mean",
            f"answer / median    {model.p90_under:.2f} at the 90th percentile",
            f"longer than q90    {model.q90_missed:.1%}  (10 % is right where few are cut)",
            f"time per request   {report.ms_per_request:.3f} ms",
        )
    )


if __name__ == "__main__":
    sys.exit(main())
