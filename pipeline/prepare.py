"""Decide what is learned from: which files are images, and which split each is in, once and for all.

Reads:   the data source.
Writes:  data/prepared/manifest.parquet, a row an image: image_id (sha256 of the file's bytes), path (inside the
         source), label, split (train, val, test), width, height (pixels, int32), sorted by path;
         classes.json, the labels in the order of the model's outputs; quarantine.csv (path, label, reason), what was
         left out; metrics/prepare.json.
Params:  seed, data.source, prepare.
Command: python -m pipeline.prepare
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from pipeline import paths, stage
from pipeline.errors import UserError
from pipeline.images import ImageError, decode, image_id
from pipeline.layouts import Item, list_items
from pipeline.outputs import Outputs
from pipeline.params import Params
from pipeline.sources import open_source

SPLITS = ("train", "val", "test")
SHOWN = 5  # of many wrong files, in a message


def inspect(items: list[Item], read: Callable[[str], bytes]) -> pd.DataFrame:
    """Read and decode every image: columns path, label, split, image_id, width, height, reason.

    `reason` is why a file cannot be used, or an empty text; width and height are 0 then.
    """

    def look(item: Item) -> tuple[str, str, str | None, str, int, int, str]:
        content, width, height, reason = "", 0, 0, ""
        try:
            data = read(item.path)
            content = image_id(data)
            width, height = decode(data).size
        except ImageError as error:
            reason = str(error)
        return item.path, item.label, item.split, content, width, height, reason

    def progress(rows: Iterator[tuple[object, ...]]) -> Iterator[tuple[object, ...]]:
        return iter(tqdm(rows, total=len(items), desc="prepare", unit=" images", disable=None))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        rows = list(progress(pool.map(look, items)))
    return pd.DataFrame(rows, columns=["path", "label", "split", "image_id", "width", "height", "reason"])


def quarantine_duplicates(images: pd.DataFrame) -> pd.DataFrame:
    """The same table with a reason at every copy of an image that is kept elsewhere.

    Of equal files one is kept: that of the test split, else of val, else the first path. Equal files under different
    labels are all left out, since one of the labels is wrong and none is known to be right.
    """
    good = images[images.reason == ""]
    groups = good.groupby("image_id")
    contradictory = groups.label.transform("nunique") > 1
    rank = good.split.map({"test": 0, "val": 1}).fillna(2)
    ordered = good.assign(rank=rank).sort_values(["rank", "path"])
    kept = ordered.groupby("image_id").path.transform("first").reindex(good.index)
    labels = groups.label.transform(lambda column: ", ".join(sorted(set(column))))
    images = images.copy()
    copies = good.index[(kept != good.path) & ~contradictory]
    images.loc[copies, "reason"] = "duplicate of " + kept[copies]
    images.loc[good.index[contradictory], "reason"] = "the same image under the labels " + labels[contradictory]
    return images


def split_of(image: str, seed: int, val_fraction: float, test_fraction: float) -> str:
    """The split of the image with this id, by a seeded hash: it depends on no other image, so it never changes.

    The rule of TensorFlow Hub's retrain.py, on the content instead of the file's name.
    """
    position = int.from_bytes(hashlib.sha256(f"{seed}:{image}".encode()).digest()[:8], "big") / 2**64
    if position < test_fraction:
        return "test"
    return "val" if position < test_fraction + val_fraction else "train"


def assign_splits(images: pd.DataFrame, seed: int, val_fraction: float, test_fraction: float) -> pd.Series:
    """The split of every image: the source's own where it has any; a val or test that it lacks is cut from train."""
    given = set(images.split.dropna())
    val_fraction = 0.0 if "val" in given else val_fraction
    test_fraction = 0.0 if "test" in given else test_fraction
    drawn = images.image_id.map(lambda image: split_of(image, seed, val_fraction, test_fraction))
    return images.split.where(images.split.isin(["val", "test"]), drawn)


def check_classes(images: pd.DataFrame, classes: list[str]) -> None:
    """Every class must have an image in every split.

    Raises:
        UserError: naming the classes that have not, with what to do.
    """
    counts = pd.crosstab(images.label, images.split).reindex(index=classes, columns=list(SPLITS), fill_value=0)
    small = counts[(counts == 0).any(axis=1)]
    if small.empty:
        return
    lines = [
        f"  {name}: {', '.join(f'{row[split]} {split}' for split in SPLITS)}"
        for name, row in small.head(SHOWN).iterrows()
    ]
    more = f"\n  and {len(small) - SHOWN} more" if len(small) > SHOWN else ""
    raise UserError(
        f"{len(small)} of {len(classes)} classes are too small to be in train, val and test:\n"
        + "\n".join(lines)
        + more
        + "\nAdd images to them, leave them out, or give splits of your own (folders train/, val/, test/, or a "
        "manifest with a split column). Larger prepare.val_fraction and prepare.test_fraction help small classes."
    )


def check_readable(images: pd.DataFrame, source: str, max_bad_fraction: float) -> None:
    """Stop where more files than allowed cannot be read as images.

    Raises:
        UserError: naming the first of them, with what to do.
    """
    bad = images[images.reason != ""]
    if len(bad) <= max_bad_fraction * len(images):
        return
    lines = [f"  {row.path}: {row.reason}" for row in bad.head(SHOWN).itertuples()]
    more = f"\n  and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
    raise UserError(
        f"{source}: {len(bad)} of {len(images)} files cannot be read as images:\n"
        + "\n".join(lines)
        + more
        + f"\nMend or remove them, or let prepare leave them out: prepare.max_bad_fraction is {max_bad_fraction}, "
        f"{len(bad) / len(images):.4f} is needed."
    )


def main(params: Params, outputs: Outputs) -> None:
    """Run the stage."""
    manifest_file = outputs.path(paths.MANIFEST)
    listing = list_items(Path(params.data.source))
    with open_source(Path(params.data.source)) as source:
        images = inspect(listing.items, source.read)
    check_readable(images, params.data.source, params.prepare.max_bad_fraction)
    images = quarantine_duplicates(images)
    good = images[images.reason == ""].drop(columns="reason")
    good["split"] = assign_splits(good, params.seed, params.prepare.val_fraction, params.prepare.test_fraction)
    check_classes(good, listing.classes)

    columns = ["image_id", "path", "label", "split", "width", "height"]
    good[columns].astype({"width": "int32", "height": "int32"}).to_parquet(manifest_file, index=False)
    outputs.json(paths.CLASSES, listing.classes)
    ignored = pd.DataFrame(listing.ignored, columns=["path", "reason"])
    left_out = pd.concat([images[images.reason != ""], ignored]).reindex(columns=["path", "label", "reason"])
    outputs.csv(paths.QUARANTINE, left_out.sort_values("path"))
    counts = good.split.value_counts()
    outputs.json(
        paths.metrics("prepare"),
        {
            "images": {split: int(counts[split]) for split in SPLITS},
            "classes": len(listing.classes),
            "quarantined": len(left_out),
        },
    )
    print(
        f"prepare: {len(good)} images of {len(listing.classes)} classes: "
        + ", ".join(f"{counts[split]} {split}" for split in SPLITS)
        + (f"; {len(left_out)} files left out, see {paths.QUARANTINE}" if len(left_out) else "")
    )


if __name__ == "__main__":
    stage.run("prepare", main)
