"""The model behind HTTP, in a real server on localhost, and in MLflow's format."""

from __future__ import annotations

import base64
import importlib.metadata
import io
import json
import os
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, SHIPPED_CLASSES, free_port, paint, wait_for
from PIL import Image

from headstart.errors import UserError
from headstart.modalities import get_modality
from headstart.serving import mlflow_model, network
from headstart.serving.mlflow_model import save_model
from headstart.serving.server import serve
from headstart.training import networks

SERVE = """
import signal, sys
from pathlib import Path
from headstart.serving.server import serve
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as the command does
serve(int(sys.argv[1]), model=Path(sys.argv[2]))
"""


def start_server(model: Path, temporary: Path) -> Iterator[str]:
    """Yield the address of a server that runs as `make serve` starts it, then end it.

    Args:
        temporary: an empty folder, which it leaves empty.
    """
    port = free_port()
    command = [sys.executable, "-c", SERVE, str(port), str(model)]
    # This process has told TensorFlow already what to log; that one shall do it itself.
    env = {name: value for name, value in os.environ.items() if not name.startswith("TF_")} | {"TMPDIR": str(temporary)}
    process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    address = f"http://127.0.0.1:{port}"
    wait_for(f"{address}/ping", process)
    yield address
    process.terminate()
    printed, _ = process.communicate(timeout=30)
    engine, serving = printed.splitlines()
    assert engine.startswith("serve: the network runs by OpenVINO 20")
    assert serving == f"Serving {model} at {address}/invocations, until Ctrl-C"
    assert "Traceback" not in printed, printed
    assert list(temporary.iterdir()) == []


@pytest.fixture(scope="module")
def server(shipped, tmp_path_factory) -> Iterator[str]:
    yield from start_server(shipped, tmp_path_factory.mktemp("temporary"))


def ask(address: str, body: Any, kind: str = "application/json") -> tuple[int, Any]:
    """Status and answer."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"{address}/invocations", data, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def records(*images: Any) -> dict[str, Any]:
    return {"dataframe_records": [{"image": image} for image in images]}


def text(file: Path) -> str:
    return base64.b64encode(file.read_bytes()).decode()


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[Path]:
    """Images that are decoded in every way there is: to be turned, transparent, of other sizes and kinds."""
    folder = tmp_path_factory.mktemp("images")
    for number, name in enumerate(("a.png", "b.jpg", "c.webp", "d.bmp", "e.gif")):
        paint(folder / name, (200, 40, 40), number, (90 + 7 * number, 70))
    turned = Image.Exif()
    turned[0x0112] = 6
    with Image.open(folder / "b.jpg") as image:
        image.save(folder / "turned.jpg", exif=turned)
        image.convert("RGBA").resize((40, 50)).save(folder / "alpha.png")
    return sorted(folder.iterdir())


def test_answers_are_those_of_the_pipeline(server, files, shipped):
    status, answer = ask(server, records(*map(text, files)))
    assert status == 200
    model, _ = networks.load(shipped)
    load = get_modality("image").load
    expected = networks.predict(model, np.stack([load(file.read_bytes(), 32) for file in files]), 32)
    assert len(answer["predictions"]) == len(files)
    for row, probabilities in zip(answer["predictions"], expected, strict=True):
        assert set(row) == {"label", "probability", "probabilities"}
        assert row["label"] == SHIPPED_CLASSES[probabilities.argmax()]
        assert row["probability"] == pytest.approx(probabilities.max(), abs=1e-6)
        assert list(row["probabilities"]) == SHIPPED_CLASSES
        assert list(row["probabilities"].values()) == pytest.approx(list(probabilities), abs=1e-6)


def test_one_image_and_more_than_a_batch_and_many_at_once(server, files):
    one = ask(server, records(text(files[0])))[1]["predictions"]
    many = ask(server, records(*[text(files[0])] * 70))[1]["predictions"]
    assert len(many) == 70
    for row in many:
        assert row["probabilities"] == pytest.approx(one[0]["probabilities"], abs=1e-6)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: ask(server, records(text(files[0]))), range(16)))
    assert all(answer == (200, {"predictions": one}) for answer in answers)


def test_every_form_of_json_that_mlflow_takes(server, files):
    image = text(files[0])
    expected = ask(server, records(image))
    assert ask(server, {"dataframe_split": {"columns": ["image"], "data": [[image]]}}) == expected
    assert ask(server, {"inputs": {"image": [image]}}) == expected
    assert ask(server, {"instances": [{"image": image}]}) == expected
    assert ask(server, {"inputs": [image]}) == ask(server, {"instances": [image]}) == expected
    broken = base64.encodebytes(files[0].read_bytes()).decode()  # in lines, as `base64` prints it
    assert ask(server, records(broken)) == expected


def png(size: tuple[int, int], mode: str = "RGB") -> str:
    """The base64 of a black image, which takes few bytes however large it is."""
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, "PNG", compress_level=1)
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.mark.parametrize(
    ("image", "expected", "reason"),
    [
        ("This is no base64!", 400, "not the base64 of an image file"),
        ("", 400, "the file is empty"),
        (base64.b64encode(b"some text, no picture").decode(), 400, "not an image of a supported kind"),
        (base64.b64encode(b"<html></html>" + bytes(60)).decode(), 400, "but HTML or XML"),
        (base64.b64encode(b"\xff\xd8\xff\xe0").decode(), 400, "damaged"),
        ("A" * 48_000_000, 413, "larger than 32 MiB"),
        (lambda: png((20000, 20000), "1"), 413, "a decompression bomb"),
        (lambda: png((11000, 8000), "RGBA"), 413, "too large: loading it takes 2,014 MiB of memory, 512"),
        ("data:image/png;base64,iVBORw0K", 400, "not the base64 of an image file"),
    ],
    ids=["text", "empty", "other", "html", "cut", "large", "bomb", "many-pixels", "data-url"],
)
def test_a_bad_image_among_good_ones_is_named_by_its_place(image, expected, reason, server, files):
    good = text(files[0])
    status, answer = ask(server, records(good, image() if callable(image) else image, good))
    assert status == expected
    assert "image 1 (counted from 0, of 3): " in answer
    assert reason in answer
    assert "image 0" not in answer
    assert "Traceback" not in answer
    assert len(answer) < 2000


@pytest.mark.parametrize(
    ("body", "kind", "status", "reason"),
    [
        ({"dataframe_records": [{"picture": "abc"}]}, "application/json", 400, "image"),
        ({"dataframe_records": [{}]}, "application/json", 400, "image"),
        ({"dataframe_records": [{"image": 5}]}, "application/json", 400, "image"),
        ({"dataframe_records": [{"image": None}]}, "application/json", 400, "image"),
        ({"dataframe_records": [{"image": ["abc"]}]}, "application/json", 400, "image"),
        ({"image": "abc"}, "application/json", 400, "dataframe_records"),
        (["abc"], "application/json", 400, "dataframe_records"),
        (b"{", "application/json", 400, "JSON"),
        (b"abc", "image/png", 415, "application/json"),
        (b"\xff\xfe", "application/json", 400, "not JSON"),
        (b"image\nabc\n", "text/csv", 415, "application/json"),
        (b"junk", "application/vnd.apache.parquet", 415, "application/json"),
        (b"{}", "", 415, "application/json, got none"),
        ({"instances": []}, "application/json; charset=latin1", 415, "only supports UTF-8"),
        (b'{"instances": ' + b"[" * 100_000, "application/json", 400, "nested too deeply"),
        (b'{"instances": [{"image": ' + b"9" * 5000 + b"}]}", "application/json", 400, "too many digits"),
        ({"instances": [{"image": "abc"}, {"b": 1}]}, "application/json", 400, "image 1 (counted from 0, of 2)"),
        ({"inputs": [{"b": 1}, {"image": "abc"}]}, "application/json", 400, "image 0 (counted from 0, of 2)"),
        ({"prompt": "abc"}, "application/json", 400, "dataframe_records"),
    ],
)
def test_bad_requests(body, kind, status, reason, server):
    found, answer = ask(server, body, kind)
    assert found == status, answer
    assert reason in json.loads(answer)["message"]
    assert "Traceback" not in answer


@pytest.mark.parametrize("fault", ["", "differs", "fails"])
def test_openvino_runs_the_network_only_if_it_answers_as_keras_does(fault, shipped, files, monkeypatch):
    opened = network._open_openvino

    def open_faulty(classifier: networks.Classifier) -> network.Network:
        if fault == "fails":
            raise RuntimeError("no such\noperation")
        run = opened(classifier)
        return (lambda arrays: run(arrays)[:, ::-1]) if fault == "differs" else run

    monkeypatch.setattr(network, "_open_openvino", open_faulty)
    classifier = networks.load_classifier(shipped)
    run, words = network.open_network(classifier)
    started = {"": "OpenVINO 20", "differs": "Keras; OpenVINO and Keras differ by at most ", "fails": "Keras, since "}
    assert words.startswith(started[fault])
    if fault == "fails":
        assert words == "Keras, since OpenVINO cannot run this network here (no such operation)"
    arrays = [classifier.modality.load(file.read_bytes(), 32) for file in files]
    expected = classifier.predict(classifier.modality.batch(arrays))
    assert len({tuple(row) for row in expected.round(3)}) > 1
    for count in (1, 3, len(arrays)):
        assert run(arrays[:count]) == pytest.approx(expected[:count], abs=1e-5)


def test_no_images_are_answered_by_none(server):
    assert ask(server, {"dataframe_split": {"columns": ["image"], "data": []}}) == (200, {"predictions": []})


SAVE = """
import sys
from pathlib import Path
from headstart.serving.mlflow_model import save_model
save_model(*map(Path, sys.argv[1:]))
print("tensorflow" in sys.modules)
"""
ELSEWHERE = """
import json, sys
import mlflow.pyfunc, pandas as pd
model = mlflow.pyfunc.load_model("kept")
print(json.dumps(model.predict(pd.DataFrame({"image": [sys.argv[1]]}))))
print(json.dumps(sys.modules["headstart"].__path__[0]))
"""


@pytest.fixture(scope="module")
def kept(shipped, tmp_path_factory) -> Path:
    """The model in MLflow's format, which is written without TensorFlow."""
    folder = tmp_path_factory.mktemp("mlflow") / "kept"
    command = [sys.executable, "-c", SAVE, str(folder), str(shipped)]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout == "False\n"
    return folder


@pytest.mark.slow
def test_the_mlflow_model_needs_nothing_else_of_the_project(server, files, kept):
    command = [sys.executable, "-BI", "-c", ELSEWHERE, text(files[0])]
    done = subprocess.run(command, cwd=kept.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows, package = map(json.loads, done.stdout.splitlines()[-2:])
    assert Path(package) == kept / "code/headstart"
    status, answer = ask(server, records(text(files[0])))
    assert status == 200
    for ours, theirs in zip(rows, answer["predictions"], strict=True):  # two processes may differ in the last bit
        assert ours.pop("probabilities") == pytest.approx(theirs.pop("probabilities"), abs=1e-6)
        assert ours == {**theirs, "probability": pytest.approx(theirs["probability"], abs=1e-6)}


def test_the_mlflow_model_has_only_the_code_that_it_imports(kept):
    names = {file.relative_to(kept).as_posix() for file in kept.rglob("*")}
    assert {"artifacts/model.keras", "pyfunc_model.py", "input_example.json", "requirements.txt"} <= names
    assert not [name for name in names if name.endswith((".pkl", ".h5", ".html", ".pyc"))]
    code = {name.removeprefix("code/") for name in names if name.startswith("code/") and name.endswith(".py")}
    assert code == {file.relative_to(ROOT).as_posix() for file in mlflow_model.imported_modules(mlflow_model.CODE)}
    assert {"headstart/__init__.py", "headstart/training/networks.py"} <= code
    assert not [name for name in code if re.search(r"/(tracking|report|evaluation)/|cli|stage", name)]


def test_the_requirements_are_what_the_code_imports():
    files = mlflow_model.imported_modules(mlflow_model.CODE)
    pinned = mlflow_model.pinned_requirements(files, "image")
    assert f"keras=={importlib.metadata.version('keras')}" in pinned
    names = {line.split("==")[0] for line in pinned}
    assert {"mlflow", "numpy", "pillow", "simplejpeg", "tensorflow"} <= names
    assert not names & {"dvc", "matplotlib", "scikit-learn", "keras-hub", "tokenizers"}
    texts = {line.split("==")[0] for line in mlflow_model.pinned_requirements(files, "text")}
    assert texts ^ names <= {"simplejpeg", "tokenizers", "pillow-heif"}
    assert {"mlflow", "numpy", "pillow", "tensorflow"} <= texts


def test_mistakes_are_reported_before_the_server_starts(shipped, tmp_path):
    (tmp_path / "text.keras").write_text("text")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for arguments, message in [
            ({"model": tmp_path / "nowhere.keras"}, "nowhere.keras does not exist; run `dvc repro`"),
            ({"model": tmp_path / "text.keras"}, "text.keras is not a model of this pipeline"),
            ({"model": shipped, "port": port}, "choose another one with --port"),
            ({"model": shipped, "port": 70000}, "cannot bind to 127.0.0.1:70000"),
        ]:
            with pytest.raises(UserError) as raised:
                serve(**arguments)
            assert message in str(raised.value)
    with pytest.raises(UserError, match=r"nowhere\.keras does not exist"):
        save_model(tmp_path / "kept", tmp_path / "nowhere.keras")
