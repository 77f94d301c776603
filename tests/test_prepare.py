from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from conftest import SMALL, paint, run_stages, write_params
from test_corpus import picture

from headstart import paths
from headstart.errors import UserError


@pytest.fixture
def run(tmp_path: Path, monkeypatch) -> Callable[..., pd.DataFrame]:
    """Runs the stage on a source; returns the manifest."""
    monkeypatch.chdir(tmp_path)

    def call(source: Path, **changes) -> pd.DataFrame:
        write_params(Path("params.yaml"), **{**SMALL, "data.source": str(source), **changes})
        run_stages("prepare")
        return pd.read_parquet(paths.MANIFEST)

    return call


def test_the_manifest_has_a_row_per_image(run, photos):
    manifest = run(photos())
    assert list(manifest.columns) == [
        *("item_id", "path", "label", "split", "given", "group", "connected", "width", "height", "file_hash")
    ]
    assert len(manifest) == 48
    assert set(zip(manifest.width, manifest.height, strict=True)) == {(24, 20)}
    assert manifest.path.is_monotonic_increasing
    assert paths.CLASSES.read_text() == '[\n  "blue",\n  "green",\n  "red"\n]\n'


def test_everything_known_about_every_file_is_kept(run, photos):
    folder = photos()
    (folder / "red" / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut")
    shutil.copy(folder / "red" / "000.png", folder / "red" / "same.png")
    run(folder, **{"prepare.max_bad_fraction": 0.1})
    files = pd.read_parquet(paths.FILES).set_index("path")
    assert len(files) == 50
    assert set(files.columns) >= {"label", "split", "group", "reason", "detail", "item_id", "copies"}
    assert files.loc["red/cut.jpg", ["reason", "width"]].tolist() == ["truncated", 0]
    assert files.loc["red/same.png", "reason"] == "duplicate"
    assert files.copies["red/same.png"] == files.copies["red/000.png"] != files.copies["red/001.png"]
    good = files[files.reason == ""]
    assert set(zip(good.width, good.height, strict=True)) == {(24, 20)}
    assert files.brightness["red/000.png"] > 0
    assert files.sharpness["red/000.png"] > 0


def test_adding_and_renaming_images_moves_none_between_splits(run, photos):
    folder = photos()
    before = run(folder).set_index("item_id").split
    photos(count=30, first=16)
    (folder / "red" / "000.png").rename(folder / "red" / "zzz.png")
    after = run(folder).set_index("item_id").split
    assert len(after) == len(before) + 90
    assert (after[before.index] == before).all()


def test_the_fractions_hold_within_chance(run, photos):
    shares = run(photos(count=200)).split.value_counts(normalize=True)
    assert shares["test"] == pytest.approx(0.25, abs=0.06)
    assert shares["val"] == pytest.approx(0.25, abs=0.06)


def test_another_seed_gives_other_splits(run, photos):
    folder = photos()
    assert (run(folder).split != run(folder, seed=7).split).any()


def test_given_splits_are_kept_and_a_missing_val_is_cut_from_train(run, photos, tmp_path):
    folder = photos()
    rows = [
        (f"{label}/{index:03}.png", label, "test" if index < 4 else "train")
        for label in ("blue", "green", "red")
        for index in range(16)
    ]
    pd.DataFrame(rows, columns=["path", "label", "split"]).to_csv(folder / "list.csv", index=False)
    manifest = run(folder / "list.csv")
    assert (manifest[manifest.split == "test"].path.str[-7:-4].astype(int) < 4).all()
    assert (manifest.split == "test").sum() == 12
    assert (manifest.split == "val").any()
    assert (manifest.given == (manifest.split != "val")).all()  # val is not given


def test_drawn_splits_are_not_given_and_a_val_of_the_source_is(run, photos, tmp_path):
    assert not run(photos()).given.any()
    for split in ("train", "val", "test"):
        photos(f"own/{split}", count=8, first={"train": 0, "val": 8, "test": 16}[split])
    assert run(tmp_path / "own").given.all()


def test_bad_files_stop_the_stage_with_their_reasons(run, photos):
    folder = photos()
    (folder / "red" / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut")
    with pytest.raises(UserError, match=r"1 of 49 files cannot be used:\n  red/cut\.jpg: "):
        run(folder, **{"prepare.max_bad_fraction": 0.0})
    manifest = run(folder, **{"prepare.max_bad_fraction": 0.1})
    assert len(manifest) == 48
    assert pd.read_csv(paths.QUARANTINE).path.tolist() == ["red/cut.jpg"]


def test_a_spreadsheet_runs_no_name_of_the_quarantine(run, photos):
    folder = photos(count=4)
    (folder / "=1+1").mkdir()
    for number in range(4):
        paint(folder / "=1+1" / f"{number}.png", (9, 9, 9), number)
    (folder / "=1+1" / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut")
    manifest = run(folder, **{"prepare.max_bad_fraction": 0.1, "prepare.split": "exact"})
    assert pd.read_csv(paths.QUARANTINE).iloc[0, :2].tolist() == ["'=1+1/cut.jpg", "'=1+1"]
    assert "=1+1/0.png" in set(manifest.path)  # which stages read


def test_a_row_without_its_file_is_a_bad_file(run, photos):
    folder = photos(count=2)
    (folder / "list.csv").write_text("path,label\nred/000.png,red\nred/lost.png,blue\n")
    with pytest.raises(UserError, match=r"red/lost\.png: no such file"):
        run(folder / "list.csv")


def test_a_class_of_two_images_is_named_with_what_to_do(run, photos):
    folder = photos()
    for index in range(2):
        paint(folder / "rare" / f"{index}.png", (9, 9, 9), index)
    with pytest.raises(UserError) as error:
        run(folder)
    first, line, *advice = str(error.value).splitlines()
    assert first == "1 of 4 classes are not in each of train, val and test:"
    assert re.fullmatch("  rare: . train, . val, . test", line)
    assert advice[:2] == ["What can help:", "  - more examples of these classes, or none: leave them out"]
    assert "exact" not in str(error.value)  # which needs three


@pytest.mark.parametrize("split", ["hash", "exact"])
def test_a_class_of_near_copies_is_said_to_be_one(run, tmp_path, split):
    folder = tmp_path / "pictures"
    for label, first in (("cat", 100), ("dog", 200), ("rare", 0)):
        (folder / label).mkdir(parents=True)
        for index in range(15):
            number = index // 8 if label == "rare" else index
            picture(first + number, (90, 80)).save(folder / label / f"{index}.jpg", quality=80 + index)
    with pytest.raises(UserError) as error:
        run(folder, **{"prepare.split": split, "prepare.near_distance": 0.25})
    first, line, *advice = str(error.value).splitlines()
    assert first == "1 of 3 classes are not in each of train, val and test:"
    assert line.startswith("  rare: ")
    assert line.endswith("; its 15 different examples are 2 sets of near copies")
    reason = "fewer examples are then taken for near copies, which are never in two splits; 0: none"
    assert f"  - prepare.near_distance below 0.25: {reason}" in advice
    assert "prepare.split=exact" not in str(error.value)  # it would say the same
    assert "fraction" not in str(error.value)
    assert max(map(len, advice)) < 150
    assert len(run(folder, **{"prepare.split": "exact", "prepare.near_distance": 0})) == 45


def test_advice_speaks_only_of_the_fractions_that_are_used(run, photos, tmp_path):
    for split in ("train", "val"):
        photos(f"own/{split}", count=8, first={"train": 0, "val": 8}[split])
    (tmp_path / "own/val/red").rename(tmp_path / "own/val/Red")
    with pytest.raises(UserError) as error:
        run(tmp_path / "own")
    assert "'Red' and 'red' differ only in case or spaces" in str(error.value)
    assert "\n  - a larger prepare.test_fraction\n" in str(error.value)
    photos("own/test", count=8, first=16)
    with pytest.raises(UserError) as error:
        run(tmp_path / "own")
    assert "fraction" not in str(error.value)
    assert "prepare.split=exact" not in str(error.value)


def test_how_the_source_was_read_is_told(run, photos, tmp_path, capsys):
    photos("set/seg_train")
    photos("set/seg_test", first=16)
    run(tmp_path / "set")
    assert "prepare: seg_test is the split test; seg_train is the split train\n" in capsys.readouterr().out


def test_exact_fractions_of_few_groups_end_in_a_message(run, photos):
    """Two groups fill two splits."""
    with pytest.raises(UserError, match=r"3 of 3 classes are not in each .*\n  blue: 10 train, 6 val, 0 test\n"):
        run(photos(), **{"prepare.split": "exact", "prepare.group_by": r"/(0[01])"})


def test_odd_names_of_classes_and_files_are_shown_in_one_line(run, photos):
    folder = photos()
    paint(folder / "new\nline" / "0.png", (9, 9, 9), 1)
    with pytest.raises(UserError, match=r"\n  'new\\nline': 1 train"):
        run(folder)
    (folder / "new\nline" / "0.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"\n  'new\\nline/0\.png': not an image"):
        run(folder)


def test_names_in_any_script(run, photos):
    folder = photos()
    paint(folder / "red" / "赤い 🌹\n1.png", (200, 40, 40), 77)
    assert "red/赤い 🌹\n1.png" in set(run(folder).path)


def test_images_without_a_group_are_counted(run, photos, capsys):
    run(photos(), **{"prepare.group_by": r"0\d\d"})
    assert "have no group" not in capsys.readouterr().out
    run(photos(), **{"prepare.group_by": r"(00\d)\.png"})
    assert "18 images have no group by prepare.group_by" in capsys.readouterr().out
