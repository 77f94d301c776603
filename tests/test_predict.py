"""Naming new images: where they come from, how the answers are written, which are flagged."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import fsspec
import numpy as np
import pytest
from conftest import ROOT, SMALL, paint, write_params
from test_export import CLASSES, shipped  # noqa: F401  a fixture
from test_remote import serve

from headstart.errors import ItemError, UserError
from headstart.modalities.image.pixels import load
from headstart.serving import inputs, ood, predict
from headstart.training import networks


@pytest.fixture
def here(shipped, tmp_path, photos, monkeypatch) -> Path:  # noqa: F811
    """A folder with a model and four photos a class, without anything that unlike.py makes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    shutil.copy(shipped, tmp_path / "models")
    photos(count=4)
    return tmp_path


def rows(capsys, *arguments: str, code: int = 0) -> list[dict]:
    assert predict.main([*arguments, "--format", "json"]) == code
    return json.loads(capsys.readouterr().out)


def stdin(monkeypatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode("utf-8", "surrogateescape"))))


def test_files_folders_patterns_and_lists(here, capsys, monkeypatch):
    paint(here / "photos/red/odd[1].png", (200, 40, 40), 9)
    (here / "photos/red/notes.txt").write_text("no image")
    reds = [f"photos/red/{name}.png" for name in ("000", "001", "002", "003", "odd[1]")]
    for arguments, expected in [
        (["photos/red/000.png"], reds[:1]),
        (["photos/red"], reds),
        (["photos/red/*"], reds),
        (["photos/**/00[01].png"], [f"photos/{c}/00{n}.png" for c in ("blue", "green", "red") for n in (0, 1)]),
        (["photos/red/odd[1].png", "photos/red/000.png"], [reds[-1], reds[0]]),
    ]:
        assert [row["path"] for row in rows(capsys, *arguments)] == expected
    stdin(monkeypatch, "photos/red/003.png\n\nphotos/red/odd[1].png\nphotos/blue\n")
    listed = [row["path"] for row in rows(capsys, "photos/red/000.png", "-")]
    assert listed == [reds[0], reds[3], reds[4], *(f"photos/blue/00{n}.png" for n in range(4))]


def test_answers_are_those_of_the_model(here, capsys):
    files = sorted((here / "photos").rglob("*.png"))
    model, _ = networks.load(here / "models/model.keras")
    expected = networks.predict(model, np.stack([load(file, 32) for file in files]), 32)
    found = rows(capsys, "photos")
    assert len(found) == 12
    for row, probabilities in zip(found, expected, strict=True):
        assert list(row["probabilities"].values()) == pytest.approx(list(probabilities), abs=2e-6)
        assert row["label"] == CLASSES[probabilities.argmax()]
        assert "unlike" not in row


def test_a_list_names_what_is_gone_and_goes_on(here, capsys, monkeypatch):
    stdin(monkeypatch, "photos/red/003.png\nphotos/red/gone.png\nphotos/red/000.png\n")
    assert predict.main(["-"]) == 1
    printed = capsys.readouterr()
    assert [line.split()[-1] for line in printed.out.splitlines()] == ["photos/red/003.png", "photos/red/000.png"]
    assert "photos/red/gone.png: no such file" in printed.err


def test_a_list_goes_on_after_what_is_no_file(here, capsys, monkeypatch):
    os.mkfifo(here / "photos/red/pipe.png")  # to open it would wait for ever
    (here / "empty").mkdir()
    stdin(monkeypatch, "empty\nphotos/red\nphotos/red/000.png\n./photos/red/001.png\n")
    assert predict.main(["-", "photos/red/003.png"]) == 1
    printed = capsys.readouterr()
    assert [line.split()[-1] for line in printed.out.splitlines()] == [f"photos/red/00{n}.png" for n in range(4)]
    assert "photos/red/pipe.png: not a file" in printed.err
    assert "empty: no image in this folder" in printed.err


def test_a_line_feed_alone_divides_names(here, capsys, monkeypatch):
    odd = "photos/red/a\x0bb\u2028c.png"
    paint(here / odd, (200, 40, 40), 9)
    stdin(monkeypatch, f"{odd}\r\nphotos/red/000.png\r\n")
    assert [row["path"] for row in rows(capsys, "-")] == [odd, "photos/red/000.png"]
    stdin(monkeypatch, "photos/red/000.png\0photos/red/001.png\0")
    assert predict.main(["-"]) == 1
    assert "standard input: a NUL among the names; give one a line: find without -print0" in capsys.readouterr().err


def test_names_do_not_steer_the_terminal(here, capsys):
    paint(here / "photos/odd/a\n\x1b[31mé\u202e b.png", (200, 40, 40), 9)
    (here / "photos/odd/\x1b[2J.png").write_text("no image")
    assert predict.main(["photos/odd"]) == 1
    printed = capsys.readouterr()
    assert printed.out.endswith("photos/odd/a\\n\\x1b[31mé\\u202e b.png\n")
    assert len(printed.out.splitlines()) == 1
    assert "photos/odd/\\x1b[2J.png: not an image" in printed.err


def test_csv_and_json_and_text_say_the_same(here, capsys):
    paint(here / 'photos/red/a "b",c.png', (200, 40, 40), 5)
    found = rows(capsys, "photos/red")
    assert predict.main(["photos/red", "--format", "csv"]) == 0
    table = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert list(table[0]) == ["path", "label", "probability", "distance", "unlike", *(f"p_{c}" for c in CLASSES)]
    assert [row["path"] for row in table] == [row["path"] for row in found]
    for row, other in zip(table, found, strict=True):
        assert float(row["probability"]) == other["probability"]
        assert {name: float(row[f"p_{name}"]) for name in CLASSES} == other["probabilities"]
        assert row["unlike"] == row["distance"] == ""
    assert predict.main(["photos/red"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(maxsplit=2)[2] for line in lines] == [row["path"] for row in found]


def test_a_file_is_written_whole_or_not_at_all(here, capsys):
    assert predict.main(["photos/red", "--format", "csv", "--output", "found/all.csv"]) == 0
    assert capsys.readouterr().out == ""
    before = (here / "found/all.csv").read_bytes()
    assert len(before.splitlines()) == 5
    assert predict.main(["photos/red", "--output", "found/all.csv", "--model", "nowhere.keras"]) == 1
    assert predict.main(["photos/red", "--output", "photos"]) == 1
    assert "photos: cannot be written" in capsys.readouterr().err
    assert [file.name for file in (here / "found").iterdir()] == ["all.csv"]
    assert (here / "found/all.csv").read_bytes() == before


def run_apart(here: Path, stdout) -> subprocess.Popen:
    """The command in a process of its own."""
    model = str(here / "models/model.keras")
    command = [sys.executable, "-m", "headstart.serving.predict", str(here / "photos"), "--model", model]
    # This process has told TensorFlow already what to log; that one shall do it itself.
    env = {name: value for name, value in os.environ.items() if not name.startswith("TF_")}
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=stdout, stderr=subprocess.PIPE, text=True)


def test_a_reader_that_has_seen_enough_ends_it_quietly(here):
    process = run_apart(here, subprocess.PIPE)
    process.stdout.close()
    errors = process.stderr.read()
    assert process.wait() == 0
    assert [line for line in errors.splitlines() if "are not flagged" not in line] == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_standard_output_is_told(here):
    with open("/dev/full", "w") as full:
        process = run_apart(here, full)
    errors = process.stderr.read()
    assert process.wait() == 1
    (line,) = [line for line in errors.splitlines() if "are not flagged" not in line]
    assert line.startswith("standard output: cannot be written: No space left on device")


def test_a_full_disk_is_told(here, capsys, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setitem(predict.FORMATS, "csv", full)
    assert predict.main(["photos/red", "--format", "csv", "--output", "found/all.csv"]) == 1
    assert "found/all.csv: cannot be written: No space left on device" in capsys.readouterr().err
    assert list((here / "found").iterdir()) == []


def test_addresses(here, capsys):
    with serve(here) as (address, _):
        memory = fsspec.filesystem("memory")
        memory.put(str(here / "photos/red/001.png"), "/somewhere/b.png")
        try:
            there = [f"{address}/photos/red/000.png", "memory://somewhere/b.png"]
            found = rows(capsys, *there, f"{address}/photos/gone.png", "memory://somewhere/gone.png", code=1)
            assert predict.main([*there, f"{address}/photos/", "nothing://x/y.png"]) == 1
            assert "nothing://x/y.png: " in capsys.readouterr().err
        finally:
            memory.rm("/somewhere", recursive=True)
    assert [row["path"] for row in found] == there
    here_too = rows(capsys, "photos/red/000.png", "photos/red/001.png")
    assert [row["probabilities"] for row in found] == [row["probabilities"] for row in here_too]


def test_what_is_wrong_with_an_address_is_told(here, monkeypatch):
    with serve(here) as (address, _):
        for name, reason in [
            (f"{address}/photos/gone.png", "no such file"),
            ("nothing://x/y.png", "give a path, or an s3://, gs:// or https:// address"),
            ("http://127.0.0.1:1/a.png", "Cannot connect to host"),
        ]:
            with pytest.raises(ItemError, match=reason):
                inputs.load_given(name, 32)
        with pytest.raises(ItemError, match="but HTML or XML"):
            inputs.load_given(f"{address}/photos/", 32)  # the server's list of files
        monkeypatch.setattr(inputs, "MAX_BYTES", 500)
        with pytest.raises(ItemError, match="larger than 0 MiB"):
            inputs.load_given(f"{address}/photos/red/000.png", 32)


def test_an_address_that_does_not_answer_is_given_up(monkeypatch):
    asked = threading.Event()
    monkeypatch.setattr(inputs, "SECONDS", 0.05)
    monkeypatch.setattr(inputs, "_fetch", lambda address: asked.wait(5))
    with pytest.raises(ItemError, match=r"not here within 0\.05 s"):
        inputs.fetch("https://example.org/a.png")
    asked.set()


@pytest.mark.parametrize(("status", "told"), [(404, "no such file"), (500, "the server answers with status 500")])
def test_the_status_of_a_server_is_told(status, told):
    class Refusing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(status)

        def do_HEAD(self) -> None:
            self.send_error(status)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(ItemError) as raised:
            inputs.fetch(f"http://127.0.0.1:{server.server_port}/a.png")
        server.shutdown()
    assert str(raised.value) == told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.jpg"], "nowhere.jpg does not exist; give images"),
        (["photos/*.webp"], "photos/*.webp: no image matches this pattern"),
        (["models"], "models: no image in this folder"),
        (["-"], "no image is named: standard input is empty"),
        (["photos", "--model", "photos/red/000.png"], "photos/red/000.png is not a model of this pipeline"),
    ],
)
def test_wrong_arguments(arguments, message, here, capsys, monkeypatch):
    stdin(monkeypatch, "\n")
    assert predict.main(arguments) == 1
    assert message in capsys.readouterr().err


# --- images unlike the training images


def cluster(count: int, seed: int, shift: float = 0.0) -> np.ndarray:
    """Features (count, 16) around one of two directions."""
    generator = np.random.default_rng(seed)
    centres = np.eye(16)[generator.integers(0, 2, count)] * 10
    return (centres + generator.normal(0, 1, (count, 16)) + shift).astype(np.float32)


def test_the_rate_of_false_alarms_is_that_which_is_asked_for():
    """Over many draws, of features that no direction of is special."""
    shares = []
    for seed in range(40):
        found = ood.fit(cluster(300, seed), cluster(398, 100 + seed), 0.1)
        shares.append(found.alarms / found.tested)
    assert np.mean(shares) == pytest.approx(0.1, abs=0.02)


def test_other_features_are_flagged_whatever_their_length():
    found = ood.fit(cluster(300, 0), cluster(198, 1), 0.05)
    other = np.random.default_rng(3).normal(0, 1, (50, 16)).astype(np.float32)
    for scale in (0.1, 1, 100):
        assert (found.distances(scale * other) > 1).mean() > 0.9
    same = cluster(50, 4)
    assert found.distances(5 * same) == pytest.approx(found.distances(same), abs=1e-3)


def test_too_few_images_for_the_rate_are_told():
    with pytest.raises(UserError, match=r"test has 37 images .* for a rate of 0\.05 test must have 38 or more"):
        ood.fit(cluster(50, 0), cluster(37, 1), 0.05)
    assert ood.fit(cluster(50, 0), cluster(38, 1), 0.05).limit > 0


def test_what_sets_a_limit_does_not_count_its_alarms():
    near, far = cluster(50, 1), cluster(50, 2, shift=20)
    found = ood.fit(cluster(300, 0), np.concatenate([near, far]), 0.05)
    assert (found.alarms, found.tested) == (50, 100)
    assert (found.distances(far) > 1).sum() == 4  # the limit itself is that of all: the 96th of 100


@pytest.fixture
def learnt(here, photos, capsys) -> Path:
    """The folder after `python -m headstart.serving.ood`."""
    from headstart.config import load_params
    from headstart.outputs import Outputs
    from pipeline import prepare

    photos(count=40)
    write_params(here / "params.yaml", **{**SMALL, "data.source": "photos"})
    outputs = Outputs()
    prepare.main(load_params(), outputs)
    outputs.commit()
    capsys.readouterr()
    assert ood.main(["--rate", "0.1"]) == 0
    return here


def test_images_unlike_the_training_images_are_flagged(learnt, capsys):
    told = capsys.readouterr().out
    kept = ood.load(Path("models/model.keras"))
    assert f"{kept.alarms} of {kept.tested} test images are flagged, {kept.alarms / kept.tested:.1%}" in told
    paint(learnt / "odd/grey.png", (200, 200, 0), 0)  # no stripes of this colour were there
    seen, odd = rows(capsys, "photos"), rows(capsys, "odd")
    assert np.mean([row["unlike"] for row in seen]) < 0.2
    assert [row["unlike"] for row in odd] == [True]
    assert odd[0]["distance"] > 1 >= min(row["distance"] for row in seen)

    plain = learnt / "plain"
    plain.mkdir()
    shutil.copy("models/model.keras", plain)
    alone = rows(capsys, "odd", "--model", "plain/model.keras")
    assert alone[0]["probabilities"] == pytest.approx(odd[0]["probabilities"], abs=2e-6)

    assert predict.main(["odd", "photos/red/000.png"]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[0].endswith("odd/grey.png  unlike the training images")
    assert printed.out.splitlines()[1].endswith("000.png")
    assert "predict: 1 of 2 images are unlike the training images: their labels may mean nothing" in printed.err
    assert f"of the test split {kept.alarms / kept.tested:.1%} are flagged" in printed.err
    assert predict.main(["odd", "--format", "csv"]) == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert row["unlike"] == "true"
    assert float(row["distance"]) == odd[0]["distance"]


def test_without_it_or_for_another_model_nothing_is_flagged_and_that_is_told(learnt, capsys):
    file = learnt / "models/model.unlike.npz"
    for spoil, message in [
        (lambda: networks.save(networks.load(learnt / "models/model.keras")[0], learnt / "models/model.keras", "abc"),
         "is of another model; run `python -m headstart.serving.ood`"),
        (lambda: file.write_bytes(b"text"), "cannot be read"),
        (file.unlink, "does not exist; run `python -m headstart.serving.ood`"),
    ]:  # fmt: skip
        spoil()
        assert predict.main(["photos/red/000.png"]) == 0
        printed = capsys.readouterr()
        assert printed.out.endswith("photos/red/000.png\n")
        assert message in printed.err


def test_learning_says_what_is_missing(here, capsys):
    assert ood.main([]) == 1
    assert "data/prepared/manifest.parquet does not exist; run `dvc repro`" in capsys.readouterr().err
    assert ood.main(["--rate", "1.5"]) == 1
    assert "--rate must be in (0, 1), got 1.5" in capsys.readouterr().err
