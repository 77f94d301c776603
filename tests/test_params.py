from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import ROOT, write_params
from dvc.utils.hydra import apply_overrides

from pipeline.errors import UserError
from pipeline.params import load_params, main


def test_the_committed_params_are_good():
    leaves = load_params(ROOT / "params.yaml").leaves()
    assert leaves["backbone"] == "tiny"
    assert leaves["train_head.hidden"] == [128]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train_head.dropout", 1.5, "params.yaml: train_head.dropout must be in [0, 1), got 1.5"),
        ("train_head.epochs", 2.5, "params.yaml: train_head.epochs must be an integer in [1, 10000], got 2.5"),
        ("train_head.epochs", True, "params.yaml: train_head.epochs must be an integer in [1, 10000], got True"),
        ("train_head.hidden", 128, "params.yaml: train_head.hidden must be a list of integers, e.g. [128], got 128"),
        ("train_head.hidden", [0], "params.yaml: train_head.hidden[0] must be an integer in [1, 65536], got 0"),
        ("train_head.droput", 0.1, "params.yaml: train_head.droput is not a known key; did you mean 'dropout'?"),
        (
            "extract.pooling",
            "mean",
            "params.yaml: extract.pooling must be one of 'avg', 'max' or 'flatten', got 'mean'",
        ),
        ("extract.flip", "maybe", "params.yaml: extract.flip must be true or false, got 'maybe'"),
        ("extract.flip", 1, "params.yaml: extract.flip must be true or false, got 1"),
        ("extract.image_size", 16, "params.yaml: extract.image_size must be at least 32 for tiny, got 16"),
        ("backbone", "resnet5", "params.yaml: backbone 'resnet5' is unknown; did you mean 'resnet50'"),
        ("prepare.val_fraction", 0.9, "prepare.val_fraction + prepare.test_fraction must be below 1"),
        ("seed", -1, "params.yaml: seed must be an integer in [0, 4294967295], got -1"),
        ("train_head.dropout", "0.2", "params.yaml: train_head.dropout must be in [0, 1), got '0.2'"),
        ("weights", None, "weights must be pretrained, none or the path of a weights file, got None"),
        ("data.source", "", "params.yaml: data.source must be a text, not empty, got ''"),
    ],
)
def test_a_mistake_is_told_with_key_rule_and_value(tmp_path: Path, monkeypatch, key, value, message):
    monkeypatch.chdir(tmp_path)
    write_params(Path("params.yaml"), **{key: value})
    with pytest.raises(UserError) as error:
        load_params()
    assert message in str(error.value)


def test_numbers_that_yaml_reads_as_text_are_numbers(tmp_path: Path):
    file = tmp_path / "params.yaml"
    write_params(file, **{"train_head.learning_rate": "1e-4"})
    assert load_params(file).train_head.learning_rate == 1e-4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1 # \udce9", "not UTF-8"),
        ("a: [", "not valid YAML"),
        ("- 1", "must hold keys and values, got list"),
        ("seed: 1", "backbone is missing"),
    ],
)
def test_a_file_that_is_no_params_file(tmp_path: Path, text, message):
    (tmp_path / "params.yaml").write_text(text, errors="surrogateescape")
    with pytest.raises(UserError, match=message):
        load_params(tmp_path / "params.yaml")


def test_dvc_can_override_one_key_after_another(tmp_path: Path):
    """DVC writes the file anew each time; comments in some places it does not survive."""
    file = tmp_path / "params.yaml"
    shutil.copy(ROOT / "params.yaml", file)
    before = load_params(file).leaves()
    words = {"data.root": "word", "prepare.group_by": "word", "fine_tune.flip": "true", "fine_tune.ema": "0.9"}
    words |= {"train_head.class_weight": "balanced", "fine_tune.class_weight": "balanced"}
    for key, value in before.items():
        others = {
            list: ["[]", "[256]", "[64,32]", "[]"],
            dict: ["{dropout:[0,0.5],hidden:[[],[256]]}", "{}"],
            type(None): [words.get(key, "64"), "null"],
        }
        others = others.get(type(value), [])
        for override in (*others, json.dumps(value)):
            apply_overrides(str(file), [f"{key}={override}"])
            assert load_params(file).leaves().keys() == before.keys()
    assert load_params(file).leaves() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.source": "nowhere"}, "data.source 'nowhere' does not exist"),
        ({"data.source": "data"}, "data.source 'data' holds data/prepared/, where prepare writes"),
        ({"data.source": "photos", "weights": "imagenet"}, "weights file 'imagenet' does not exist"),
        ({"data.source": "photos"}, ""),
    ],
)
def test_the_command_checks_files_too(photos, monkeypatch, tmp_path, capsys, changes, message):
    monkeypatch.chdir(tmp_path)
    photos()
    Path("data").mkdir()
    write_params(Path("params.yaml"), **changes)
    assert main() == (1 if message else 0)
    assert message in capsys.readouterr().err


def test_a_missing_file(tmp_path: Path):
    with pytest.raises(UserError, match=r"run from the folder that holds params\.yaml"):
        load_params(tmp_path / "params.yaml")
