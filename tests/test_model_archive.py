"""Model files from anybody: bounded before they are unpacked, and refused by name if they hold code."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import keras
import pytest

from headstart import model_archive, zips
from headstart.errors import UserError
from headstart.model_archive import MAX_ABOUT_BYTES, MAX_MEMBERS, MAX_TEXT_BYTES, read_texts
from headstart.serving.model_file import load_classifier, read_model_info
from headstart.training import networks


@pytest.fixture(scope="module")
def members(tmp_path_factory) -> dict[str, bytes]:
    """What is in the file of a small model."""
    file = tmp_path_factory.mktemp("model") / "model.keras"
    networks.save(networks.build_head(4, 2, [3]), file, ["a", "b"], modality="image", size=32)
    assert networks.load(file)[1] == read_model_info(file).classes == ["a", "b"]
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(file: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file


def refused(file: Path, match: str) -> None:
    """Wherever models are opened: the first two for serve, predict, export and ood, networks.load for all else."""
    for opener in (read_model_info, load_classifier, networks.load, networks.load_classifier):
        with pytest.raises(UserError, match=match):
            opener(file)


@pytest.mark.parametrize(
    ("module", "kind", "config", "problem"),
    [
        ("keras.layers", "Lambda", {"name": "evil"}, "'evil' is a Lambda, which holds code"),
        (None, "__lambda__", {"value": "4wEA"}, "is a __lambda__, which holds code"),
        ("keras.layers", "TFSMLayer", {"filepath": "x"}, "TFSMLayer, which holds code"),
        ("keras.layers", "StringLookup", {"vocabulary": "/etc/passwd"}, "StringLookup, which reads files"),
        (None, "Pool", {}, "is the custom object Pool"),
        ("shop.layers", "Pool", {}, r"the custom object shop\.layers\.Pool"),
        ("os", "function", "system", "the function system of os"),
        ("keras.utils", "function", "get_file", r"the function get_file of keras\.utils"),
        ("keras.models", "function", "load_model", r"the function load_model of keras\.models"),
        ("keras", "config", {}, r"the custom object keras\.config"),
        ("keras.src.saving.saving_lib", "x", {}, r"the custom object keras\.src\.saving"),
        ("builtins", "eval", {}, r"the custom object builtins\.eval"),
        ([], "Dense", {}, r"the custom object \[\]\.Dense"),
    ],
)
def test_a_model_that_carries_code_is_refused_by_name(tmp_path, members, module, kind, config, problem):
    model = json.loads(members["config.json"])
    model["config"]["layers"].insert(1, {"module": module, "class_name": kind, "config": config})
    file = write(tmp_path / "evil.keras", {**members, "config.json": json.dumps(model).encode()})
    refused(file, rf"evil\.keras: the layer .*{problem}.*Build it from layers of Keras alone")


def test_a_lambda_as_keras_saves_it(tmp_path):
    image = keras.Input((2,))
    keras.Model(image, keras.layers.Lambda(lambda x: x + 1)(image)).save(tmp_path / "evil.keras")
    refused(tmp_path / "evil.keras", "the layer 'lambda' is a Lambda, which holds code; such a model is not opened")


def with_units(members: dict[str, bytes], units: int) -> dict[str, bytes]:
    """The same file, but the config asks for a wider hidden layer."""
    model = json.loads(members["config.json"])
    layers = {layer["config"]["name"]: layer for layer in model["config"]["layers"]}
    layers["hidden_1"]["config"]["units"] = units
    layers["logits"]["build_config"] = {"input_shape": [None, units]}
    return {**members, "config.json": json.dumps(model).encode()}


def test_a_config_that_asks_for_more_weights_than_there_are_is_refused_before_they_are_made(
    tmp_path, members, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    file = write(tmp_path / "model.keras", members)
    assert load_classifier(file).classes == ["a", "b"]
    write(file, with_units(members, 10**6))
    with monkeypatch.context() as patch:
        patch.setattr(keras.models, "load_model", None)
        for opener in (load_classifier, networks.load_classifier):
            with pytest.raises(UserError, match=r"its config asks for 7,000,002 weights, but the file holds"):
                opener(file)
        write(file, with_units(members, 10**12))
        with pytest.raises(UserError, match=r"model\.keras: its config asks for 7,000,000,000,002 weights, but the"):
            load_classifier(file)
        write(file, with_units(members, -1))
        with pytest.raises(UserError, match="is not a model of this pipeline"):
            load_classifier(file)


def test_the_model_that_dvc_lock_records_is_trusted(tmp_path, members, monkeypatch):
    """Counting its weights takes as long as loading it."""
    monkeypatch.chdir(tmp_path)
    file = write(tmp_path / "model.keras", members)
    out = {"path": "model.keras", "md5": hashlib.md5(file.read_bytes()).hexdigest()}
    Path("dvc.lock").write_text(json.dumps({"stages": {"fine_tune": {"outs": [out]}}}))
    monkeypatch.setattr(networks, "check_weights", None)
    assert load_classifier(file).classes == ["a", "b"]


@pytest.mark.parametrize("size", [0, 4097, 10**9])
def test_the_size_of_examples_is_bounded(tmp_path, members, size):
    about = {**json.loads(members["headstart.json"]), "size": size}
    file = write(tmp_path / "model.keras", {**members, "headstart.json": json.dumps(about).encode()})
    for opener in (read_model_info, load_classifier):
        with pytest.raises(UserError, match=rf"not a model of this pipeline \(its size is {size}, not in \[1, 4096\]"):
            opener(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes.json": b" " * (MAX_TEXT_BYTES + 1)}, r"its classes\.json has more than 16 MiB"),
        ({"config.json": b" " * (MAX_TEXT_BYTES + 1)}, r"its config\.json has more than 16 MiB"),
        ({"headstart.json": b" " * (MAX_ABOUT_BYTES + 1)}, r"its headstart\.json has more than 64 MiB|unpacks to more"),
        ({"headstart.json": b"[" * 10**5}, "not a model of this pipeline"),
        ({"config.json": b'{"a":' * 10**5}, "not a model of this pipeline"),
        ({"assets/x": bytes(2**26 + 1)}, "it unpacks to more than 64 MiB, which networks do not"),
        ({f"assets/{number}": b"" for number in range(MAX_MEMBERS)}, "more than 1,000 members"),
        ({"classes.json": b"{"}, "not a model of this pipeline"),
        ({"classes.json": b"5"}, "not a model of this pipeline"),
    ],
)
def test_what_is_unpacked_is_bounded(tmp_path, members, monkeypatch, change, message):
    file = write(tmp_path / "bomb.keras", members | change)
    if any(len(content) > MAX_TEXT_BYTES for content in change.values()):
        monkeypatch.setattr(zipfile.ZipFile, "read", None)  # before anything is read
    refused(file, message)


def test_a_model_with_a_tokenizer_of_many_languages_is_read(tmp_path):
    """That of XLM-RoBERTa has 17 MB, and quotes and accents in it are escaped."""
    tokenizer = "\N{CJK UNIFIED IDEOGRAPH-4E2D}" * 6 * 10**6
    about = {"modality": "image", "size": 32, "reading": {"tokenizer": tokenizer}}
    networks.save(networks.build_head(4, 2, [3]), tmp_path / "model.keras", ["a", "b"], **about)
    assert read_texts(tmp_path / "model.keras")["headstart.json"] == about


def test_a_member_that_is_there_twice_is_refused(tmp_path, members):
    file = write(tmp_path / "twice.keras", members)
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(file, "a") as archive:
        archive.writestr("config.json", members["config.json"])
    refused(file, "it has two members of the same name")


# 70,000 are more than the end record can say without zip64.
@pytest.mark.parametrize("count", [100, pytest.param(70_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("comment", [b"", b"text"])
def test_members_are_counted_before_they_are_listed(tmp_path, monkeypatch, comment, count):
    file = tmp_path / "many.zip"
    with zipfile.ZipFile(file, "w") as archive:
        for number in range(count):
            archive.writestr(zipfile.ZipInfo(f"{number}"), b"")
        archive.comment = comment
    with zips.open_zip(file, count) as archive:
        assert len(archive.namelist()) == count
    monkeypatch.setattr(zipfile, "ZipFile", None)
    with pytest.raises(zipfile.BadZipFile, match=f"more than {count - 1:,} members"):
        zips.open_zip(file, count - 1)


def test_what_is_not_of_this_pipeline_is_read_too(tmp_path, members):
    del members["headstart.json"]
    assert read_texts(write(tmp_path / "head.keras", members)).keys() == {"config.json", "classes.json"}
    assert model_archive.ABOUT == "headstart.json"


def test_only_names_that_keras_reads_as_archives_are_opened(tmp_path, members):
    """Keras goes by the suffix: a file that is HDF5 and, at its end, a zip would be looked through as another."""
    refused(write(tmp_path / "model.h5", members), "its name does not end in .keras")
