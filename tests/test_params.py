from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest
from conftest import ROOT, write_params
from dvc.utils.hydra import apply_overrides

from headstart import cli, reference
from headstart.config import load_params
from headstart.errors import UserError
from headstart.reference import parameters_page
from headstart.validation import Section, read_yaml


def test_the_page_about_parameters_is_up_to_date():
    page = (ROOT / "docs/parameters.md").read_text(encoding="utf-8")
    assert page == parameters_page(read_yaml(ROOT / "params.yaml")), "run `make docs`"
    for key in load_params(ROOT / "params.yaml").leaves():
        assert re.search(rf"^\| `{re.escape(key)}` \| `[^|]+` \| [^|]+ \| \w[^|]+ \|$", page, re.MULTILINE), key


def test_a_param_without_description_or_default_is_named(monkeypatch):
    class Extract(Section):
        """How."""

        size: int
        """Side."""
        depth: int

    class Params(Section):
        extract: Extract

    monkeypatch.setattr(reference, "Params", Params)
    with pytest.raises(UserError, match=r"^headstart/config\.py: extract\.depth has no description; write one"):
        parameters_page({"extract": {"size": 1, "depth": 2}})
    with pytest.raises(UserError, match=r"^params\.yaml: extract\.size is missing, which headstart/config\.py has"):
        parameters_page({})
    monkeypatch.setattr(reference, "read_yaml", lambda file: {"extract": {}})
    with pytest.raises(SystemExit, match=r"^params\.yaml: extract\.size is missing"):
        reference.main()


def test_the_committed_params_are_good():
    leaves = load_params(ROOT / "params.yaml").leaves()
    assert leaves["backbone"] is None
    assert leaves["train_head.epochs"] == 20
    assert leaves["train_head.hidden"] is None


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train_head.dropout", 1.5, "params.yaml: train_head.dropout must be in [0, 1) or null, got 1.5"),
        ("train_head.epochs", 2.5, "params.yaml: train_head.epochs must be an integer in [1, 10000], got 2.5"),
        ("train_head.epochs", True, "params.yaml: train_head.epochs must be an integer in [1, 10000], got True"),
        ("train_head.hidden", 128, "train_head.hidden must be a list of integers such as [128] or null, got 128"),
        ("train_head.hidden", [0], "params.yaml: train_head.hidden[0] must be an integer in [1, 65536], got 0"),
        ("train_head.droput", 0.1, "params.yaml: train_head.droput is not a known key; did you mean 'dropout'?"),
        ("extract.pooling", "mean", "params.yaml: extract.pooling must be 'avg', 'max' or 'flatten', got 'mean'"),
        ("extract.flip", "maybe", "params.yaml: extract.flip must be true or false, got 'maybe'"),
        ("fine_tune.flip", 1, "params.yaml: fine_tune.flip must be true, false or null, got 1"),
        ("fine_tune.refit", "yes", "params.yaml: fine_tune.refit must be true, false or null, got 'yes'"),
        ("data.root", 3, "params.yaml: data.root must be a non-empty string or null, got 3"),
        ("extract.flip", 1, "params.yaml: extract.flip must be true or false, got 1"),
        ("extract.image_size", 64, "params.yaml: extract.image_size was renamed to extract.size"),
        (
            "prepare.val_fraction",
            0.9,
            "prepare.test_fraction must leave examples to train on: val_fraction + test_fraction is 0.9 + 0.15",
        ),
        ("seed", -1, "params.yaml: seed must be an integer in [0, 4294967295], got -1"),
        ("train_head.dropout", "0.2", "params.yaml: train_head.dropout must be in [0, 1) or null, got '0.2'"),
        (
            "train_head.search",
            {"optimizer": ["lbfgs"], "hidden": [[8]]},
            'in {"optimizer": "lbfgs", "hidden": [8]} optimizer lbfgs needs hidden: [] and dropout: 0',
        ),
        (
            "train_head.class_weight",
            "auto",
            "params.yaml: train_head.class_weight must be 'balanced' or null, got 'auto'",
        ),
        ("train_head.search", [1], "train_head.search must be a section of keys with lists of values such as {dropout"),
        ("train_head.search", {"droput": [0]}, "must have keys of train_head, got 'droput'; did you mean 'dropout'?"),
        ("train_head.search", {"dropout": []}, "must have a list of values for dropout, got []"),
        ("train_head.search", {"epochs": [date(2020, 1, 1)]}, 'in {"epochs": "2020-01-01"} epochs must be an integer'),
        (
            "train_head.search",
            {"dropout": [0, 2]},
            'must have valid combinations; in {"dropout": 2} dropout must be in [0, 1) or null, got 2',
        ),
        ("train_head.search", {"hidden": [8]}, "hidden must be a list of integers such as [128] or null, got 8"),
        ("train_head.search", {"dropout": 0.5}, "train_head.search.dropout must be a list of values, got 0.5"),
        ("fine_tune.unfreeze", 1.0, "params.yaml: fine_tune.unfreeze must be all, none, a number of blocks, a share"),
        ("fine_tune.unfreeze", "0.5", "params.yaml: fine_tune.unfreeze must be all, none, a number of blocks, a share"),
        ("fine_tune.unfreeze", float("inf"), "params.yaml: fine_tune.unfreeze must be all, none, a number of"),
        ("train_head.search", {"epochs": [1, 2] * 60, "batch_size": [1, 2] * 60}, "at most 10,000 combinations"),
        ("fine_tune.unfreeze", 0, "params.yaml: fine_tune.unfreeze must be all, none, a number of blocks, a share"),
        ("fine_tune.unfreeze", 1.5, "params.yaml: fine_tune.unfreeze must be all, none, a number of blocks, a share"),
        ("fine_tune.unfreeze", True, "params.yaml: fine_tune.unfreeze must be all, none, a number of blocks, a share"),
        ("fine_tune.trunk_cache", "maybe", "fine_tune.trunk_cache must be 'auto', 'on' or 'off', got 'maybe'"),
        ("fine_tune.ema", 1, "params.yaml: fine_tune.ema must be in [0, 1) or null, got 1"),
        ("fine_tune.folds", 1, "params.yaml: fine_tune.folds must be 0, an integer in [2, 100] or null, got 1"),
        ("fine_tune.folds", True, "params.yaml: fine_tune.folds must be 0, an integer in [2, 100] or null, got True"),
        ("fine_tune.confidence", 1, "params.yaml: fine_tune.confidence must be in [0, 1), got 1"),
        ("gate.max_drop", -1, "params.yaml: gate.max_drop must be in [0, 1] or null, got -1"),
        ("gate.max_latency_ms", 0, "params.yaml: gate.max_latency_ms must be in (0, 1000000] or null, got 0"),
        ("gate.min_recall_of", [0.9], "gate.min_recall_of must be a section of class names, each with a share"),
        ("gate.min_recall_of", {"roses": 9}, "params.yaml: gate.min_recall_of.roses must be in [0, 1], got 9"),
        ("gate.min_recall_of", {False: 0.9}, "put quotes around words that YAML takes for others, as 'no'"),
        ("weights", None, "weights must be pretrained, none or the path of a weights file, got None"),
        ("data.watch", "source", "data.watch must be a list of source and weights, or [], got 'source'"),
        ("data.watch", ["sauce"], "data.watch must be a list of source and weights, or [], got ['sauce']"),
        ("data.watch", ["source", "source"], "data.watch must be a list of source and weights, or []"),
        ("data.splits", "some", "data.splits must be folders by split, or none or null, got 'some'"),
        ("data.splits", {"test": "a"}, "data.splits must be folders by split, or none or null, got {'test': 'a'}"),
        ("data.splits", {"train": "a", "eval": "b"}, "data.splits must be folders by split, or none or null"),
        ("data.splits", {"train": "a", "test": 1}, "data.splits must be folders by split, or none or null"),
        ("data.splits", {"train": "a", "test": "a/"}, "data.splits must name another folder for each split"),
        ("data.source", "", "params.yaml: data.source must be a non-empty string, got ''"),
    ],
)
def test_a_mistake_is_reported_with_key_rule_and_value(tmp_path: Path, monkeypatch, key, value, message):
    monkeypatch.chdir(tmp_path)
    write_params(Path("params.yaml"), **{key: value})
    with pytest.raises(UserError) as error:
        load_params()
    assert message in str(error.value)


def test_on_and_off_are_words_and_not_what_yaml_makes_of_them(tmp_path: Path):
    file = tmp_path / "params.yaml"
    for word in ("on", "off", "auto"):
        file.write_text((ROOT / "params.yaml").read_text().replace("trunk_cache: auto", f"trunk_cache: {word}"))
        assert load_params(file).fine_tune.trunk_cache == word


def test_numbers_that_yaml_reads_as_text_are_numbers(tmp_path: Path):
    file = tmp_path / "params.yaml"
    write_params(file, **{"train_head.learning_rate": "1e-4"})
    assert load_params(file).train_head.learning_rate == 1e-4


def test_a_class_may_be_named_as_a_number_is(tmp_path: Path):
    file = tmp_path / "params.yaml"
    write_params(file, **{"gate.min_recall_of": {0: 0.5, "one": 1}})
    assert load_params(file).gate.min_recall_of == {"0": 0.5, "one": 1}


@pytest.mark.parametrize(
    ("text", "message", "advice"),
    [
        ("seed: 1 # \udce9", "not UTF-8", "save it as UTF-8"),
        ("", "must hold keys and values such as `seed: 1`, got nothing", "git checkout HEAD"),
        ("# seed: 1", "must hold keys and values such as `seed: 1`, got nothing", "git checkout HEAD"),
        ("- 1", "must hold keys and values such as `seed: 1`, got list", "git checkout HEAD"),
        ("seed", "must hold keys and values such as `seed: 1`, got str", "git checkout HEAD"),
        ("a: [", "not valid YAML: while parsing", "git checkout HEAD"),
        ("seed: 2020-13-45", "not valid YAML: month must be in 1..12", "git checkout HEAD"),
        ("seed: 1\nseed: 2\n", "not valid YAML: the key 'seed' appears twice", "keep one"),
        ("data:\n  source: a\n  source: b\n", "the key 'source' appears twice", "keep one"),
        ("[" * 3000, "nest", "git checkout HEAD"),
        ("- " * 3000, "nest", "git checkout HEAD"),
        ("seed: 1", "backbone is missing", "add it as in the committed params.yaml"),
        ("1: 2", "params.yaml: 1 is not a known key", "remove it"),
        ("train_head: {1: 2}", "params.yaml: train_head.1 is not a known key", "remove it"),
        ("null: 1", "params.yaml: null is not a known key", "remove it"),
    ],
)
def test_a_file_that_is_no_params_file(tmp_path: Path, monkeypatch, capsys, text, message, advice):
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(text, errors="surrogateescape")
    assert cli.main(["check"]) == 1
    printed = capsys.readouterr().err
    assert "params.yaml: " in printed
    assert message in printed
    assert advice in printed


def test_dvc_can_override_one_key_after_another(tmp_path: Path):
    """DVC writes the file anew each time; comments in some places it does not survive."""
    file = tmp_path / "params.yaml"
    shutil.copy(ROOT / "params.yaml", file)
    before = load_params(file).leaves()
    words = dict.fromkeys(("data.root", "data.text_column", "data.label_column", "prepare.group_by"), "word")
    words |= {"fine_tune.flip": "true", "fine_tune.ema": "0.9", "fine_tune.word_dropout": "0.5"}
    words |= {"fine_tune.learning_rate": "0.01", "fine_tune.label_smoothing": "0.5"}
    words |= {"fine_tune.refit": "true", "prepare.value_range": "[0,4095]", "data.splits": "none"}
    words |= {"fine_tune.crop": "0.5", "train_head.hidden": "[64,32]"}
    words |= {"train_head.dropout": "0.5", "train_head.weight_decay": "0.5"}
    words |= {"extract.depth": "half", "extract.resize": "crop", "backbone": "vgg16", "data.kind": "image"}
    words |= dict.fromkeys(("gate.min_accuracy", "gate.min_recall"), "0.5")
    words |= {"train_head.class_weight": "balanced", "fine_tune.class_weight": "balanced"}
    for key, value in before.items():
        others = {
            list: ["[source]", "[]"] if key == "data.watch" else ["[]", "[256]", "[64,32]", "[]"],
            type(None): [words.get(key, "64"), "null"],
        }
        others = others.get(type(value), [])
        for override in (*others, json.dumps(value)):
            apply_overrides(str(file), [f"{key}={override}"])
            assert load_params(file).leaves().keys() == before.keys()
    assert load_params(file).leaves() == before
    for override in ("+train_head.search.dropout=[0,0.5]", "+train_head.search.hidden=[[],[256]]"):
        apply_overrides(str(file), [override])
    assert load_params(file).train_head.search == {"dropout": [0, 0.5], "hidden": [[], [256]]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.source": "nowhere"}, "data.source 'nowhere' does not exist"),
        ({"data.source": "/dev/zero"}, "data.source '/dev/zero' is neither a regular file nor a folder"),
        ({"data.source": "/etc/passwd"}, "data.source '/etc/passwd' is of an unsupported kind; give the path of a"),
        ({"data.source": "s3://"}, "data.source s3://: no bucket after s3://"),
        ({"data.source": "https:///photos.zip"}, "data.source https:///photos.zip: no host after https://"),
        ({"data.source": "~/photos"}, f"data.source '~/photos': ~ is not expanded here; give '{Path.home()}/photos'"),
        ({"data.source": "photos", "data.root": "~"}, f"data.root '~': ~ is not expanded here; give '{Path.home()}'"),
        (
            {"data.source": "photos", "weights": "~/a.h5"},
            f"weights '~/a.h5': ~ is not expanded here; give '{Path.home()}",
        ),
        ({"data.source": "photos", "data.root": "nowhere"}, "data.root 'nowhere' is not a folder"),
        (
            {"data.source": "photos", "prepare.group_by": "("},
            "prepare.group_by must be a column of the manifest or a regular expression, got '(' (missing )",
        ),
        ({"data.source": "data"}, "data.source 'data' contains data/prepared/, where prepare writes"),
        ({"data.source": "photos", "weights": "imagenet"}, "weights file 'imagenet' does not exist"),
        (
            {"data.source": "photos", "extract.size": 16},
            "params.yaml: extract.size must be at least 32 for tiny, got 16",
        ),
        (
            {"data.source": "photos", "backbone": "resnet5"},
            "params.yaml: backbone 'resnet5' is unknown; did you mean 'resnet50'",
        ),
        ({"data.source": "photos"}, ""),
    ],
)
def test_the_command_also_checks_files_and_the_backbone(photos, monkeypatch, tmp_path, capsys, changes, message):
    monkeypatch.chdir(tmp_path)
    photos()
    Path("data/watched").mkdir(parents=True)
    write_params(Path("params.yaml"), **changes)
    assert cli.main(["check"]) == (1 if message else 0)
    assert message in capsys.readouterr().err


def test_a_missing_file(tmp_path: Path):
    with pytest.raises(UserError, match=r"run from the folder that holds params\.yaml"):
        load_params(tmp_path / "params.yaml")


def test_fine_tuning_computes_by_what_its_backbone_is_faster_with(tmp_path: Path):
    """Said before TensorFlow loads; what the user says wins."""
    code = """
import os, sys
sys.modules["tensorflow"] = sys.modules["keras"] = None  # who imports them fails
try:
    import pipeline.fine_tune
except ImportError:
    print(os.environ["TF_ENABLE_ONEDNN_OPTS"])
"""

    def used(backbone: str, **said: str) -> str:
        write_params(tmp_path / "params.yaml", backbone=backbone)
        env = {**os.environ, "PYTHONPATH": str(ROOT), **said}
        env = {key: value for key, value in env.items() if key != "TF_ENABLE_ONEDNN_OPTS" or key in said}
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, check=True)
        return done.stdout.decode().strip()

    assert [used("tiny"), used("mobilenetv2"), used("tiny", TF_ENABLE_ONEDNN_OPTS="1")] == ["0", "1", "1"]
