"""Findings of `--check` and `tandem doctor`: what is well, what is not, what to do about it.

The functions that look are of this host and of files; each returns what it found, none raises.
"""

import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tandem.log_lines import printable

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at: `text` is what was found, `advice` what to do about it."""

    subject: str
    status: Status
    text: str
    advice: str = ""


def render_checks(checks: Sequence[Check]) -> str:
    """A line per check, the subject in a column; then how many were not well."""
    width = max((len(check.subject) for check in checks), default=0)
    lines = []
    for check in checks:
        advice = f"; {check.advice}" if check.advice else ""
        text = printable(f"{check.text}{advice}")
        lines.append(f"{check.status:<5} {check.subject:<{width}}  {text}")
    num_failed = sum(check.status == "fail" for check in checks)
    num_doubtful = sum(check.status == "warn" for check in checks)
    return "\n".join([*lines, f"{num_failed} failed, {num_doubtful} warnings"])


def tried(subject: str, attempt: Callable[[], str]) -> Check:
    """What an attempt says of itself; its ValueError or OSError is a failure, with its advice."""
    try:
        return Check(subject, "ok", attempt())
    except (ValueError, OSError) as error:
        return Check(subject, "fail", str(error))


def port_check(subject: str, host: str, port: int) -> Check:
    """Whether a port could be listened on; 0 is any, below 0 none."""
    if port <= 0:
        return Check(subject, "ok", "a free one" if port == 0 else "off")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        advice = f"stop who listens there, or give another --{subject.replace(' ', '-')}"
        return Check(subject, "fail", f"{host}:{port} cannot be used: {error.strerror}", advice)
    return Check(subject, "ok", f"{host}:{port} is free")


def folder_check(subject: str, path: str | None) -> list[Check]:
    """Whether a folder (or the one that a file is to be in) can be written; none for no path."""
    if path is None:
        return []
    target = Path(path)
    existing = next(parent for parent in (target, *target.absolute().parents) if parent.exists())
    if os.access(existing, os.W_OK) and (existing == target or existing.is_dir()):
        return [Check(subject, "ok", f"{path} can be written")]
    advice = f"chown or chmod it, or give another --{subject.replace(' ', '-')}"
    return [Check(subject, "fail", f"{existing} cannot be written", advice)]
