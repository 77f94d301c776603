"""What DVC does not see by itself is refused, told or watched: links to folders, files of manifests, weights files."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import pytest
import yaml
from conftest import ROOT, SMALL, make_project, paint, paint_classes, run_stages, write_params

from headstart import cli, paths
from headstart.config import load_params
from headstart.data.checks import check_files
from headstart.data.files import Folder
from headstart.data.watching import unwatched
from headstart.errors import UserError
from headstart.lockfile import Workspace, folder_md5, up_to_date_stages

WATCHED = paths.WATCHED / "source.json"


@pytest.fixture
def here(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    paths.WATCHED.mkdir(parents=True)
    return tmp_path


def look(source: str, item: str = "source", **changes: object) -> str:
    """What the command writes about it."""
    write_params(Path("params.yaml"), **{**SMALL, "data.source": source, "data.watch": [item], **changes})
    assert cli.main(["watch", item]) == 0
    return (paths.WATCHED / f"{item}.json").read_text()


def prepare(source: str, **changes: object) -> None:
    write_params(Path("params.yaml"), **{**SMALL, "data.source": source, **changes})
    run_stages("prepare")


def link_whole(folder: Path) -> Path:
    shutil.move(folder / "red", folder.parent / "pool")
    (folder / "red").symlink_to("../pool")
    return folder.parent / "pool/000.png"


def link_new_class(folder: Path) -> Path:
    paint_classes(folder.parent / "pool", first=50)
    (folder / "new").symlink_to("../pool/red")
    return folder.parent / "pool/red/050.png"


def link_inside_class(folder: Path) -> Path:
    paint_classes(folder.parent / "pool", first=50)
    (folder / "red/more").symlink_to(folder.parent / "pool/red")
    return folder.parent / "pool/red/050.png"


def link_val(folder: Path) -> Path:
    paint_classes(folder.parent / "pool", first=50)
    for name in ("red", "green", "blue"):
        (folder / "train").mkdir(exist_ok=True)
        (folder / name).rename(folder / "train" / name)
    (folder / "val").symlink_to("../pool")
    return folder.parent / "pool/red/050.png"


LINKS = [link_whole, link_new_class, link_inside_class, link_val]


@pytest.mark.parametrize("link", LINKS)
def test_links_to_folders_are_refused_with_both_ways_out(here, photos, capsys, link: Callable[[Path], Path]):
    link(photos())
    with pytest.raises(UserError) as error:
        prepare("photos")
    name = {"link_whole": "red", "link_new_class": "new", "link_inside_class": "red/more", "link_val": "val"}
    assert str(error.value) == (
        f"photos/{name[link.__name__]} is a link to a folder: DVC does not look behind such links, so that changed "
        "files there would go unnoticed. Give a folder that holds the files themselves as data.source, or have them "
        "watched: dvc exp run -S 'data.watch=[source]'"
    )
    assert not paths.MANIFEST.exists()
    capsys.readouterr()
    assert cli.main(["check"]) == 1  # before DVC starts
    assert capsys.readouterr().err == f"{error.value}\n"
    write_params(Path("params.yaml"), **{**SMALL, "data.source": "photos", "data.watch": ["source"]})
    assert cli.main(["check"]) == 0


@pytest.mark.parametrize("link", LINKS)
def test_what_is_behind_a_link_is_watched(here, photos, link: Callable[[Path], Path]):
    file = link(photos())
    before = look("photos")
    assert look("photos") == before
    prepare("photos", **{"data.watch": ["source"], "prepare.near_distance": 0.0})
    paint(file, (9, 9, 200), 77)
    changed = look("photos")
    assert changed != before
    paint(file.with_name("more.png"), (9, 9, 200), 78)
    more = look("photos")
    assert more not in (before, changed)
    file.unlink()
    assert look("photos") not in (before, changed, more)


def test_a_link_that_is_turned_elsewhere_is_noticed_by_its_content_alone(here, photos):
    folder = photos()
    link_whole(folder)
    before = look("photos")
    shutil.copytree("pool", "copy")
    (folder / "red").unlink()
    (folder / "red").symlink_to("../copy")
    assert look("photos") == before
    paint(Path("copy/000.png"), (1, 2, 3), 4)
    assert look("photos") != before
    Path("elsewhere").mkdir()
    shutil.move("photos", "elsewhere/photos")
    shutil.move("copy", "elsewhere/copy")
    after = look("elsewhere/photos")
    shutil.rmtree(".dvc")  # with what is cached
    assert look("elsewhere/photos") == after


def test_links_that_dvc_sees_are_no_reason_to_stop(here, photos):
    """Links to files, within the folder, and the folder itself."""
    folder = photos()
    shutil.move(folder / "red/000.png", "one.png")
    (folder / "red/000.png").symlink_to("../../one.png")
    (folder / "red/loop").symlink_to("..")
    Path("link").symlink_to("photos")
    prepare("link")
    assert cli.main(["check"]) == 0
    assert "a link to a folder that is listed elsewhere" in paths.IGNORED.read_text()


def test_files_of_a_manifest_are_told_or_watched(here, photos, capsys):
    folder = photos()
    rows = [f"{file.relative_to(folder)},{file.parent.name}" for file in sorted(folder.rglob("*.png"))]
    Path("list.csv").write_text("\n".join(["path,label", *rows]))
    prepare("list.csv", **{"data.root": "photos"})
    assert (
        "prepare: DVC watches list.csv, but not the files that it names; if those change, run `dvc repro "
        "--force prepare`, or have them watched: dvc exp run -S 'data.watch=[source]'\n"
    ) in capsys.readouterr().out
    before = look("list.csv", **{"data.root": "photos"})
    prepare("list.csv", **{"data.root": "photos", "data.watch": ["source"]})
    assert "watches" not in capsys.readouterr().out
    paint(folder / "red/not named.png", (1, 2, 3), 4)
    assert look("list.csv", **{"data.root": "photos"}) == before
    (folder / "red/000.png").unlink()
    missing = look("list.csv", **{"data.root": "photos"})
    paint(folder / "red/000.png", (1, 2, 3), 4)
    assert len({before, missing, look("list.csv", **{"data.root": "photos"})}) == 3


def test_an_archive_is_watched_as_dvc_does(here, photos):
    shutil.make_archive("set", "zip", photos())
    before = look("set.zip")
    shutil.make_archive("set", "zip", photos(count=17))
    assert look("set.zip") != before


def test_a_weights_file_is_told_or_watched(here):
    Path("my.weights.h5").write_bytes(b"one")
    write_params(Path("params.yaml"), weights="my.weights.h5")
    assert [*unwatched("weights", load_params())] == [
        "DVC does not watch the weights file my.weights.h5; if it changes, run `dvc repro --force extract`, or have it "
        "watched: dvc exp run -S 'data.watch=[weights]'"
    ]
    before = look("photos", "weights", weights="my.weights.h5")
    assert [*unwatched("weights", load_params())] == []
    Path("my.weights.h5").write_bytes(b"two")
    assert look("photos", "weights", weights="my.weights.h5") != before
    assert json.loads(look("photos", "weights")) == {"sha256": None}
    write_params(Path("params.yaml"))
    assert [*unwatched("weights", load_params())] == []


def test_a_folder_that_is_the_backbone_is_told_or_watched(here):
    Path("mine/assets").mkdir(parents=True)
    Path("mine/config.json").write_text("one")
    Path("mine/assets/vocabulary.txt").write_text("two")
    write_params(Path("params.yaml"), backbone="mine")
    assert [*unwatched("weights", load_params())] == [
        "DVC does not watch the folder mine, the backbone; if it changes, run `dvc repro --force extract`, or have it "
        "watched: dvc exp run -S 'data.watch=[weights]'"
    ]
    seen = {look("photos", "weights", backbone="mine")}
    assert [*unwatched("weights", load_params())] == []
    Path("mine/config.json").write_text("1")
    seen.add(look("photos", "weights", backbone="mine"))
    Path("mine/assets/vocabulary.txt").write_text("2")
    seen.add(look("photos", "weights", backbone="mine"))
    Path("mine/config.json").rename("mine/other.json")
    seen.add(look("photos", "weights", backbone="mine"))
    assert len(seen) == 4
    assert json.loads(look("photos", "weights", backbone="tinybert")) == {"sha256": None}


@pytest.mark.parametrize(
    ("item", "changes", "message"),
    [
        ("weights", {"weights": "nowhere.h5"}, "weights file 'nowhere.h5' does not exist"),
        ("source", {"data.source": "nowhere"}, "data.source 'nowhere' does not exist"),
    ],
)
def test_what_is_not_there_cannot_be_watched(here, capsys, item, changes, message):
    write_params(Path("params.yaml"), **changes)
    assert cli.main(["watch", item]) == 1
    assert message in capsys.readouterr().err
    assert list(paths.WATCHED.iterdir()) == []


def test_unchanged_files_are_not_read_again(here, photos, monkeypatch):
    folder = photos()
    for file in folder.rglob("*.png"):
        os.utime(file, (1_600_000_000, 1_600_000_000))
    before = look("photos")
    monkeypatch.setattr("headstart.data.files.Folder.read", lambda *_: pytest.fail("read"))
    assert look("photos") == before


def test_watching_loads_no_tensorflow_no_mlflow_and_no_dvc(here, photos):
    photos(count=1)
    write_params(Path("params.yaml"), **{"data.source": "photos"})
    slow = {"tensorflow", "keras", "mlflow", "dvc"}
    code = f"import sys; from headstart import cli; print(cli.main(['watch', 'source']), {slow} & set(sys.modules))"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "0 set()\n"


def test_what_is_watched_no_more_is_removed(here, photos):
    photos()
    look("photos")
    (paths.WATCHED / ".gitignore").touch()
    prepare("photos", **{"data.watch": []})
    assert [file.name for file in paths.WATCHED.iterdir()] == [".gitignore"]


def test_stages_are_up_to_date_with_what_was_watched(here):
    """By dvc.lock alone: a commit does not hold the files themselves."""
    outs = {"source.json": "a" * 32, "weights.json": "b" * 32}
    definition = {"cmd": "x", "deps": ["data/watched"], "outs": []}
    group = {"foreach": "${data.watch}", "do": {"cmd": "x ${item}", "outs": ["data/watched/${item}.json"]}}
    Path("dvc.yaml").write_text(yaml.safe_dump({"stages": {"watch": group, "prepare": definition}}))

    def current(watch: list[str], locked: dict[str, str]) -> list[str]:
        stages = {
            f"watch@{name.split('.')[0]}": {"cmd": "x", "outs": [{"path": f"data/watched/{name}", "md5": md5}]}
            for name, md5 in outs.items()
        }
        deps = [{"path": "data/watched", "md5": folder_md5(locked)}]
        stages["prepare"] = {"cmd": "x", "deps": deps, "outs": []}
        Path("dvc.lock").write_text(yaml.safe_dump({"stages": stages}))
        return up_to_date_stages(Workspace(), {"data": {"watch": watch}})

    assert current([], {}) == ["prepare"]
    assert current(["weights", "source"], outs) == ["prepare"]
    assert current(["source"], {"source.json": "a" * 32}) == ["prepare"]
    assert current(["source"], outs) == []
    assert current([], outs) == []
    assert current(["source"], {"source.json": "c" * 32}) == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda file: os.mkfifo(file), "a pipe, a socket or a device, for which DVC would wait forever; remove it"),
        (lambda file: socket.socket(socket.AF_UNIX).bind(file.name), "a pipe, a socket or a device"),
        (lambda file: (os.mkfifo("../../pipe"), file.symlink_to("../../pipe")), "a pipe, a socket or a device"),
        (lambda file: file.symlink_to("/dev/zero"), "a pipe, a socket or a device, for which DVC would wait forever"),
        (lambda file: file.symlink_to("nowhere"), "a link that leads nowhere, on which DVC fails; mend it, or"),
        (lambda file: file.symlink_to(file.name), "a link that leads nowhere, on which DVC fails; mend it, or remove"),
        (lambda file: Path(os.fsdecode(b"no\xff.png")).touch(), r"no\xff.png: its name is not UTF-8, which DVC needs"),
    ],
)
def test_check_refuses_what_dvc_would_hang_or_fail_on(here, photos, capsys, monkeypatch, make, message):
    folder = photos(count=2)
    write_params(Path("params.yaml"), **{"data.source": "photos"})
    assert cli.main(["check"]) == 0
    with monkeypatch.context() as patch:
        patch.chdir(folder / "red")
        make(Path("odd.png"))
    assert cli.main(["check"]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("photos/red/")
    assert message in printed
    if "remove all" in printed:
        subprocess.run(printed.split(": ")[-1], shell=True, check=True)
        assert cli.main(["check"]) == 0
        assert len(list(folder.rglob("*.png"))) == 6


def test_check_does_not_look_behind_links_as_dvc_does_not(here, photos):
    folder = photos(count=2)
    Path("pool").mkdir()
    os.mkfifo("pool/pipe")
    (folder / "red/more").symlink_to("../../pool")
    assert check_files("photos") == ["red/more"]
    assert look("photos")  # nor does this wait


def test_check_finds_the_links_that_prepare_finds(here, photos):
    folder = photos(count=2)
    for name in ("one", "two", "three"):
        paint(Path(f"pool/{name}/0.png"), (9, 9, 9), 1)
    for link, target in (
        *(("zebra", "pool/one"), ("red/again", "pool/one"), ("blue/b/deep", "pool/two"), ("blue/a", "pool/three")),
        *((".hidden", "pool/two"), ("green/up", "photos"), ("green/side", "photos/red")),
    ):
        (folder / link).parent.mkdir(exist_ok=True)
        (folder / link).symlink_to(Path(target).resolve())
    assert check_files("photos") == Folder(folder).scan().linked == ["zebra", "blue/a", "blue/b/deep"]


@pytest.fixture(scope="module")
def linked(tmp_path_factory):
    """A project with a linked class and a prepared data set."""
    root = tmp_path_factory.mktemp("linked") / "project"
    root.mkdir()
    project = make_project(root)
    shutil.move(root / "photos/red", root / "pool")
    (root / "photos/red").symlink_to("../pool")
    project.run("git add -A && git commit -qm linked")
    return project


@pytest.mark.slow
def test_dvc_runs_prepare_again_if_what_is_watched_has_changed(linked):
    output = linked.run("dvc repro prepare", code=None)
    assert "photos/red is a link to a folder" in output
    linked.run("dvc exp run -S 'data.watch=[source]' prepare")
    lock = yaml.safe_load((linked.root / "dvc.lock").read_text())["stages"]
    assert set(lock) == {"watch@source", "prepare"}
    linked.run("git add -A && git commit -qm watched")
    output = linked.run("dvc repro prepare")
    assert output.count("Running stage") == 1, output  # the one that looks
    assert linked.run("git status --porcelain") == ""
    paint(linked.root / "pool/000.png", (9, 9, 200), 77)
    assert linked.run("dvc repro prepare").count("Running stage") == 2
    linked.run("git add -A && git commit -qm changed")
    paint(linked.root / "pool/001.png", (9, 9, 200), 78)
    linked.run("git commit -qam 'another one'")
    output = linked.run("dvc exp run --temp prepare")
    assert output.count("Running stage") == 2, output


@pytest.mark.slow
def test_what_nobody_watches_any_more_leaves_nothing_behind(linked):
    """The entry in dvc.lock is that of a folder that was always empty."""
    linked.run("git checkout -q -- . && rm photos/red && mv pool photos/red")
    linked.set()
    linked.run("dvc repro prepare")
    lock = yaml.safe_load((linked.root / "dvc.lock").read_text())["stages"]
    assert next(dep for dep in lock["prepare"]["deps"] if dep["path"] == "data/watched")["md5"] == folder_md5({})
    assert linked.run("dvc status prepare").strip() == "Data and pipelines are up to date."
    assert [file.name for file in (linked.root / "data/watched").iterdir()] == [".gitignore"]
    assert "Running stage" not in linked.run("dvc repro prepare")


@pytest.mark.slow
def test_dvc_extracts_again_with_other_weights(linked):
    file = linked.root / "my.weights.h5"
    shutil.copy(ROOT / "headstart/backbones/weights/tiny.weights.h5", file)
    linked.set(**{"weights": file.name, "data.watch": ["weights"]})
    linked.run("dvc repro extract")
    assert linked.run("dvc repro extract").count("Running stage") == 1
    with h5py.File(file, "r+") as weights:
        arrays: list[h5py.Dataset] = []
        weights.visititems(lambda _, item: arrays.append(item) if isinstance(item, h5py.Dataset) else None)
        arrays[5][...] *= 1.5
    features = (linked.root / "features/train.npy").read_bytes()
    assert "Running stage 'extract'" in linked.run("dvc repro extract")
    assert (linked.root / "features/train.npy").read_bytes() != features
