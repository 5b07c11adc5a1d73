"""`tandem keys`: make, rotate, list and remove the keys of a deployment (SECURITY.md)."""

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

from tandem.bearer import ROLES, add_key, read_keys, remove_key
from tandem.keys import GRACE_S, KINDS, KeyFolder, Keyring, require_private
from tandem.tables import format_table


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the subcommand."""
    parser = commands.add_parser(
        "keys",
        help="make, rotate, list and remove keys",
        description="Manages a folder of keys. Every process and client gets --keys FOLDER; its "
        "host needs FOLDER/public, its own secret keys, and on nodes and gateways "
        "FOLDER/prefix.key (SECURITY.md has the commands).",
        allow_abbrev=False,
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    _add_action(actions, "init", "make a folder with the coordinator's key", owned=False)
    _add_action(actions, "add", "make a key for a process, a client or an operator")
    rotate = _add_action(
        actions, "rotate", "make a new key; the present one is accepted for a while"
    )
    rotate.add_argument(
        "--grace-s",
        type=float,
        default=GRACE_S,
        metavar="X",
        help="seconds for which others accept the present key; 0 where it was stolen "
        "[default %(default)g]",
    )
    _add_action(actions, "list", "show who has a key", owned=False)
    _add_action(actions, "remove", "accept a key no more; its connections end within a second")
    _add_bearer(actions)


def _add_bearer(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    text = "make an API key for HTTP callers and print it; only its digest is kept"
    parser = actions.add_parser("bearer", help=text, description=text, allow_abbrev=False)
    parser.add_argument("name", metavar="NAME", help="whose it is; tenants list it as a client")
    parser.add_argument(
        "--role",
        choices=ROLES,
        default=ROLES[0],
        help="client: the API of gateways; operator: the dashboard and metrics "
        "[default %(default)s]",
    )
    parser.add_argument(
        "--keys",
        dest="folder",
        type=Path,
        metavar="FOLDER",
        default=os.environ.get("TANDEM_KEYS"),
        help="keys folder [TANDEM_KEYS]",
    )
    parser.add_argument("--remove", action="store_true", help="accept the key of NAME no more")


def keyring(args: argparse.Namespace, kind: str) -> Keyring | None:
    """The keys that the flags name."""
    return None if args.keys is None else Keyring(Path(args.keys), kind, args.key_name)


def _add_action(
    actions: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    text: str,
    *,
    owned: bool = True,
) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=text, description=text, allow_abbrev=False)
    if owned:
        parser.add_argument("kind", choices=KINDS, metavar="KIND", help=", ".join(KINDS))
        parser.add_argument("name", metavar="NAME", help="as the process's --name")
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    return parser


def run(args: argparse.Namespace) -> int:
    """Exit status 0. Raises ValueError with advice."""
    actions: dict[str, Callable[[argparse.Namespace], str]] = {
        "init": _init,
        "add": _add,
        "rotate": _rotate,
        "list": _list,
        "remove": _remove,
        "bearer": _bearer,
    }
    if args.folder is None:
        raise ValueError("name the keys folder with --keys FOLDER, or in TANDEM_KEYS")
    try:
        print(actions[args.action](args))
    except OSError as error:
        raise ValueError(f"cannot write to {args.folder}: {error.strerror}") from None
    return 0


def _init(args: argparse.Namespace) -> str:
    KeyFolder.create(args.folder)
    return (
        f"{args.folder} has the coordinator's key. Next:\n"
        f"  tandem keys add gateway gateway {args.folder}\n"
        f"  tandem keys add node NAME {args.folder}\n"
        f"  tandem keys add client NAME {args.folder}"
    )


def _add(args: argparse.Namespace) -> str:
    KeyFolder(args.folder).add(args.kind, args.name)
    return (
        f"{args.kind}/{args.name} has a key. Copy {args.folder}/public to every host, and "
        f"{KeyFolder(args.folder).secret_path(args.kind, args.name)} to its own"
    )


def _rotate(args: argparse.Namespace) -> str:
    KeyFolder(args.folder).rotate(args.kind, args.name, grace_s=args.grace_s)
    return (
        f"{args.kind}/{args.name} has a new key; the previous one is accepted for "
        f"{args.grace_s:g} s. Running processes take it up by themselves. Other hosts: copy "
        f"{args.folder}/public there first, then the secret key to its own"
    )


def _remove(args: argparse.Namespace) -> str:
    KeyFolder(args.folder).remove(args.kind, args.name)
    return f"{args.kind}/{args.name} has no key. Other hosts: delete its file below public there"


def _bearer(args: argparse.Namespace) -> str:
    folder = Path(args.folder)
    if args.remove:
        remove_key(folder, args.name)
        return f"the API key of {args.name} opens nothing any more, within a second"
    return add_key(folder, args.name, args.role)


def _list(args: argparse.Namespace) -> str:
    require_private(args.folder)
    keys = KeyFolder(args.folder)
    rows = []
    for kind, name in keys.owners():
        try:
            public = keys.public(kind, name)
        except ValueError:
            rows.append((kind, name, "unreadable", "-", "-"))
            continue
        left_s = public.previous_until - time.time()
        rows.append(
            (
                kind,
                name,
                public.current[:8],
                "here" if keys.secret_path(kind, name).is_file() else "elsewhere",
                f"for {left_s:.0f} s" if left_s > 0 else "-",
            )
        )
    rows += [
        (f"bearer {key.role}", name, "-", "-", "-") for name, key in read_keys(args.folder).items()
    ]
    return "\n".join(
        format_table(("kind", "name", "public key", "secret key", "previous accepted"), rows)
    )
