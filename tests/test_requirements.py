"""pyproject.toml names what is imported; its bounds, which exclude versions with known holes, hold in the locks."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys

from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def test_every_package_that_is_imported_is_named():
    """Else it would be missing if another package stopped bringing it along."""
    text = (ROOT / "pyproject.toml").read_text().partition("[dependency-groups]")[0]
    named = {canonicalize_name(name) for name in re.findall(r'"([\w.-]+)(?:\[\w+\])?(?:[<>=!][^"]*)?"', text)}
    distributions = importlib.metadata.packages_distributions()
    missing = {}
    for file in [*ROOT.glob("headstart/**/*.py"), *ROOT.glob("pipeline/*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            for module in {name.split(".")[0] for name in names} - {"headstart", "pipeline", *sys.stdlib_module_names}:
                packages = {canonicalize_name(name) for name in distributions.get(module, [module])}
                if not packages & named:
                    missing[module] = file.relative_to(ROOT).as_posix()
    assert missing == {}


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
