"""`headstart ui`: its addresses, and what somebody sees there in a browser."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
import recorded
from conftest import ROOT, free_port, wait_for
from test_registry import _light as _light  # fixtures
from test_tracking import here as here

from headstart.errors import UserError
from headstart.tracking import store, ui
from headstart.tracking.rebuild import rebuild

PATIENCE = 120_000  # milliseconds: the server shares the machine with the other tests


def test_the_ui_stays_on_localhost_and_names_its_page(here, monkeypatch, capsys):
    commands = []

    class Server:
        wait = terminate = staticmethod(lambda: 0)

    monkeypatch.setattr(ui.signal, "signal", lambda *_: None)
    monkeypatch.setattr(ui.subprocess, "Popen", lambda command, **_: commands.append(command) or Server)
    assert ui.ui(5001) == 0
    assert "Open http://127.0.0.1:5001/#/experiments/1/runs?workflowType=machine_learning" in capsys.readouterr().out
    (command,) = commands
    options = dict(zip(command[4::2], command[5::2], strict=True))
    host, port, uri = options["--host"], options["--port"], options["--backend-store-uri"]
    assert (host, port, uri) == ("127.0.0.1", "5001", f"sqlite:///{here}/mlflow.db")

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match=r"port \d+ is already in use; choose another: headstart ui --port"):
            ui.ui(taken.getsockname()[1])

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking.example.org")
    assert ui.ui(5001) == 0
    assert "http://tracking.example.org: open it" in capsys.readouterr().out
    assert len(commands) == 1


def test_a_store_that_another_process_holds_is_one_message(here, monkeypatch):
    monkeypatch.setattr(store.connected.__wrapped__, "__defaults__", (0.1,))  # seconds
    with store.connected(), pytest.raises(UserError, match=r"mlflow\.db: .*; run `headstart ui` again later"):
        ui.ui(free_port())


def test_a_damaged_store_is_one_message(here):
    for stage in recorded.STAGES:
        recorded.leave(stage)
    recorded.lock()
    (here / "mlflow.db").write_text("no database" * 1000)
    for command in (lambda: ui.ui(free_port()), rebuild):
        with pytest.raises(UserError, match=r"^mlflow\.db: cannot be read .*move it away, then run `headstart track`"):
            command()


@pytest.fixture
def pages(here) -> Iterator[list[str]]:
    """The addresses that the command prints, of a store with two experiments; it runs until the test ends.

    The second is better on the test split, the first on the validation split.
    """
    for number, (name, wrong, val_loss) in enumerate([("first", 10, 0.2), ("second", 0, 0.3)]):
        results = {"wrong": wrong, "val_loss": val_loss}
        recorded.experiment(name, results=results, **{"train_head.dropout": number / 10})
    rebuild()
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-c", f"import sys; from headstart.tracking.ui import ui; sys.exit(ui({port}))"],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        printed = [process.stdout.readline() for _ in range(2)]
        wait_for(f"http://127.0.0.1:{port}/health", process)
        yield [re.search(r"http\S+", line).group() for line in printed]
    finally:
        process.terminate()
        assert process.wait(30) == 128 + 15
        for _ in range(150):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)):
                    break
            time.sleep(0.2)
        else:
            raise AssertionError("the server outlives the command that started it")


@pytest.mark.slow
def test_a_browser_shows_experiments_stages_charts_and_the_champion(pages, browser):
    from playwright.sync_api import expect

    expect.set_options(timeout=PATIENCE)
    every, best_first = pages

    def new_tab():
        """With nothing remembered: MLflow may prefer the columns of the last visit to those of a view."""
        tab = browser.new_page(viewport={"width": 2600, "height": 1000})
        tab.set_default_timeout(PATIENCE)
        return tab

    tab = new_tab()
    tab.goto(every)
    grid = tab.get_by_role("treegrid").or_(tab.get_by_role("grid")).first
    expect(grid.get_by_text("second", exact=True)).to_be_visible()
    expect(grid.get_by_text("evaluate", exact=True)).to_have_count(0)  # stages are folded away
    tab.locator('[role="row"]').filter(has_text="second").locator('[col-id="attributes.`Run Name`"] button').click()
    for stage in ("train_head", "fine_tune", "evaluate"):
        expect(grid.get_by_text(stage, exact=True)).to_have_count(1)

    tab = new_tab()
    tab.goto(best_first)
    grid = tab.get_by_role("treegrid").or_(tab.get_by_role("grid")).first
    expect(grid.get_by_text("1", exact=True).first).to_be_visible()
    names = tab.locator('[role="row"] a').filter(has_text=re.compile("^(first|second|evaluate)$"))
    assert names.all_inner_texts() == ["first", "second"]
    for text in ("accuracy", "backbone", "0.75", "headstart 2"):
        expect(grid.get_by_text(text, exact=True).first).to_be_visible()

    tab.goto(f"{every}&compareRunsMode=CHART")
    tab.reload()
    tab.get_by_placeholder("Search metric charts").fill("train_head/epoch")
    chart = tab.get_by_test_id("experiment-view-compare-runs-card").filter(has_text="train_head/epoch/val_loss")
    for name in ("first", "second"):
        expect(chart.get_by_text(name)).to_be_visible()

    tab.goto(f"{every.split('#')[0]}#/models/headstart")
    row = tab.get_by_role("row").filter(has_text="Version 2")
    expect(row.get_by_text("@ champion")).to_be_visible()
