"""The lower bounds of pyproject.toml, which exclude versions with known holes, hold in the locks."""

from __future__ import annotations

import re

from conftest import ROOT
from packaging.requirements import Requirement


def read_lock(name: str) -> dict[str, set[str]]:
    """The versions of each package, of which there are several if Python's version decides."""
    pinned: dict[str, set[str]] = {}
    for package, version in re.findall(r"(?m)^([\w.-]+)==(\S+)", (ROOT / name).read_text()):
        pinned.setdefault(package, set()).add(version)
    return pinned


def test_an_extra_changes_no_version_of_the_lock():
    pinned, extra = read_lock("requirements.lock"), read_lock("requirements-jax.lock")
    assert "jax" in extra.keys() - pinned.keys()
    assert all(versions == pinned[name] for name, versions in extra.items() if name in pinned)


def test_every_locked_version_is_within_its_bounds():
    pinned = read_lock("requirements.lock") | read_lock("requirements-jax.lock")
    text = (ROOT / "pyproject.toml").read_text()
    wanted = [Requirement(line) for line in re.findall(r'"([\w.-]+(?:\[\w+\])?[<>=!][^"]+)"', text)]
    assert len(wanted) > 40
    for requirement in wanted:
        for version in pinned.get(requirement.name, ()):
            assert requirement.specifier.contains(version), f"{requirement}, but {version} is locked; run `make lock`"
