"""Which version runs, as the installed distribution says."""

import importlib.metadata

UNKNOWN = "unknown"


def installed_version() -> str:
    """Of `tandem-serve`; `unknown` in a checkout that is not installed."""
    try:
        return importlib.metadata.version("tandem-serve")
    except importlib.metadata.PackageNotFoundError:
        return UNKNOWN
