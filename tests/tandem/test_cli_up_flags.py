"""Flags of `tandem up` that are for every process."""

from pathlib import Path

from tandem.cli import make_parser
from tandem.cli_up import make_cluster
from tandem.foreign_flags import translate


def test_log_flags_reach_every_process(tmp_path: Path) -> None:
    line = ["up", "--model", "m", "--log-format", "json", "--log-level", "debug"]
    ports = [f"--{name}-port=0" for name in ("coordinator", "gateway", "http", "dashboard")]
    parser = make_parser("up")
    args, others = parser.parse_known_args([*line, *ports, "--run-dir", str(tmp_path)])
    cluster = make_cluster(args, translate(others))
    try:
        modules = {plan.module for plan in cluster.plans.values()}
        assert modules == {"coordinator", "gateway", "prefill_node", "decode_node"}
        for plan in cluster.plans.values():
            flags = " ".join(plan.flags)
            assert "--log-format json" in flags and "--log-level debug" in flags, plan
    finally:
        cluster.stop()
