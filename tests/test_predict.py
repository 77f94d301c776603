"""Predictions for new images: where they come from, how they are written, which are flagged."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import fsspec
import numpy as np
import pytest
import yaml
from conftest import ROOT, SHIPPED_CLASSES, SMALL, paint, run_stages, write_params
from test_remote import serve

from headstart import lockfile
from headstart.data.layouts import list_items
from headstart.data.sources import open_source
from headstart.errors import ItemError, UserError
from headstart.modalities import get_modality
from headstart.outputs import spreadsheet_safe
from headstart.serving import export, inputs, ood, predict, server
from headstart.serving.model_file import read_model_info
from headstart.training import networks

IMAGE = get_modality("image")


@pytest.fixture
def here(shipped, tmp_path, photos, monkeypatch) -> Path:
    """The current folder, with a model without a detector, and four photos per class."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    (tmp_path / "models").mkdir()
    shutil.copy(shipped, tmp_path / "models")
    photos(count=4)
    return tmp_path


def rows(capsys, *names: str, code: int = 0, **options) -> list[dict]:
    assert predict.predict(names, "json", **options) == code
    return json.loads(capsys.readouterr().out)


def stdin(monkeypatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode("utf-8", "surrogateescape"))))


def record_model(content: bytes) -> None:
    """Write a dvc.lock after which models/model.keras has this content."""
    out = {"path": "models/model.keras", "md5": hashlib.md5(content).hexdigest(), "size": len(content)}
    Path("dvc.lock").write_text(yaml.safe_dump({"stages": {"fine_tune": {"cmd": "x", "outs": [out]}}}))


def use_model(command: str, model: Path) -> None:
    """Call what `headstart COMMAND` does, up to the work."""
    if command == "predict":
        predict.predict(["photos/red/000.png"], model=model)
    elif command == "export":
        export.export("saved_model", Path("out"), model)
    elif command == "ood":
        with pytest.raises(UserError, match="does not exist; run `dvc repro`"):
            ood.fit_ood(model=model)
    else:
        with pytest.raises(UserError, match="cannot bind"):
            server.serve(host="nowhere.invalid", model=model)


@pytest.mark.parametrize("command", ["predict", "export", "ood", "serve"])
def test_a_model_that_dvc_lock_does_not_record_is_reported(command, here, capsys, monkeypatch):
    """As after `git checkout .` without `dvc checkout`: models of one architecture even have the same size."""
    monkeypatch.setattr(export, "_export", lambda *arguments: None)
    monkeypatch.setattr(lockfile, "MAX_HASHED_BYTES", 5)
    content = Path("models/model.keras").read_bytes()
    record_model(content[:-1] + b"x")
    warning = (
        f"{command}: warning: models/model.keras is not the model that dvc.lock records; to use that one, run `dvc "
        "checkout models/model.keras`, or `dvc repro` if that fails\n"
    )
    use_model(command, Path("models/model.keras"))
    assert warning in capsys.readouterr().err
    use_model(command, Path("models/model.keras").resolve())
    assert "is not the model that dvc.lock records" in capsys.readouterr().err

    record_model(content)
    use_model(command, Path("models/model.keras"))
    shutil.copytree("models", "mine")  # DVC knows nothing of it
    record_model(b"other")
    use_model(command, Path("mine/model.keras"))
    Path("dvc.lock").write_text("<<<<<<< HEAD")
    use_model(command, Path("models/model.keras"))
    assert "dvc.lock" not in capsys.readouterr().err


def test_files_folders_patterns_and_lists(here, monkeypatch):
    paint(here / "photos/red/odd[1].png", (200, 40, 40), 9)
    (here / "photos/red/notes.txt").write_text("no image")
    reds = [f"photos/red/{name}.png" for name in ("000", "001", "002", "003", "odd[1]")]
    for given, expected in [
        (["photos/red/000.png"], reds[:1]),
        (["photos/red"], reds),
        (["photos/red/*"], reds),
        (["photos/**/00[01].png"], [f"photos/{c}/00{n}.png" for c in ("blue", "green", "red") for n in (0, 1)]),
        (["photos/red/odd[1].png", "photos/red/000.png"], [reds[-1], reds[0]]),
    ]:
        assert inputs.find_inputs(given, IMAGE).names == expected
    stdin(monkeypatch, "photos/red/003.png\n\nphotos/red/odd[1].png\n./photos/red/000.png\nphotos/blue\n")
    listed = inputs.find_inputs(["photos/red/000.png", "-"], IMAGE).names
    assert listed == [reds[0], reds[3], reds[4], *(f"photos/blue/00{n}.png" for n in range(4))]


def test_a_folder_is_read_as_in_training(here, capsys, monkeypatch):
    """Whatever the suffix says: the same files are examples, and every other one is reported."""
    red = here / "photos/red"
    png = (red / "000.png").read_bytes()
    for name in ("wrong.txt", "none", "upper.PNG", "camera.nef", "photo.heic"):  # content decides
        (red / name).write_bytes(png)
    (red / "notes.txt").write_text("no image")
    (red / "raw.cr2").write_bytes(b"II*\0" + bytes(60))
    (red / ".hidden.png").write_bytes(png)
    (red / "README").write_text("no suffix: taken for an image")
    (red / "loop").symlink_to(red)
    os.mkfifo(red / "pipe")
    os.mkfifo(red / "pipe.log")
    found = inputs.find_inputs(["photos/red"], IMAGE)
    with open_source("photos") as opened:
        listing = list_items(opened, "photos", IMAGE)
    inside = [f"photos/{item.path}" for item in listing.items if item.label == "red"]
    assert found.names == inside
    assert {Path(name).name for name in inside} >= {"wrong.txt", "none", "upper.PNG", "camera.nef", "README"}
    assert [(f"photos/{path}", detail) for path, _, _, detail in listing.refused] == found.refused
    assert sorted((f"photos/{path}", reason) for path, reason in listing.ignored) == sorted(
        (name + "/" * name.endswith("loop"), reason) for name, reason in found.ignored
    )
    assert inputs.find_inputs(["photos/red/*"], IMAGE).names == inside  # patterns do not look at hidden files
    stdin(monkeypatch, "photos/red\n")
    assert inputs.find_inputs(["-"], IMAGE) == found

    assert predict.predict(["photos/red"], "csv") == 1
    printed = capsys.readouterr()
    answered = {row["path"] for row in csv.DictReader(io.StringIO(printed.out))}
    reported = {line.split(": ")[0] for line in printed.err.splitlines() if line.startswith("photos/")}
    assert answered | reported == {*inside, *(name for name, _ in found.refused)}
    assert "photos/red/raw.cr2: .cr2 files are not supported; convert them to JPEG or PNG\n" in printed.err
    assert "predict: 4 files are ignored (" in printed.err
    assert "1 not image data by its suffix (.txt) and content" in printed.err
    assert all(name in printed.err for name in ("notes.txt", ".hidden.png", "photos/red/loop", "pipe.log"))


def test_only_line_feeds_separate_names(here, monkeypatch):
    odd = "photos/red/a\x0bb\u2028c.png"
    stdin(monkeypatch, f"{odd}\r\nphotos/red/000.png\r\n")
    assert inputs.find_inputs(["-"], IMAGE).names == [odd, "photos/red/000.png"]
    stdin(monkeypatch, "photos/red/000.png\0photos/red/001.png\0")
    with pytest.raises(UserError, match=r"standard input: NUL between names; .* find without -print0"):
        inputs.find_inputs(["-"], IMAGE)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("nowhere.jpg", "nowhere.jpg does not exist; give files, folders"),
        ("photos/*.webp", "photos/*.webp: no image matches this pattern"),
        ("models", "models: no image in this folder"),
        ("raw", "no image in this folder (.avif, .bmp"),
        ("raw", "; 2 files there: .cr2 files are not supported; convert them"),
        ("raw/*", "raw/*: no image matches this pattern"),
        ("-", "nothing to predict: standard input is empty"),
    ],
)
def test_names_that_lead_nowhere(given, message, here, monkeypatch):
    for name in "ab":
        (here / "raw").mkdir(exist_ok=True)
        (here / f"raw/{name}.cr2").write_bytes(b"II*\0" + bytes(60))
    stdin(monkeypatch, "\n")
    with pytest.raises(UserError) as raised:
        inputs.find_inputs([given], IMAGE)
    assert message in str(raised.value)


def test_mistakes_are_reported_before_tensorflow_is_loaded(here):
    code = """
import sys
from pathlib import Path
from headstart.errors import UserError
from headstart.serving.predict import predict
for names, model in ((["nowhere.jpg"], "models/model.keras"), (["photos"], "nowhere.keras"), (["photos"], sys.argv[1])):
    try:
        predict(names, model=Path(model))
    except UserError as error:
        print(error)
print("tensorflow" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, "photos/red/000.png"], env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert [line.split(";")[0].split(" (")[0] for line in lines] == [
        "nowhere.jpg does not exist", "nowhere.keras does not exist",
        "photos/red/000.png is not a model of this pipeline", "False",
    ]  # fmt: skip


def test_a_damaged_model_is_named(here):
    """Whichever bytes of it are damaged: one message, or the answers of a model."""
    file, random = Path("models/model.keras"), np.random.default_rng(0)
    good = file.read_bytes()
    with zipfile.ZipFile(file) as archive:
        places = {entry.filename: entry.header_offset for entry in archive.infolist()}
    for name, content in (
        ("headstart.json", "[]"), ("headstart.json", '{"modality": "smell", "size": 32}'), ("headstart.json", "{"),
        ("headstart.json", '{"modality": ["image"], "size": "x"}'), ("classes.json", "5"), ("classes.json", "[" * 9**5),
    ):  # fmt: skip
        rewritten = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(good)) as old, zipfile.ZipFile(rewritten, "w") as new:
            for entry in old.infolist():
                new.writestr(entry.filename, content if entry.filename == name else old.read(entry))
        file.write_bytes(rewritten.getvalue())
        with pytest.raises(UserError, match=r"^models/model.keras is not a model of this pipeline"):
            read_model_info(file)
    for place in (*places.values(), *random.integers(0, len(good), 60)):
        for offset in (0, 6, 8, 26, 30, 60):
            damaged = bytearray(good)
            damaged[min(place + offset, len(good) - 1)] ^= random.integers(1, 256)
            file.write_bytes(damaged)
            with suppress(UserError):
                read_model_info(file)


def test_predictions_are_those_of_the_model(here, capsys):
    files = sorted((here / "photos").rglob("*.png"))
    classifier = networks.load_classifier(here / "models/model.keras")
    expected = classifier.predict(IMAGE.batch([IMAGE.load(file.read_bytes(), 32) for file in files]))
    found = rows(capsys, "photos")
    assert len(found) == 12
    for row, probabilities in zip(found, expected, strict=True):
        assert list(row["probabilities"].values()) == pytest.approx(list(probabilities), abs=2e-6)
        assert row["label"] == SHIPPED_CLASSES[probabilities.argmax()]
        assert "unlike" not in row


def test_what_cannot_be_read_is_reported_and_the_rest_is_predicted(here, capsys, monkeypatch):
    os.mkfifo(here / "photos/red/pipe.png")  # opening it would wait for ever
    (here / "empty").mkdir()
    stdin(monkeypatch, "empty\nphotos/red/gone.png\nphotos/red\n")
    assert predict.predict(["-", "photos/red/003.png"]) == 1
    printed = capsys.readouterr()
    assert [line.split()[-1] for line in printed.out.splitlines()] == [f"photos/red/00{n}.png" for n in range(4)]
    assert "photos/red/pipe.png: not a file" in printed.err
    assert "photos/red/gone.png: no such file" in printed.err
    assert "empty: no image in this folder" in printed.err


def test_names_do_not_steer_the_terminal(here, capsys):
    paint(here / "photos/odd/a\n\x1b[31mé\u202e b.png", (200, 40, 40), 9)
    (here / "photos/odd/\x1b[2J.png").write_text("no image")
    assert predict.predict(["photos/odd"]) == 1
    printed = capsys.readouterr()
    assert printed.out.endswith("photos/odd/a\\n\\x1b[31mé\\u202e b.png\n")
    assert len(printed.out.splitlines()) == 1
    assert "photos/odd/\\x1b[2J.png: not an image" in printed.err


def test_csv_and_json_and_text_agree(here, capsys):
    paint(here / 'photos/red/a "b",c.png', (200, 40, 40), 5)
    found = rows(capsys, "photos/red")
    assert predict.predict(["photos/red"], "csv") == 0
    table = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    expected = ["path", "label", "probability", "distance", "unlike", *(f"p_{name}" for name in SHIPPED_CLASSES)]
    assert list(table[0]) == expected
    assert [row["path"] for row in table] == [row["path"] for row in found]
    for row, other in zip(table, found, strict=True):
        assert float(row["probability"]) == other["probability"]
        assert {name: float(row[f"p_{name}"]) for name in SHIPPED_CLASSES} == other["probabilities"]
        assert row["unlike"] == row["distance"] == ""
    assert predict.predict(["photos/red"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(maxsplit=2)[2] for line in lines] == [row["path"] for row in found]


def test_a_spreadsheet_runs_no_name(here, capsys):
    (here / "=cmd").mkdir()
    paint(here / "=cmd/1.png", (200, 40, 40), 5)
    assert predict.predict(["=cmd"], "csv") == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert row["path"] == "'=cmd/1.png"
    assert [row["path"] for row in rows(capsys, "=cmd")] == ["=cmd/1.png"]
    for name in ("+a", "-1+1", "@x", "\t=1", "\r=1"):
        assert spreadsheet_safe(name) == f"'{name}"
    assert spreadsheet_safe("a=1") == "a=1"
    assert spreadsheet_safe("-1.5") == "-1.5"  # a number is no formula


def test_every_garbage_file_is_answered_or_reported(here, capsys):
    good = (here / "photos/red/000.png").read_bytes()
    random = np.random.default_rng(0)
    folder = here / "garbage"
    folder.mkdir()
    for number in range(60):
        data = bytearray(good)
        for place in random.integers(0, len(data), 8):
            data[place] = random.integers(256)
        (folder / f"flipped{number}.png").write_bytes(data)
        (folder / f"cut{number}.png").write_bytes(good[: number * len(good) // 60])
        (folder / f"random{number}.png").write_bytes(good[:number] + random.bytes(200))
    assert predict.predict(["garbage"]) == 1
    printed = capsys.readouterr()
    reported = [line for line in printed.err.splitlines() if line.startswith("garbage/")]
    assert len(reported) + len(printed.out.splitlines()) == 180


def test_a_file_is_written_whole_or_not_at_all(here, capsys, monkeypatch):
    output = Path("found/all.csv")
    assert predict.predict(["photos/red"], "csv", output) == 0
    assert capsys.readouterr().out == ""
    before = output.read_bytes()
    assert len(before.splitlines()) == 5
    with pytest.raises(UserError, match="photos: cannot be written"):
        predict.predict(["photos/red"], output=Path("photos"))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setitem(predict.FORMATS, "csv", full)
    with pytest.raises(UserError, match=r"found/all\.csv: cannot be written: No space left on device"):
        predict.predict(["photos/red"], "csv", output)
    assert list(output.parent.iterdir()) == [output]
    assert output.read_bytes() == before


def test_a_model_that_cannot_be_read_is_not_blamed_on_the_output(here, monkeypatch):
    def denied(_: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(networks, "load_classifier", denied)
    with pytest.raises(PermissionError):
        predict.predict(["photos"])


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_standard_output_is_reported(here, monkeypatch):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(UserError, match="standard output: cannot be written: No space left on device"):
            predict.predict(["photos"])
        full.flush()  # as Python does when it exits: it does not fail once more


def test_a_reader_that_has_seen_enough_ends_it(here, monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        with pytest.raises(BrokenPipeError):  # which the command takes for success
            predict.predict(["photos"])
        closed.flush()


def test_addresses(here, capsys):
    with serve(here) as (address, _):
        memory = fsspec.filesystem("memory")
        memory.put(str(here / "photos/red/001.png"), "/somewhere/b.png")
        try:
            there = [f"{address}/photos/red/000.png", "memory://somewhere/b.png"]
            gone = [f"{address}/photos/gone.png", "memory://somewhere/gone.png", "nothing://x/y.png"]
            found = rows(capsys, *there, *gone, code=1)
        finally:
            memory.rm("/somewhere", recursive=True)
    assert [row["path"] for row in found] == there
    local = rows(capsys, "photos/red/000.png", "photos/red/001.png")
    assert [row["probabilities"] for row in found] == [row["probabilities"] for row in local]


def test_what_is_wrong_with_an_address_is_reported(here, monkeypatch):
    with serve(here) as (address, _):
        for name, reason in [
            (f"{address}/photos/gone.png", "no such file"),
            ("nothing://x/y.png", "give a path, or an s3://, gs:// or https:// address"),
            ("http://127.0.0.1:1/a.png", "Cannot connect to host"),
        ]:
            with pytest.raises(ItemError, match=reason):
                inputs.fetch(name)
        with pytest.raises(ItemError, match="but HTML or XML"):
            IMAGE.load(inputs.fetch(f"{address}/photos/"), 32)  # the server's list of files
        monkeypatch.setattr(inputs, "MAX_BYTES", 500)
        with pytest.raises(ItemError, match="larger than 0 MiB"):
            inputs.fetch(f"{address}/photos/red/000.png")


def test_an_address_that_does_not_answer_is_given_up(monkeypatch):
    asked = threading.Event()
    monkeypatch.setattr(inputs, "TIMEOUT", 0.05)
    monkeypatch.setattr(inputs, "_fetch", lambda address: asked.wait(5))
    with pytest.raises(ItemError, match=r"no answer within 0\.05 s"):
        inputs.fetch("https://example.org/a.png")
    asked.set()


@pytest.mark.parametrize(("status", "reason"), [(404, "no such file"), (500, "the server answers with status 500")])
def test_the_status_of_a_server_is_reported(status, reason):
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
    assert str(raised.value) == reason


# --- out of distribution


def cluster(count: int, seed: int, shift: float = 0.0) -> np.ndarray:
    """Features (count, 16) around one of two directions."""
    generator = np.random.default_rng(seed)
    centers = np.eye(16)[generator.integers(0, 2, count)] * 10
    return (centers + generator.normal(0, 1, (count, 16)) + shift).astype(np.float32)


def test_the_rate_of_false_alarms_is_the_one_asked_for():
    """On average over many draws."""
    detectors = [ood.fit(cluster(300, seed), cluster(398, 100 + seed), 0.1) for seed in range(40)]
    assert np.mean([one.share_flagged for one in detectors]) == pytest.approx(0.1, abs=0.02)


def test_other_features_are_flagged_whatever_their_length():
    detector = ood.fit(cluster(300, 0), cluster(198, 1), 0.05)
    other = np.random.default_rng(3).normal(0, 1, (50, 16)).astype(np.float32)
    for scale in (0.1, 1, 100):
        assert (detector.distances(scale * other) > 1).mean() > 0.9
    same = cluster(50, 4)
    assert detector.distances(5 * same) == pytest.approx(detector.distances(same), abs=1e-3)


def test_too_few_examples_for_the_rate_are_reported():
    with pytest.raises(UserError, match=r"test has 37 examples .* a rate of 0\.05 needs at least 38 in test"):
        ood.fit(cluster(50, 0), cluster(37, 1), 0.05)
    assert ood.fit(cluster(50, 0), cluster(38, 1), 0.05).threshold > 0


def test_examples_do_not_set_the_threshold_that_flags_them():
    near, far = cluster(50, 1), cluster(50, 2, shift=20)
    detector = ood.fit(cluster(300, 0), np.concatenate([near, far]), 0.05)
    assert (detector.flagged, detector.tested) == (50, 100)
    assert (detector.distances(far) > 1).sum() == 4  # the threshold itself is that of all: the 96th of 100


@pytest.fixture
def fitted(here, photos, capsys) -> Path:
    """The folder after `headstart ood`."""
    photos(count=40)
    write_params(here / "params.yaml", **{**SMALL, "data.source": "photos"})
    run_stages("prepare")
    capsys.readouterr()
    ood.fit_ood(0.1)
    return here


def test_images_unlike_the_training_images_are_flagged(fitted, capsys):
    printed = capsys.readouterr().out
    detector = ood.load(Path("models/model.keras"))
    share = f"{detector.share_flagged:.1%}"
    assert f"{detector.flagged} of {detector.tested} test examples are flagged, {share}" in printed
    paint(fitted / "odd/grey.png", (200, 200, 0), 0)  # no training image has stripes of this colour
    known, odd = rows(capsys, "photos"), rows(capsys, "odd")
    assert np.mean([row["unlike"] for row in known]) < 0.2
    assert [row["unlike"] for row in odd] == [True]
    assert odd[0]["distance"] > 1 >= min(row["distance"] for row in known)

    assert predict.predict(["odd", "photos/red/000.png"]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[0].endswith("odd/grey.png  unlike the training data")
    assert printed.out.splitlines()[1].endswith("000.png")
    assert "predict: 1 of 2 examples are unlike the training data, so their labels may mean nothing" in printed.err
    assert f"of the test split {share} are flagged" in printed.err
    assert predict.predict(["odd"], "csv") == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert row["unlike"] == "true"
    assert float(row["distance"]) == odd[0]["distance"]

    file, model = Path("models/model.ood.npz"), Path("models/model.keras")
    for spoil, message in [
        (lambda: networks.save(networks.load(model)[0], model, "abc", modality="image", size=32),
         "is of another model; run `headstart ood`"),
        (lambda: file.write_bytes(b"text"), "cannot be read"),
        (file.unlink, "does not exist; run `headstart ood`"),
    ]:  # fmt: skip
        spoil()
        assert predict.predict(["photos/red/000.png"]) == 0
        printed = capsys.readouterr()
        assert printed.out.endswith("photos/red/000.png\n")
        assert message in printed.err


def test_fitting_on_another_source_is_not_told_to_prepare_again(fitted, photos):
    """What was prepared is of the source before."""
    photos("others", count=4)
    write_params(Path("params.yaml"), **{**SMALL, "data.source": "others"})
    with pytest.raises(UserError, match=r"has changed since prepare ran .*; run `dvc repro --force prepare`"):
        ood.fit_ood(0.1)  # nothing is known of another source
    lock = {"stages": {"prepare": {"params": {"params.yaml": {"data": {"source": "photos"}}}}}}
    Path("dvc.lock").write_text(yaml.safe_dump(lock))
    with pytest.raises(UserError) as error:
        ood.fit_ood(0.1)
    assert str(error.value) == (
        "params.yaml: data.source is 'others', but dvc.lock says that the model was trained on 'photos'; set it back, "
        "or run `dvc repro` for a model of the new data, then `headstart ood`"
    )


def test_fitting_says_what_is_missing(here):
    with pytest.raises(UserError, match=r"data/prepared/manifest\.parquet does not exist; run `dvc repro`"):
        ood.fit_ood()
    with pytest.raises(UserError, match=r"--rate must be in \(0, 1\), got 1\.5"):
        ood.fit_ood(1.5)
