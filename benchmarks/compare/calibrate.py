"""This machine's profile for the simulator, as a TOML file that `tandem simulate` takes."""

import asyncio

import msgspec

from benchmarks.claims.systems import Deployment
from benchmarks.compare.calibration import NODE_ARGS, Calibration, as_toml, calibrate
from benchmarks.options import Options
from benchmarks.report import Report, Table

SEED = 7001


def run(options: Options) -> Report:
    """Learn it from the real system with the demo model; the text is a figure, too."""
    calibration = asyncio.run(_measure(options))
    text = as_toml(calibration.profile)
    rows = [
        [name, f"{prefill:.4g}", f"{decode:.4g}"]
        for (name, prefill), decode in zip(
            msgspec.structs.asdict(calibration.prefill).items(),
            msgspec.structs.asdict(calibration.decode).values(),
            strict=True,
        )
    ]
    return Report(
        [
            Table("what the nodes learned", ("", "prefill-0", "decode-0"), rows),
            Table("the profile", ("",), [[line] for line in text.splitlines()]),
        ],
        ("put it in simulator/performance/hardware/cpu-demo.toml to use it by name",),
        {"profile": text, "gap_ms": round(calibration.gap_s * 1e3, 3)},
    )


async def _measure(options: Options) -> Calibration:
    with Deployment(node_args=NODE_ARGS) as deployment:
        return await calibrate(deployment, options, SEED)
