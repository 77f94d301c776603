"""The model behind HTTP, in a real server on localhost, and in MLflow's format."""

from __future__ import annotations

import base64
import importlib.metadata
import json
import os
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, free_port, wait_for
from modality_cases import CASES, Case, draw_images, each_case

from headstart.errors import UserError
from headstart.modalities import get_modality
from headstart.serving import mlflow_model, network
from headstart.serving.mlflow_model import save_model
from headstart.serving.server import serve
from headstart.training import networks
from headstart.training.networks import Classifier

SERVE = """
import signal, sys
from pathlib import Path
from headstart.serving.server import serve
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as the command does
serve(int(sys.argv[1]), model=Path(sys.argv[2]))
"""


@contextmanager
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


@dataclass(frozen=True)
class Server:
    """A model server, and what it should answer."""

    address: str
    case: Case
    examples: list[bytes]
    classifier: Classifier

    @property
    def column(self) -> str:
        return self.classifier.modality.column

    def records(self, *values: Any) -> dict[str, Any]:
        """A request; examples, as bytes, are put as the server takes them."""
        put = self.classifier.modality.format_request
        return {
            "dataframe_records": [{self.column: put(value) if isinstance(value, bytes) else value} for value in values]
        }


@pytest.fixture(scope="module")
def started(request, tmp_path_factory) -> Iterator[Callable[[str], Server]]:
    """Starts a server of a modality, once."""
    with ExitStack() as stack:

        @cache
        def start(name: str) -> Server:
            case = CASES[name]
            model = request.getfixturevalue(case.model)
            address = stack.enter_context(start_server(model, tmp_path_factory.mktemp("temporary")))
            examples = case.examples(tmp_path_factory.mktemp("examples"))
            return Server(address, case, examples, networks.load_classifier(model))

        yield start


@pytest.fixture(params=CASES)
def server(request, started) -> Server:
    """For each modality; `images_only` for what does not depend on it."""
    return started(request.param)


images_only = pytest.mark.parametrize("server", ["image"], indirect=True)


def alone(classifier: Classifier, files: list[bytes]) -> np.ndarray:
    """The probabilities of examples, each computed by itself."""
    modality, size = classifier.modality, classifier.size
    return np.concatenate([classifier.predict(modality.batch([modality.load(file, size)])) for file in files])


def ask(address: str, body: Any, kind: str = "application/json") -> tuple[int, Any]:
    """Status and answer."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"{address}/invocations", data, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def check_answers(rows: list[dict], case: Case, classifier: Classifier, expected: np.ndarray) -> None:
    for place, (row, probabilities) in enumerate(zip(rows, expected, strict=True)):
        assert set(row) - {"remark"} == {"label", "probability", "probabilities"}
        assert row["label"] == classifier.classes[probabilities.argmax()]
        assert row["probability"] == pytest.approx(probabilities.max(), abs=1e-5)
        assert list(row["probabilities"]) == classifier.classes
        assert list(row["probabilities"].values()) == pytest.approx(list(probabilities), abs=1e-5)
        assert row.get("remark") == case.remarks.get(place)


def test_answers_are_those_of_the_pipeline(server):
    """Alone and together and more than a batch of them, at once."""
    files, first = server.examples, server.examples[0]
    asked = [files, 70 * [first], *([file] for file in files), *(8 * [[first]])]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda some: ask(server.address, server.records(*some)), asked))
    assert {status for status, _ in answers} == {200}
    together, many, *others = (answer["predictions"] for _, answer in answers)
    expected = alone(server.classifier, files)
    assert len({tuple(row) for row in expected.round(3)}) > 1
    check_answers(together, server.case, server.classifier, expected)
    check_answers([row for rows in others[: len(files)] for row in rows], server.case, server.classifier, expected)
    assert len(many) == 70
    for row in (*many, *(row for rows in others[len(files) :] for row in rows)):
        assert list(row["probabilities"].values()) == pytest.approx(list(expected[0]), abs=1e-5)


def test_every_form_of_json_that_mlflow_takes(server):
    name, value = server.column, server.classifier.modality.format_request(server.examples[0])
    expected = ask(server.address, server.records(value))
    for body in (
        {"dataframe_split": {"columns": [name], "data": [[value]]}},
        {"inputs": {name: [value]}},
        {"instances": [{name: value}]},
        {"inputs": [value]},
        {"instances": [value]},
    ):
        assert ask(server.address, body) == expected, body.keys()
    assert ask(server.address, {"dataframe_split": {"columns": [name], "data": []}}) == (200, {"predictions": []})


@images_only
def test_base64_may_be_in_lines(server):
    """As `base64` prints it."""
    image = server.examples[0]
    assert ask(server.address, server.records(base64.encodebytes(image).decode())) == ask(
        server.address, server.records(image)
    )


@pytest.mark.parametrize(
    ("server", "value", "expected", "reason"),
    [pytest.param(case.name, *bad, id=f"{case.name}-{bad[2]}") for case in CASES.values() for bad in case.bad],
    indirect=["server"],
)
def test_a_bad_example_among_good_ones_is_named_by_its_place(value, expected, reason, server):
    good, name = server.examples[0], server.column
    status, answer = ask(server.address, server.records(good, value() if callable(value) else value, good))
    assert status == expected
    message = json.loads(answer)["message"]
    assert f"{name} 1 (counted from 0, of 3): " in message
    assert reason in message
    assert f"{name} 0" not in message
    assert "Traceback" not in answer
    assert len(answer) < 2000


def test_a_request_without_examples_shows_how_one_looks(server):
    status, answer = ask(server.address, {"dataframe": []})
    assert status == 400
    assert f'{{"dataframe_records": [{{"{server.column}": "' in json.loads(answer)["message"]


@images_only
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
    found, answer = ask(server.address, body, kind)
    assert found == status, answer
    assert reason in json.loads(answer)["message"]
    assert "Traceback" not in answer


@pytest.mark.parametrize("fault", ["", "differs", "fails"])
def test_openvino_runs_the_network_only_if_it_answers_as_keras_does(fault, shipped, tmp_path, monkeypatch):
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
    arrays = [classifier.modality.load(file, 32) for file in draw_images(tmp_path)]
    expected = classifier.predict(classifier.modality.batch(arrays))
    assert len({tuple(row) for row in expected.round(3)}) > 1
    for count in (1, 3, len(arrays)):
        assert run(arrays[:count]) == pytest.approx(expected[:count], abs=1e-5)


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


@each_case
def test_the_mlflow_model_takes_examples_and_names_its_libraries(case, request, tmp_path):
    import mlflow.pyfunc

    file = request.getfixturevalue(case.model)
    save_model(tmp_path / "kept", file)
    required = (tmp_path / "kept/requirements.txt").read_text().splitlines()
    assert {line.split("==")[0] for line in required} >= {"keras", "mlflow", "numpy", "tensorflow"} | case.libraries
    model, classifier = mlflow.pyfunc.load_model(str(tmp_path / "kept")), networks.load_classifier(file)
    column = classifier.modality.column
    assert [(one.name, one.type.name) for one in model.metadata.signature.inputs] == [(column, "string")]
    assert len(model.predict(model.input_example)) == 1
    files = case.examples(tmp_path / "examples")
    found = model.predict(pd.DataFrame({column: [classifier.modality.format_request(file) for file in files]}))
    check_answers(found, case, classifier, alone(classifier, files))


@pytest.mark.slow
@images_only
def test_the_mlflow_model_needs_nothing_else_of_the_project(server, kept):
    command = [sys.executable, "-BI", "-c", ELSEWHERE, base64.b64encode(server.examples[0]).decode()]
    done = subprocess.run(command, cwd=kept.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows, package = map(json.loads, done.stdout.splitlines()[-2:])
    assert Path(package) == kept / "code/headstart"
    status, answer = ask(server.address, server.records(server.examples[0]))
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
    pinned = mlflow_model.pinned_requirements(files, get_modality("image"))
    assert f"keras=={importlib.metadata.version('keras')}" in pinned
    names = {line.split("==")[0] for line in pinned}
    assert {"mlflow", "numpy", "pillow", "simplejpeg", "tensorflow"} <= names
    assert not names & {"dvc", "matplotlib", "scikit-learn", "keras-hub", "tokenizers"}
    texts = {line.split("==")[0] for line in mlflow_model.pinned_requirements(files, get_modality("text"))}
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
