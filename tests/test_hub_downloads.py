"""Downloads of backbones by the clients that users have, from a server on this machine; see `hub_server.py`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("keras_hub", exc_type=ImportError)
from hub_server import COMMIT, LATER, Hub, serve
from reference_models import write_model, write_preset
from text_models import write_bert

from headstart.backbones import BACKBONES, get_backbone, hub_files
from headstart.backbones.hub_downloads import STAGING
from headstart.backbones.hub_files import LOCK
from headstart.errors import UserError

VIT, BERT, PRESET = "owner/vit", "owner/bert", "clip_vit_base_patch32"
HANDLE = "keras/clip/keras/clip_vit_base_patch32/3"


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, dict[str, bytes]]:
    folder = tmp_path_factory.mktemp("models")
    made = {VIT: write_model("vit", folder / "vit"), BERT: write_bert(folder / "bert")}
    made[PRESET] = write_preset("clip", folder / "clip")
    return {
        name: {str(file.relative_to(place)): file.read_bytes() for file in place.rglob("*") if file.is_file()}
        for name, place in made.items()
    }


@pytest.fixture
def hub(monkeypatch, tmp_path, models):
    with serve(monkeypatch, tmp_path) as hub:
        hub.files = {VIT: dict(models[VIT]), BERT: dict(models[BERT])}
        hub.kaggle = {HANDLE: dict(models[PRESET])}
        yield hub


def folder_of(tmp_path: Path, repository: str) -> Path:
    return tmp_path / "keras" / "models" / repository.replace("/", "--")


def asked_for(hub: Hub, name: str) -> list[str]:
    return [line for line in hub.asked if name in line and line.startswith("GET")]


@pytest.mark.parametrize("repository", [VIT, BERT])
def test_files_of_hugging_face_are_downloaded_once_and_locked(hub, tmp_path, repository):
    folder = get_backbone(f"hf:{repository}").fetch()
    assert folder == folder_of(tmp_path, repository)
    known = hub_files.read_lock(folder)
    for name, about in known.items():
        content = hub.files[repository].get(name)
        assert about == {"revision": COMMIT, "sha256": content and hashlib.sha256(content).hexdigest()}
        assert content is None or (folder / name).read_bytes() == content
    assert {"config.json", "model.safetensors", "preprocessor_config.json"} <= set(known)
    assert not (folder / STAGING).exists()
    hub.commits[repository] = LATER  # a newer one is not looked for
    hub.asked.clear()
    assert get_backbone(f"hf:{repository}").fetch() == folder
    assert hub.asked == []


def test_a_later_download_takes_the_revision_of_the_first(hub):
    row = get_backbone(f"hf:{VIT}")  # for which its config is downloaded
    hub.commits[VIT] = LATER
    row.fetch()
    assert asked_for(hub, "model.safetensors") == [f"GET /{VIT}/resolve/{COMMIT}/model.safetensors"]
    known = row.identify("pretrained", 32, 0)
    assert f"{COMMIT} {hashlib.sha256(hub.files[VIT]['model.safetensors']).hexdigest()}" in known


def test_a_revision_pins_what_is_downloaded(hub, tmp_path, models):
    """By a tag, which is no other one later, or by a commit; beside what stands without a revision."""
    hub.commits[f"{VIT}@v1"] = LATER
    other = {**models[VIT], "model.safetensors": models[VIT]["model.safetensors"] + b" "}
    hub.files[f"{VIT}@{LATER}"] = other
    known = set()
    for revision, files, commit in ((f"@{LATER}", other, LATER), ("@v1", other, LATER), ("", models[VIT], COMMIT)):
        row = get_backbone(f"hf:{VIT}{revision}")
        hub.commits[f"{VIT}@v1"] = COMMIT  # after the config was downloaded
        folder = row.fetch()
        assert folder == folder_of(tmp_path, f"{VIT}{revision}")
        assert (folder / "model.safetensors").read_bytes() == files["model.safetensors"]
        assert {about["revision"] for about in hub_files.read_lock(folder).values()} == {commit}
        known.add(row.identify("pretrained", 32, 0))
        hub.commits[f"{VIT}@v1"] = LATER
    assert len(known) == 3


def test_an_unknown_revision_is_one_message(hub):
    message = (
        r"(?s)hf:owner/vit@v9 are not .* \(404: owner/vit has no revision v9\)\..* at revision v9\n.*commit in full.*"
        r"https://huggingface\.co/owner/vit/commits/main"
    )
    with pytest.raises(UserError, match=message):
        get_backbone(f"hf:{VIT}@v9")
    for name in (f"hf:{VIT}@", f"hf:{VIT}@a@b", "hf:"):
        with pytest.raises(UserError, match=rf"backbone '{name}': expected hf:OWNER/NAME, or hf:OWNER/NAME@REVISION"):
            get_backbone(name)


def test_what_was_downloaded_is_the_network(hub, tmp_path):
    given, here = get_backbone(f"hf:{VIT}"), tmp_path / "here"
    write_model("vit", here)
    one, other = (row.build("pretrained", row.default_size, "avg", 0) for row in (given, get_backbone(str(here))))
    for first, second in zip(one.get_weights(), other.get_weights(), strict=True):
        assert np.array_equal(first, second)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "preprocessor_config.json"])
def test_a_changed_file_is_one_message(hub, name):
    row = get_backbone(f"hf:{VIT}")
    folder = row.fetch()
    (folder / name).write_bytes((folder / name).read_bytes() + b" ")
    with pytest.raises(UserError, match=rf"{name}: it has changed: its sha256 begins with .*; remove it, so that"):
        get_backbone(f"hf:{VIT}").fetch()
    assert row.identify("pretrained", 32, 0) is None or name.startswith("prep")
    (folder / name).unlink()
    assert row.fetch() == folder


def test_files_put_there_by_hand_are_recorded_at_first_use(hub, tmp_path):
    folder = folder_of(tmp_path, VIT)
    write_model("vit", folder)
    get_backbone(f"hf:{VIT}").fetch()
    assert hub.asked == []
    assert hub_files.read_lock(folder)["model.safetensors"]["revision"] == ""
    (folder / "model.safetensors").write_bytes(b"other")
    with pytest.raises(UserError, match=rf"model\.safetensors: it has changed.*yourself, delete .*{LOCK}; else remove"):
        get_backbone(f"hf:{VIT}").fetch()
    (folder / LOCK).unlink()
    assert get_backbone(f"hf:{VIT}").fetch() == folder
    assert hub.asked == []


def test_offline_the_message_says_which_files_go_where(hub, tmp_path, monkeypatch):
    from huggingface_hub import constants

    closed = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", closed)
    message = (
        r"the files of hf:owner/vit are not on this machine and could not be downloaded \(.*refused\)\.\n"
        r"  files:  model\.safetensors, config\.json, .*preprocessor_config\.json if it has one\n"
        rf"  folder: {folder_of(tmp_path, VIT)} .*\n.*headstart backbones"
    )
    with pytest.raises(UserError, match=message):
        get_backbone(f"hf:{VIT}")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "preprocessor_config.json"])
def test_an_interrupted_download_goes_on(hub, models, name):
    hub.halved = {name}
    folder = get_backbone(f"hf:{VIT}").fetch()
    assert (folder / name).read_bytes() == models[VIT][name]
    assert any("bytes=" in line for line in asked_for(hub, name))  # the second half alone


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "preprocessor_config.json"])
def test_half_a_file_is_not_taken_for_a_whole_one(hub, tmp_path, models, name):
    hub.broken, folder = {name}, folder_of(tmp_path, VIT)
    for _ in range(2):
        with pytest.raises(UserError, match=rf"(?s)could not be downloaded \(.+files: .*{name}"):
            get_backbone(f"hf:{VIT}").fetch()
        assert not (folder / name).exists()
    hub.broken = set()
    get_backbone(f"hf:{VIT}").fetch()
    assert (folder / name).read_bytes() == models[VIT][name]


def test_a_file_with_another_sha256_is_not_kept(hub, tmp_path, monkeypatch):
    hub.tags["model.safetensors"] = "0" * 64  # what the server says of it
    message = r"model\.safetensors, as it was downloaded, is not the file of .*, expected {}; nothing was kept"
    with pytest.raises(UserError, match=message.format("00000000")):
        get_backbone(f"hf:{VIT}").fetch()
    hub.files["google-bert/bert-base-uncased"] = hub.files[BERT]  # whose sha256 the table has
    hub.tags.clear()
    with pytest.raises(UserError, match=message.format("68d45e23")):
        get_backbone("bert-base").fetch()
    assert not list((tmp_path / "keras").rglob("model.safetensors"))


def test_a_gated_repository_says_how_to_give_consent(hub, monkeypatch):
    hub.gated.add(VIT)
    message = r"(?s)consent is needed.*accept its licence at https://huggingface\.co/owner/vit, then set HF_TOKEN"
    with pytest.raises(UserError, match=message):
        get_backbone(f"hf:{VIT}")
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(UserError, match=r"(?s)403.*HF_TOKEN is set, but that account has no access"):
        get_backbone(f"hf:{VIT}")
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert (get_backbone(f"hf:{VIT}").fetch() / "model.safetensors").is_file()


def test_an_unknown_repository_is_one_message(hub, monkeypatch):
    for token in ("", hub.token):
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(
            UserError, match=r"(?s)40[14]: Hugging Face shows no repository owner/nothing.*Is the name r"
        ):
            get_backbone("hf:owner/nothing")


def test_pickles_and_weights_in_several_files_are_refused(hub):
    weights = hub.files[VIT].pop("model.safetensors")
    hub.files[VIT]["pytorch_model.bin"] = weights
    with pytest.raises(UserError, match=r"backbone 'hf:owner/vit': .* as a pickle \(pytorch_model\.bin\), which could"):
        get_backbone(f"hf:{VIT}").fetch()
    hub.files[VIT]["model.safetensors.index.json"] = b"{}"
    with pytest.raises(UserError, match=r"its weights are in several files"):
        get_backbone(f"hf:{VIT}").fetch()
    assert not asked_for(hub, "pytorch_model.bin")


def test_a_preset_comes_from_kaggle(hub, tmp_path, models):
    row = get_backbone(f"hub:{PRESET}")
    folder = row.fetch()
    for name in ("config.json", "model.weights.h5", "image_converter.json"):
        assert (folder / name).read_bytes() == models[PRESET][name]
    assert {about["revision"] for about in hub_files.read_lock(folder).values()} == {HANDLE}
    path = "/v1/models.ModelApiService/DownloadModelInstanceVersion"
    assert f"POST {path} {HANDLE} model.weights.h5" in hub.asked
    assert BACKBONES["clip-b32"].fetch() == folder  # the same files


def test_a_damaged_file_of_kaggle_does_not_come_back_from_the_cache_of_its_client(hub, tmp_path, models):
    """The file here and that in the cache are one and the same, under two names."""
    file = get_backbone(f"hub:{PRESET}").fetch() / "model.weights.h5"
    with file.open("r+b") as opened:
        opened.write(b"damage")
    with pytest.raises(UserError, match=r"model\.weights\.h5: it has changed: .*; remove it, so that it is downloaded"):
        get_backbone(f"hub:{PRESET}").fetch()
    file.unlink()
    get_backbone(f"hub:{PRESET}").fetch()
    assert file.read_bytes() == models[PRESET]["model.weights.h5"]


def test_half_a_file_of_kaggle_is_not_taken_for_a_whole_one(hub, tmp_path, models):
    hub.broken, folder = {"model.weights.h5"}, folder_of(tmp_path, PRESET)
    for _ in range(2):
        with pytest.raises(UserError, match=r"(?s)could not be downloaded .+; .+files:  model\.weights\.h5\n"):
            get_backbone(f"hub:{PRESET}").fetch()
        assert not (folder / "model.weights.h5").exists()
    hub.broken = set()
    get_backbone(f"hub:{PRESET}").fetch()
    assert (folder / "model.weights.h5").read_bytes() == models[PRESET]["model.weights.h5"]
    assert "bytes=" in asked_for(hub, "model.weights.h5")[-1]


def test_a_preset_comes_from_its_mirror_if_kaggle_refuses(hub, models):
    hub.gated.add(HANDLE)
    message = (
        r"(?s)Kaggle: 403.*; 401: Hugging Face shows no repository keras/clip_vit.*accept its licence at "
        r"https://www\.kaggle\.com/models/keras/clip, then set KAGGLE_API_TOKEN"
    )
    with pytest.raises(UserError, match=message):
        get_backbone(f"hub:{PRESET}")
    hub.files[f"keras/{PRESET}"] = models[PRESET]
    folder = get_backbone(f"hub:{PRESET}").fetch()
    assert {about["revision"] for about in hub_files.read_lock(folder).values()} == {COMMIT}


def test_a_preset_that_does_not_exist(hub):
    with pytest.raises(UserError, match=r"KerasHub has no preset 'clip_vit_base_patch33'; did you mean 'clip_vit_base"):
        get_backbone("hub:clip_vit_base_patch33")


def test_a_damaged_lock_is_one_message(hub):
    folder = get_backbone(f"hf:{VIT}").fetch()
    for content in ("{", "[]", json.dumps({"files": {"config.json": {}}})):
        (folder / LOCK).write_text(content)
        with pytest.raises(UserError, match=rf"{LOCK}: not readable .*; delete .*, so that all is downloaded again"):
            get_backbone(f"hf:{VIT}")


def test_the_revision_of_a_row_is_asked_for(hub):
    row = BACKBONES["distilbert"]
    hub.files[row.origin.place[3:]] = hub.files[BERT]
    loose = dataclasses.replace(row, origin=dataclasses.replace(row.origin, sha256=""))
    folder = loose.fetch()
    assert all(row.origin.revision in line for line in asked_for(hub, "resolve"))
    assert row.origin.revision in str(loose.identify("none", 16, 0))
    assert hub_files.read_lock(folder)["model.safetensors"]["revision"] == row.origin.revision
