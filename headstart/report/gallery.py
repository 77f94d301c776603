"""The test examples that the results page shows: errors, unsure answers, and what the network goes by."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from headstart import paths
from headstart.config import Params
from headstart.data.files import file_hash
from headstart.data.layouts import open_examples
from headstart.data.predictions import PROBABILITY, classes_of, parse_predictions
from headstart.data.prepared import load_manifest
from headstart.errors import ItemError, UserError
from headstart.modalities import load_modality
from headstart.report.rendering import Read, thumbnails

# What is shown of each; the rest is counted.
WORST, PAIRS, PER_PAIR, UNSURE = 24, 6, 8, 16
WRONG_MAPS, CORRECT_MAPS = 6, 4


def load_predictions() -> tuple[pd.DataFrame, np.ndarray, list[str]]:
    """Read predictions/test.csv.

    Returns:
        A row per example: path, label, predicted, target and answer (the places of label and predicted among the
        classes), confidence (the probability of predicted), own (that of label); (N, n_classes) probabilities; classes.

    Raises:
        UserError: if the file holds no predictions.
    """
    content = parse_predictions(paths.PREDICTIONS.read_bytes(), str(paths.PREDICTIONS))
    classes = classes_of(content)
    places = {name: place for place, name in enumerate(classes)}
    table = content[["path", "label", "predicted"]].reset_index(drop=True)
    probabilities = content[[PROBABILITY + name for name in classes]].to_numpy(np.float64)
    table["target"], table["answer"] = (table[name].map(places).to_numpy(int) for name in ("label", "predicted"))
    rows = np.arange(len(table))
    table["confidence"], table["own"] = probabilities[rows, table.answer], probabilities[rows, table.target]
    return table, probabilities, classes


def gallery(
    table: pd.DataFrame, probabilities: np.ndarray, classes: list[str], pairs: pd.DataFrame, params: Params
) -> dict[str, Any]:
    """Return worst, unsure, typical (pair and examples) and looks: what speaks for answers and labels.

    Their title is in `explains`, empty if the modality has none, and how to read them in `legend`. In `problems`: why
    some have no pictures.

    Args:
        table, probabilities, classes: as `load_predictions` returns them.
        pairs: the most frequent confusions first: label, predicted, examples.
    """
    wrong = table[table.label != table.predicted].sort_values("confidence", ascending=False, kind="stable")
    correct = table[table.label == table.predicted].sort_values("confidence", kind="stable")
    problems: list[str] = []
    modality = load_modality()
    with ExitStack() as stack:
        read = open_test_examples(params, stack, problems)
        thumbnail = thumbnails(read, modality)

        def shots(rows: pd.DataFrame) -> list[dict[str, Any]]:
            return [
                {**row._asdict(), "top": _top_classes(probabilities[row.Index], classes), "show": thumbnail(row.path)}
                for row in rows.itertuples()
            ]

        shown: dict[str, Any] = {"worst": shots(wrong.head(WORST)), "unsure": shots(correct.head(UNSURE))}
        shown["typical"] = [
            (pair, shots(wrong[(wrong.label == pair.label) & (wrong.predicted == pair.predicted)].head(PER_PAIR)))
            for pair in pairs[pairs.examples > 1].head(PAIRS).itertuples()
        ]
        shown |= {"explains": modality.explains, "looks": [], "legend": ""}
        if modality.explains and not problems:
            confident = correct[::-1].drop_duplicates("label")
            try:
                rows = pd.concat([wrong.head(WRONG_MAPS), confident.head(CORRECT_MAPS)])
                shown["looks"], shown["legend"] = _looks(rows, read)
            except UserError as error:
                problems.append(str(error))
    return shown | {"problems": problems}


def open_test_examples(params: Params, stack: ExitStack, problems: list[str]) -> Read:
    """Return what reads an example by its path as long as `stack` is open; ItemError if it is not the one tested.

    Without a source it always raises, and `problems` says why.
    """
    manifest = load_manifest()
    tested = manifest[manifest.split == "test"]
    hashes = dict(zip(tested.path, tested.file_hash, strict=True))
    try:
        source = stack.enter_context(open_examples(params.data, load_modality()))
    except UserError as error:
        problems.append(str(error))
        source = None

    def read(path: str) -> bytes:
        if source is None:
            raise ItemError("missing", "the data source is not there")
        data = source.read(path)
        if file_hash(data) != hashes.get(path):
            raise ItemError("changed", "its content has changed")
        return data

    return read


def _top_classes(probabilities: np.ndarray, classes: list[str]) -> str:
    first = np.argsort(-probabilities, kind="stable")[:5]
    return ", ".join(f"{classes[place]} {100 * probabilities[place]:.1f} %" for place in first)


def _looks(rows: pd.DataFrame, read: Read) -> tuple[list[dict[str, Any]], str]:
    """The examples in `rows` with the evidence for answer and label as HTML, and how to read that.

    Raises:
        UserError: if there is no model.
    """
    from headstart.report.attention import NetworkEvidence  # TensorFlow
    from headstart.training import networks

    classifier = networks.load_classifier(paths.MODEL)
    shown, files = [], []
    for row in rows.itertuples():
        try:
            files.append(read(row.path))
            shown.append(row)
        except ItemError:
            continue
    if not shown:
        return [], ""
    classes = np.array([[row.answer, row.target] for row in shown])
    explained = classifier.modality.explain(files, classifier.size, classes, NetworkEvidence(classifier))
    looks = []
    for row, pieces in zip(shown, explained.shown, strict=True):
        plain, answered, labelled = map(Markup, pieces)
        look = {"plain": plain, "answered": answered, "labelled": labelled if row.answer != row.target else None}
        looks.append(row._asdict() | look)
    return looks, explained.legend
