"""That the installed packages suit us: docs/decisions/0002-the-name-kernels.md is the reason."""

import importlib
import importlib.metadata
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

import kernels
from tandem import __doc__ as tandem_doc

ROOT = Path(__file__).resolve().parents[1]


def settings() -> dict[str, dict[str, object]]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_no_other_distribution_called_kernels_is_installed() -> None:
    installed = {
        (dist.metadata["Name"] or "").lower() for dist in importlib.metadata.distributions()
    }
    assert "kernels" not in installed, "`pip uninstall kernels`: it shadows our folder of that name"


def test_our_folders_win_over_any_other() -> None:
    assert kernels.__file__ is not None
    assert Path(kernels.__file__).resolve() == ROOT / "kernels" / "__init__.py"
    assert tandem_doc is not None


def test_transformers_does_not_take_our_kernels_for_the_other_one() -> None:
    import_utils = importlib.import_module("transformers.utils.import_utils")
    assert not import_utils.is_kernels_available()
    assert not hasattr(kernels, "__version__")


def test_version_is_below_every_window_in_which_transformers_would_use_our_kernels() -> None:
    project = settings()["project"]
    assert Version(str(project["version"])) < Version("0.10")


def test_installed_versions_are_within_the_declared_ranges() -> None:
    project = settings()["project"]
    extras = project["optional-dependencies"]
    assert isinstance(extras, dict)
    dependencies = project["dependencies"]
    assert isinstance(dependencies, list)
    wrong = []
    for line in [*dependencies, *extras["test"]]:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        version = importlib.metadata.version(requirement.name)
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} {version} is not {requirement.specifier}")
    assert not wrong, "\n".join(wrong)


def test_constraints_pin_every_direct_dependency() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {r.name: r for r in map(Requirement, (x for x in lines if x and x[0] != "#"))}
    project = settings()["project"]
    extras = project["optional-dependencies"]
    dependencies = project["dependencies"]
    assert isinstance(extras, dict)
    assert isinstance(dependencies, list)
    for line in [*dependencies, *extras["test"]]:
        requirement = Requirement(line)
        assert requirement.name in pins, f"constraints.txt lacks {requirement.name}"
        for pin in pins[requirement.name].specifier:
            if pin.operator == "==":
                assert requirement.specifier.contains(pin.version), f"{line} excludes {pin}"
    assert str(pins["kernels"].specifier) == "<0"
