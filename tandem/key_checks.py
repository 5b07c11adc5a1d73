"""What `--check` says of a process's keys."""

from pathlib import Path

from tandem.bearer import read_keys
from tandem.checks import Check, tried
from tandem.keys import Keyring, read_prefix_key
from tandem.sockets import require_loopback


def key_checks(
    folder: str | None, kind: str, name: str | None, *, host: str, allow_unauthenticated: bool
) -> list[Check]:
    """Whether the keys are complete; without any, whether the host is one that needs none."""

    def own_key() -> str:
        if folder is not None:
            keys = Keyring(Path(folder), kind, name)
            return f"{folder} has {keys.kind}/{keys.name}"
        if allow_unauthenticated:
            return f"none, as was asked for: whoever reaches {host} may use this process"
        require_loopback(host)
        return "none: for programs of this host only"

    def prefix_key() -> str:
        read_prefix_key(folder)
        return "is there"

    checks = [tried("keys", own_key)]
    if folder is not None and kind != "coordinator":
        checks.append(tried("prefix key", prefix_key))
    return checks


def bearer_checks(folder: str | None) -> list[Check]:
    """Whose bearer keys HTTP callers may use; none are needed without a keys folder."""
    if folder is None:
        return []
    try:
        keys = read_keys(Path(folder))
    except (ValueError, OSError) as error:
        return [Check("bearer keys", "fail", str(error))]
    if not keys:
        advice = f"tandem keys bearer NAME --keys {folder} makes one"
        return [Check("bearer keys", "warn", "none: nobody can call over HTTP", advice)]
    return [Check("bearer keys", "ok", f"of {', '.join(keys)}")]
