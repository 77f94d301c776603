"""One scale for all images of a data set with more than 8 bits, from prepare to predictions."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import ROOT, SHORT, SMALL, paint, paint_classes, register_short, run_stages, write_params
from PIL import Image
from test_deep_images import tiff_file

from headstart import paths
from headstart.config import load_params
from headstart.data.prepared import load_reading
from headstart.errors import UserError
from headstart.modalities import get_modality
from headstart.modalities.image.value_range import find_reading, find_value_range
from headstart.report.data_page import render_data_page
from headstart.serving.model_file import read_model_info
from headstart.serving.predict import predict
from headstart.serving.pyfunc_model import PyfuncClassifier
from headstart.training import networks


def table(*rows: tuple[float, float, int]) -> pd.DataFrame:
    """What is known about images of which low, high and whether they hold floats are given."""
    low, high, floats = (np.array(column, np.float32) for column in zip(*rows, strict=True))
    return pd.DataFrame({"deep": 1, "float": floats, "low": low, "high": high})


@pytest.mark.parametrize(
    ("low", "high", "floats", "expected"),
    [
        (0, 200, False, (0, 255)),
        (3, 256, False, (0, 1023)),
        (9, 1000, False, (0, 1023)),
        (0, 4095, False, (0, 4095)),
        (50, 5000, False, (0, 16383)),
        (0, 40000, False, (0, 65535)),
        (30000, 32000, False, (0, 32767 * 2 + 1)),
        (0, 3_000_000, False, (0, 3_000_000)),
        (-1024, 3071, False, (-1100, 3100)),
        (-5, -1, False, (-5, -1)),
        (0, 0, False, (0, 255)),
        (0.0, 1.0, True, (0, 1)),
        (0.1, 0.6, True, (0, 1)),
        (0.0, 1.04, True, (0, 1.1)),
        (0.0, 255.0, True, (0, 255)),
        (0.0, 4001.5, True, (0, 4095)),
        (-1.0, 1.0, True, (-1, 1)),
        (-0.0123, 0.0456, True, (-0.013, 0.046)),
        (0.0, 2.5e7, True, (0, 25_000_000)),
    ],
)
def test_the_range_is_that_of_the_depth_or_of_the_values(low, high, floats, expected):
    found = find_value_range(pd.Series([low] * 5), pd.Series([high] * 5), floats)
    assert found == pytest.approx(expected, abs=1e-12)
    json.dumps(found)


def test_a_few_images_of_another_depth_do_not_darken_the_others():
    reading, (line,) = find_reading(table(*[(0, 4000, 0)] * 298, (0, 65535, 0), (0, 65535, 0)), None)
    assert reading == {"value_range": [0, 4095]}
    assert "; 2 have values beyond, which are clipped" in line
    reading, _ = find_reading(table(*[(0, 4000, 0)] * 9, (0, 65535, 0)), None)
    assert reading == {"value_range": [0, 65535]}


@pytest.mark.parametrize(
    ("examples", "given", "words"),
    [
        (
            table((30000, 32000, 0)),
            None,
            r"30000 to 32000, are a small .* set prepare\.value_range to \[30000, 32",
        ),
        (table((0, 0.05, 1)), None, "0 to 0.05, are a small part of that range"),
        (table((0, 4000, 0)), [0, 65535], "0 to 4000, are a small part of that range"),
        (table(*[(0, 4000, 0)] * 5, *[(0, 60000, 0)] * 5), None, "5 of them use less than an eighth of that range"),
        (table((0, 1, 1), (0, 4000, 0)), None, "1 of them hold floats, the others integers"),
        (table((0, 4000, 0)).reindex([0, 1]).fillna(0), None, "the other 1 images have 8 bits, and 255 is white in"),
    ],
)
def test_what_looks_like_a_mistake_is_a_warning(examples, given, words):
    _, lines = find_reading(examples, given)
    assert any(pd.Series([line]).str.contains(f"warning: .*{words}").all() for line in lines), lines


def test_a_range_without_a_use_is_mentioned():
    eight = pd.DataFrame({"width": [9], "height": [9]})
    assert find_reading(eight, None) == ({}, [])
    assert find_reading(eight, [0, 4095]) == ({}, ["prepare.value_range is not used: all images have 8 bits"])
    reading, (line,) = find_reading(table((0, 4000, 0)), [0, 3000])
    assert reading == {"value_range": [0, 3000]}
    assert "0 is black and 3000 is white" in line
    assert "(by prepare.value_range); 1 have values beyond" in line


@pytest.mark.parametrize(
    "reading", [{"rate": 16000}, {"value_range": [1]}, {"value_range": [4, 2]}, {"value_range": 5}]
)
def test_a_reading_of_another_kind_is_refused(reading):
    with pytest.raises(UserError, match=r"data\.kind image: .*; run `dvc repro --force prepare`"):
        get_modality("image", reading)


# --- in all stages


def draw(label: str, seed: int) -> np.ndarray:
    """12 bits, (20, 24) uint16: a bright spot, and stripes that 8 of 16 bits do not show."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:20, :24]
    stripes = {"plain": 0 * x, "level": y // 4 % 2, "upright": x // 4 % 2}[label]
    values = 160 + 200 * stripes + random.integers(0, 20, (20, 24))
    values[:3, :3] = 4000
    return values.astype(np.uint16)


def set_params(**changes: object) -> None:
    fixed = {
        "data.source": "scans",
        "train_head.hidden": [],
        "train_head.weight_decay": 0,
        "fine_tune.unfreeze": "none",
    }
    write_params(Path("params.yaml"), **{**SMALL, **SHORT, **fixed, **changes})


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Iterator[Path]:
    """A folder after all five stages on scans of 12 bits, as PNG and TIFF."""
    register_short()
    folder = tmp_path_factory.mktemp("scans")
    for label in ("plain", "level", "upright"):
        (folder / "scans" / label).mkdir(parents=True)
        for number in range(24):
            file = folder / "scans" / label / f"{number:02}"
            values = draw(label, 100 * len(label) + number)
            if number % 2:
                Image.fromarray(values).save(file.with_suffix(".png"))
            else:
                file.with_suffix(".tif").write_bytes(tiff_file(values, ">", compressed=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("DVC_ROOT", raising=False)
        set_params()
        run_stages("prepare", "extract", "train_head", "fine_tune", "evaluate")
    return folder


@pytest.fixture
def here(finished, tmp_path, monkeypatch) -> Path:
    """A copy of `finished`."""
    shutil.copytree(finished, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def accuracy() -> float:
    return json.loads(paths.metrics("evaluate").read_text())["accuracy"]


def test_classes_that_differ_in_low_bits_are_told_apart(here, capsys):
    found = json.loads(paths.report("prepare").read_text())["reading"]
    assert load_reading() == {"kind": "image", **found}
    assert found == {"value_range": [0, 4095]}
    assert accuracy() > 0.9
    set_params(**{"prepare.value_range": [0, 65535]})  # as 16 bits: 17 grey levels
    run_stages("prepare", "extract", "train_head", "fine_tune", "evaluate")
    assert accuracy() < 0.7
    assert "warning: their values, 160 to 4000, are a small part of that range" in capsys.readouterr().out


def test_predictions_and_the_model_server_read_as_the_stages_did(here, capsys):
    predictions = pd.read_csv(paths.PREDICTIONS)
    classifier = networks.load_classifier(paths.MODEL)
    assert classifier.modality.reading == {"value_range": [0, 4095]}
    assert read_model_info(paths.MODEL).modality.reading == {"value_range": [0, 4095]}
    names = [f"p_{name}" for name in classifier.classes]
    expected = predictions.set_index("path")[names]
    assert predict([f"scans/{path}" for path in predictions.path], "json") == 0
    for row in json.loads(capsys.readouterr().out):
        probabilities = [row["probabilities"][name] for name in classifier.classes]
        path = Path(row["path"]).relative_to("scans").as_posix()
        assert probabilities == pytest.approx(expected.loc[path].tolist(), abs=1e-4)
    model, context = PyfuncClassifier(), SimpleNamespace(artifacts={"model": str(paths.MODEL)})
    model.load_context(context)
    images = [base64.b64encode(Path("scans", path).read_bytes()).decode() for path in predictions.path]
    for row, path in zip(model.predict(context, pd.DataFrame({"image": images})), predictions.path, strict=True):
        probabilities = [row["probabilities"][name] for name in classifier.classes]
        assert probabilities == pytest.approx(expected.loc[path].tolist(), abs=1e-4)
    whole = json.loads(paths.report("evaluate").read_text())["whole_images"]
    assert whole["max_difference"] < 0.05  # the model itself takes RGB in [0, 255]


def test_predictions_of_another_depth_are_reported(here, capsys):
    """They are nearly white or black, and answered all the same."""
    values = draw("plain", 0)
    Path("new").mkdir()
    for name, other in (("as", values), ("bright", values * 16), ("dark", values // 16), ("darker", values // 20)):
        Path(f"new/{name}.tif").write_bytes(tiff_file(other.astype(np.uint16)))
    paint(Path("new/eight.png"), (9, 9, 9), 1)
    paint(Path("new/eight.jpg"), (9, 9, 9), 1)
    assert predict(["new"], "json") == 0
    printed = capsys.readouterr()
    assert len(json.loads(printed.out)) == 6
    training, depth = "black and white of the training images", "have they another depth?"
    about = [line for line in printed.err.splitlines() if "training images" in line]
    assert about == [
        f"predict: 1 of 6 images have values beyond 0 and 4095, {training}, which are clipped; {depth} The first: "
        "new/bright.tif",
        f"predict: 2 of 6 images use less than an eighth of the values from 0 to 4095, {training}; {depth} The first: "
        "new/dark.tif",
    ]
    modality = read_model_info(paths.MODEL).modality
    for file in Path("new").iterdir():
        loaded, _ = modality.load_with_remark(file.read_bytes(), 32)
        assert (loaded == modality.load(file.read_bytes(), 32)).all()


def test_the_range_is_part_of_what_features_are_known_by(here, capsys):
    """Another range computes all features again, and the first one finds them in the store."""
    before = [np.load(file) for file in paths.FEATURES.values()]
    for changes, computed in (({"prepare.value_range": [0, 2000]}, 72), ({}, 0)):
        set_params(**changes)
        run_stages("prepare", "extract")
        assert f"extract: {computed} computed" in capsys.readouterr().out
        after = [np.load(file) for file in paths.FEATURES.values()]
        same = all(np.array_equal(first, second) for first, second in zip(before, after, strict=True))
        assert same == (computed == 0)


def test_dvc_runs_what_reads_the_range():
    """fine_tune has it from features/meta.json, evaluate from the model."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    assert {paths.READING.as_posix(): {"persist": True}} in stages["prepare"]["outs"]
    assert paths.READING.as_posix() in stages["extract"]["deps"]
    assert paths.FEATURES_META.as_posix() in stages["fine_tune"]["deps"]


def test_the_data_page_says_the_range(here):
    page = render_data_page(load_params(), [], "x")
    assert "72 of 72 images have more than 8 bits: 0 is black and 4095 is white" in page
    assert page.count("data:image/webp") >= 24


def test_an_export_says_the_range(here, capsys):
    from headstart.serving.export import export

    export("openvino")
    export("openvino")  # again, over the first
    assert json.loads(Path("exports/openvino/reading.json").read_text()) == {"value_range": [0, 4095]}


def test_images_that_differ_in_low_bits_are_no_duplicates(here):
    assert paths.QUARANTINE.read_text().splitlines() == ["path,label,reason,detail"]
    shutil.copy("scans/plain/01.png", "scans/plain/copy.png")
    run_stages("prepare")
    assert "the same content as plain/01.png" in paths.QUARANTINE.read_text()


def test_a_damaged_reading_is_one_message(here):
    for content in ("{", "[]", '{"value_range": [0, 4095]}', '{"kind": "image", "value_range": [3]}'):
        paths.READING.write_text(content)
        with pytest.raises(UserError, match=r"prepare"):
            run_stages("extract")


def test_8_bits_need_no_reading(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    register_short()
    paint_classes(tmp_path / "scans")
    set_params(**{"prepare.value_range": [0, 4095]})
    run_stages("prepare", "extract")
    assert load_reading() == {"kind": "image"}
    assert "prepare: prepare.value_range is not used: all images have 8 bits" in capsys.readouterr().out
    assert set(pd.read_parquet(paths.FILES)) & {"deep", "low", "high"} == set()
    eight = np.load(paths.FEATURES["train"])
    paths.READING.write_text(json.dumps({"kind": "image", "value_range": [0, 4095]}))
    run_stages("extract")
    assert (np.load(paths.FEATURES["train"]) == eight).all()  # of 8 bits there is one scale


def test_a_model_of_8_bits_refuses_values_of_unknown_scale(shipped, tmp_path, capsys):
    (tmp_path / "scan.tif").write_bytes(tiff_file(draw("plain", 0)))
    assert predict([str(tmp_path / "scan.tif")], model=shipped) == 1
    assert "it is not known which value is white; convert it to 8 bits" in capsys.readouterr().err
    assert get_modality("image").reading == {}
