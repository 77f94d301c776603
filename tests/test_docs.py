"""What README.md and docs/ name is there: commands, params, files, pages, pictures."""

from __future__ import annotations

import re
import shlex

import pytest
from conftest import ROOT

from headstart.cli import make_parser
from headstart.config import load_params

PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "data/README.md", *(ROOT / "docs").glob("*.md")])
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
FOLDERS = ("headstart", "pipeline", "benchmarks", "tests", "docs", "pretraining")


def commands(text: str, program: str) -> list[str]:
    """The commands of `program` in a page, indented ones and those in backticks, without prompt and comment."""
    lines = [line.strip().removeprefix("$ ") for line in text.replace("\\\n", " ").splitlines() if line[:4] == "    "]
    quoted = re.findall(r"`([^`\n]+)`", text)
    parts = [part.strip() for line in lines + quoted for part in re.split(r"&&|\||  #", line)]
    return [part for part in parts if re.match(rf"{program} [a-z]", part)]


@pytest.mark.parametrize("page", TEXTS)
def test_commands_exist(page):
    parser = make_parser()
    known = {name for action in parser._actions if isinstance(action.choices, dict) for name in action.choices}
    for line in commands(TEXTS[page], "headstart"):
        if "..." in line or "[" in line or len(line.split()) == 2:  # a synopsis, or a mention
            assert line.split()[1] in known, line
            continue
        try:
            parser.parse_args(shlex.split(line.replace(" N", " 1").replace(" DAYS", " 1"))[1:])
        except SystemExit:
            pytest.fail(f"{page}: {line}")


@pytest.mark.parametrize("page", TEXTS)
def test_make_targets_exist(page):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert {line.split()[1] for line in commands(TEXTS[page], "make")} <= targets


@pytest.mark.parametrize("page", TEXTS)
def test_params_exist(page):
    params = load_params(ROOT / "params.yaml").leaves()
    named = re.findall(r"-S '?\"?\+?([a-z_.]+)=", TEXTS[page])
    assert {name.replace("train_head.search.", "train_head.") for name in named} <= set(params)
    sections = {name.split(".")[0] for name in params if "." in name}
    keys = re.findall(rf"`((?:{'|'.join(sections)})\.[a-z_]+)[`:=]", TEXTS[page])
    assert {key for key in keys if not key.endswith((".py", ".json", ".csv"))} <= set(params)


@pytest.mark.parametrize("page", TEXTS)
def test_files_and_links_exist(page):
    named = re.findall(rf"(?<![\w/.])((?:{'|'.join(FOLDERS)})/[\w/.-]+\w)", TEXTS[page])
    folder = (ROOT / page).parent
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)#][^)]*)\)", TEXTS[page]) if "://" not in link]
    missing = [name for name in named if not (ROOT / name).exists() and "NAME" not in name]
    assert not missing + [link for link in links if not (folder / link).exists()]


def test_every_page_is_linked_and_every_picture_shown():
    texts = "".join(TEXTS.values()) + (ROOT / "pretraining/README.md").read_text(encoding="utf-8")
    assert not [file.name for file in (ROOT / "docs").iterdir() if f"{file.name})" not in texts]


def test_the_readme_is_short():
    assert TEXTS["README.md"].count("\n") <= 200
