"""`python -m coordinator`: the coordinator's composition root."""

import sys

import uvloop

from coordinator.checks import check
from coordinator.config import CoordinatorConfig
from coordinator.server import serve
from tandem.config import load_config
from tandem.service import Log, stop_on_signals


async def run(config: CoordinatorConfig) -> None:
    """Serve until SIGINT or SIGTERM."""
    await serve(
        config,
        stop=stop_on_signals(),
        on_ready=lambda address: print(f"ready coordinator {address}", flush=True),
        on_dashboard=lambda address: print(f"dashboard {address}", flush=True),
    )


def main() -> int:
    """Exit status: 0 after a clean stop, 1 where it could not serve."""
    config = load_config(
        CoordinatorConfig,
        sys.argv[1:],
        prog="python -m coordinator",
        section="coordinator",
        check=check,
    )
    Log(config, "coordinator")
    try:
        uvloop.run(run(config))
    except ValueError as error:
        print(f"coordinator: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
