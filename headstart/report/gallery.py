"""The images that the page of results shows: errors, close calls, and where the network looks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from headstart import paths
from headstart.config import Params
from headstart.data.sources import open_source
from headstart.errors import ItemError, UserError
from headstart.evaluation import compare
from headstart.modalities.image.decode import decode, file_hash
from headstart.modalities.image.pixels import pixels, resize
from headstart.report.page import Thumbnails, data_address

# What is shown of each; the rest is counted.
WORST, PAIRS, OF_A_PAIR, UNSURE = 24, 6, 8, 16
WRONG_MAPS, RIGHT_MAPS, MAP_SIDE = 6, 4, 160  # ten images; pixels of the longer side


def predictions() -> tuple[pd.DataFrame, np.ndarray, list[str]]:
    """The images of the test split, the probabilities and the classes.

    Returns:
        A row an image: path, label, predicted, sure (the probability of predicted), own (that of label), actual and
        answer (the places of label and predicted among the classes); (N, n_classes); names.
    """
    side = compare.load(compare.WORKSPACE)
    places = {name: place for place, name in enumerate(side.classes)}
    table = side.predictions[["path", "label", "predicted"]].reset_index(drop=True)
    probabilities = side.predictions[[compare.PROBABILITY + name for name in places]].to_numpy(np.float64)
    table["actual"], table["answer"] = (table[name].map(places).to_numpy(int) for name in ("label", "predicted"))
    rows = np.arange(len(table))
    table["sure"], table["own"] = probabilities[rows, table.answer], probabilities[rows, table.actual]
    return table, probabilities, side.classes


def pictures(
    table: pd.DataFrame, probabilities: np.ndarray, classes: list[str], pairs: pd.DataFrame, params: Params
) -> dict[str, Any]:
    """worst, unsure, typical (pair and images) and looks, and in `problems` why some are without pictures."""
    wrong, problems = _wrong(table), []
    with ExitStack() as stack:
        try:
            source = stack.enter_context(open_source(params.data.source, params.data.root))
            read = _unchanged(source.read)
        except UserError as error:
            problems.append(str(error))
            read = _nothing
        thumb = Thumbnails(read)

        def shots(rows: pd.DataFrame) -> list[dict[str, Any]]:
            return [_shot(row, probabilities[row.Index], classes, thumb(row.path)) for row in rows.itertuples()]

        found: dict[str, Any] = {"worst": shots(wrong.head(WORST)), "unsure": shots(_unsure(table).head(UNSURE))}
        found["typical"] = [
            (pair, shots(wrong[(wrong.label == pair.label) & (wrong.predicted == pair.predicted)].head(OF_A_PAIR)))
            for pair in pairs[pairs.images > 1].head(PAIRS).itertuples()
        ]
        try:
            found["looks"], found["map_size"] = ([], "") if problems else _looks(table, read)
        except UserError as error:
            found["looks"], found["map_size"] = [], ""
            problems.append(str(error))
    return found | {"problems": problems}


def _nothing(path: str) -> bytes:
    raise ItemError("missing", "the images are not there")


def _unchanged(read: Callable[[str], bytes]) -> Callable[[str], bytes]:
    """`read` for images that are still those which were judged; ItemError for others."""
    manifest = pd.read_parquet(paths.MANIFEST, columns=["path", "file_hash"], filters=[("split", "==", "test")])
    hashes = dict(zip(manifest.path, manifest.file_hash, strict=True))

    def read_unchanged(path: str) -> bytes:
        data = read(path)
        if file_hash(data) != hashes.get(path):
            raise ItemError("changed", "its content is another")
        return data

    return read_unchanged


def _wrong(table: pd.DataFrame) -> pd.DataFrame:
    """The wrong answers, the surest first."""
    return table[table.label != table.predicted].sort_values("sure", ascending=False, kind="stable")


def _unsure(table: pd.DataFrame) -> pd.DataFrame:
    """The right answers, the least sure first."""
    return table[table.label == table.predicted].sort_values("sure", kind="stable")


def _shot(row: Any, probabilities: np.ndarray, classes: list[str], address: str) -> dict[str, Any]:
    """What is shown of an image; `top` has the most probable classes as a text."""
    first = np.argsort(-probabilities, kind="stable")[:5]
    top = ", ".join(f"{classes[place]} {100 * probabilities[place]:.1f} %" for place in first)
    return {**row._asdict(), "top": top, "address": address}


def _looks(table: pd.DataFrame, read: Callable[[str], bytes]) -> tuple[list[dict[str, Any]], str]:
    """The surest errors and right answers as sure, each of another class; with maps, and their size.

    Raises:
        UserError: where there is no model.
    """
    from headstart.report import attention  # TensorFlow
    from headstart.training import networks

    model, _ = networks.load(paths.MODEL)
    size = networks.image_size(model)
    right = _unsure(table)[::-1].drop_duplicates("label")
    shown = []
    for row in pd.concat([_wrong(table).head(WRONG_MAPS), right.head(RIGHT_MAPS)]).itertuples():
        try:
            data = read(row.path)
            shown.append((row, data, resize(pixels(data, size), size)))
        except ItemError:  # it has changed since
            continue
    if not shown:
        return [], ""
    asked = np.array([[row.answer, row.actual] for row, *_ in shown])
    maps = attention.maps(model, np.stack([image for *_, image in shown]), asked)
    looks = [
        {
            **row._asdict(),
            "plain": data_address(_sized(data)),
            "answered": _overlay(data, of_answer),
            "labelled": _overlay(data, of_label) if row.answer != row.actual else None,
        }
        for (row, data, _), (of_answer, of_label) in zip(shown, maps, strict=True)
    ]
    return looks, " x ".join(map(str, maps.shape[2:]))


def _sized(data: bytes) -> Image.Image:
    """The image, its longer side MAP_SIDE, also where it is smaller."""
    image = decode(data)
    width, height = (max(round(side * MAP_SIDE / max(image.size)), 1) for side in image.size)
    return image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)


def _overlay(data: bytes, spoken: np.ndarray) -> str:
    """The image in grey under a wash of red and yellow where `spoken`, (h, w) in [0, 1], is high; its address."""
    image = _sized(data).convert("L")
    heat = np.asarray(Image.fromarray(spoken).resize(image.size, Image.Resampling.BICUBIC))[..., None].clip(0)
    strength = heat / max(float(heat.max()), np.finfo(np.float32).tiny)
    colour = np.concatenate(
        [np.full_like(strength, 255), 255 * np.clip(1.6 * strength - 0.5, 0, 1), np.full_like(strength, 30)], axis=-1
    )
    grey = np.asarray(image, np.float32)[..., None]
    return data_address(Image.fromarray(np.uint8(grey * (1 - 0.75 * strength) + 0.75 * strength * colour)))
