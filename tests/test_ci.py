"""The workflows are valid, what they call exists, and a pull request gets one comment."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from headstart import cli

WORKFLOW = ROOT / ".github/workflows/ci.yml"
WORKFLOWS = sorted(WORKFLOW.parent.glob("*.yml"))
JOBS = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))["jobs"]
GITLAB = re.search(r"```yaml\n(.*?)```", (ROOT / "docs/ci.md").read_text(encoding="utf-8"), re.DOTALL).group(1)


def scripts() -> list[str]:
    """Every script of the workflows, and the lines of GitLab's."""
    workflows = [yaml.safe_load(file.read_text(encoding="utf-8")) for file in WORKFLOWS]
    found = [
        step["run"]
        for workflow in workflows
        for job in workflow["jobs"].values()
        for step in job["steps"]
        if "run" in step
    ]
    jobs = [job for job in yaml.safe_load(GITLAB).values() if isinstance(job, dict)]
    return found + ["\n".join(lines) for job in jobs for lines in (job.get("script", []), job.get("before_script", []))]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda file: file.stem)
def test_actions_are_pinned_by_commit(workflow):
    """A tag can be moved to other code; what runs with the secrets of a project may not change by itself."""
    uses = re.findall(r"uses: (\S+)(.*)", workflow.read_text(encoding="utf-8"))
    assert uses
    for action, comment in uses:
        assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v[\d.]+", action + comment)


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda file: file.stem)
@pytest.mark.parametrize("kind", ["vendor.github-workflows", "custom.github-workflows-require-timeout"])
def test_the_workflows_are_valid(kind, workflow):
    validate(kind, workflow)


def test_the_file_for_gitlab_is_valid(tmp_path):
    (tmp_path / ".gitlab-ci.yml").write_text(GITLAB)
    validate("vendor.gitlab-ci", tmp_path / ".gitlab-ci.yml")


def validate(kind: str, file: Path) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", kind, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("code", [0, 1])
def test_what_the_gate_prints_stays_code_in_the_summary(tmp_path, code):
    """The names of classes come from the pull request."""
    (script,) = [step["run"] for step in JOBS["pipeline"]["steps"] if step.get("name") == "the gate"]
    said = "ok  min_recall  ``` <img src=x>\n```\n# x\n\n- [x](y)\n"
    for name, lines in (("headstart", f"cat <<'EOF'\n{said}EOF\nexit {code}"), ("dvc", "echo store")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{lines}\n")
        (tmp_path / name).chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "BASE": "main", "GITHUB_STEP_SUMMARY": "summary.md"}
    command = ["bash", "-e", "-o", "pipefail", "-c", script]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (code, said)
    heading, empty, *lines = (tmp_path / "summary.md").read_text().splitlines()
    assert (heading, empty) == ("### The gate", "")
    assert [line.removeprefix("    ") for line in lines] == said.splitlines()
    assert all(line.startswith("    ") for line in lines)


def targets() -> set[str]:
    return set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_every_command_exists():
    everything = "\n".join(scripts()).replace("\\\n", " ")
    for script in scripts():
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    assert set(re.findall(r"\bmake ([\w-]+)", everything)) <= targets()
    for command in set(re.findall(r"\bdvc (\w+)", everything)) - {"pull"} | {"pull --run-cache --allow-missing"}:
        subprocess.run(f"{Path(sys.executable).parent / 'dvc'} {command} --help", shell=True, check=True)
    calls = re.findall(r"\bheadstart ((?:review|gate)[^\n;>]*)", everything)
    assert {call.split()[0] for call in calls} == {"review", "gate"}
    assert len(calls) == 4
    for call in calls:
        cli.make_parser().parse_args(shlex.split(call.replace('${BASE:+"$BASE"}', '"$BASE"')))  # else it exits


def test_the_makefile_calls_commands_that_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    calls = re.findall(r"^\theadstart (.*)$", re.sub(r"\$\(or \$\(PORT\),(\d+)\)", r"\1", makefile), re.MULTILINE)
    assert {call.split()[0] for call in calls} == {"check", "track", "report", "leaderboard", "ui", "serve"}
    for call in calls:
        cli.make_parser().parse_args(shlex.split(call))
    for name in ("repro", "sweep", "test", "test-all", "lint", "ui", "serve", "setup", "lock"):
        assert name in targets()


def test_the_hooks_of_pre_commit_are_the_checks_of_make_lint():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    entries = {" ".join(hook["entry"].removeprefix(".venv/bin/").split()[:2]) for hook in hooks}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(re.search(rf"^\t{entry}\b", makefile, re.MULTILINE) for entry in entries)
    assert {hook["id"] for hook in hooks} == {"ruff", "ruff-format", "mypy"}


def test_only_the_job_that_runs_nothing_of_a_pull_request_may_write():
    workflow = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    assert "pull_request_target" not in WORKFLOW.read_text()
    writing = {name for name, job in JOBS.items() if "write" in str(job.get("permissions", ""))}
    assert writing == {"comment"}
    assert JOBS["comment"]["permissions"] == {"pull-requests": "write"}
    assert not any("checkout" in step.get("uses", "") for step in JOBS["comment"]["steps"])
    assert "secrets." not in str(JOBS["comment"])
    # What a stranger chooses reaches a script as a variable, never as its text.
    assert not any("${{" in script for script in scripts())


@pytest.mark.parametrize("old", ["", "https://api.example.org/comments/7"])
def test_a_pull_request_has_one_comment_that_is_renewed(tmp_path, old):
    script = JOBS["comment"]["steps"][-1]["run"]
    (tmp_path / "report.md").write_text("<!-- headstart -->\nnew")
    gh = tmp_path / "gh"
    gh.write_text(f'#!/bin/sh\necho "$*" >> calls.txt\ncase "$*" in *--paginate*) echo {old};; esac\n')
    gh.chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "COMMENTS": "repos/me/it/issues/3/comments"}
    subprocess.run(["bash", "-e", "-o", "pipefail", "-c", script], cwd=tmp_path, env=env, check=True)
    asked, written = (tmp_path / "calls.txt").read_text().splitlines()
    assert asked.startswith("api --paginate repos/me/it/issues/3/comments")
    method, where = ("PATCH", old) if old else ("POST", "repos/me/it/issues/3/comments")
    assert written == f"api --method {method} {where} --field body=@report.md --silent"
