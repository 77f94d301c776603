"""The workflow is valid, what it calls exists, and a pull request gets one comment."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

WORKFLOW = ROOT / ".github/workflows/ci.yml"
JOBS = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))["jobs"]
GITLAB = re.search(r"```yaml\n(.*?)```", (ROOT / "docs/ci.md").read_text(encoding="utf-8"), re.DOTALL).group(1)


def scripts() -> list[str]:
    """Every script of the workflow, and the lines of GitLab's."""
    found = [step["run"] for job in JOBS.values() for step in job["steps"] if "run" in step]
    jobs = [job for job in yaml.safe_load(GITLAB).values() if isinstance(job, dict)]
    return found + ["\n".join(lines) for job in jobs for lines in (job.get("script", []), job.get("before_script", []))]


@pytest.mark.parametrize("kind", ["vendor.github-workflows", "custom.github-workflows-require-timeout"])
def test_the_workflow_is_valid(kind):
    check(kind, WORKFLOW)


def test_the_file_for_gitlab_is_valid(tmp_path):
    (tmp_path / ".gitlab-ci.yml").write_text(GITLAB)
    check("vendor.gitlab-ci", tmp_path / ".gitlab-ci.yml")


def check(kind: str, file: Path) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", kind, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_command_exists():
    everything = "\n".join(scripts())
    for script in scripts():
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake (\w+)", everything)) <= targets
    for command in set(re.findall(r"\bdvc (\w+)", everything)) - {"pull"} | {"pull --run-cache --allow-missing"}:
        subprocess.run(f"{Path(sys.executable).parent / 'dvc'} {command} --help", shell=True, check=True)
    calls = re.findall(r"python -m (pipeline\.\w+)((?:[^\n\\;]|\\\n)*)", everything)
    assert {module for module, _ in calls} == {"headstart.evaluation.review", "headstart.evaluation.gate"}
    for module, arguments in calls:
        usage = subprocess.run([sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True)
        assert usage.returncode == 0
        assert all(option in usage.stdout for option in re.findall(r"--\w+", arguments))


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
