"""The lower bounds of pyproject.toml, which exclude versions with known holes, hold in requirements.lock."""

from __future__ import annotations

import re

from conftest import ROOT
from packaging.requirements import Requirement


def test_every_locked_version_is_within_its_bounds():
    pinned: dict[str, set[str]] = {}
    for name, version in re.findall(r"(?m)^([\w.-]+)==(\S+)", (ROOT / "requirements.lock").read_text()):
        pinned.setdefault(name, set()).add(version)
    text = (ROOT / "pyproject.toml").read_text()
    wanted = [Requirement(line) for line in re.findall(r'"([\w.-]+(?:\[\w+\])?[<>=!][^"]+)"', text)]
    assert len(wanted) > 40
    for requirement in wanted:
        for version in pinned.get(requirement.name, ()):
            assert requirement.specifier.contains(version), f"{requirement}, but {version} is locked; run `make lock`"
