"""Files of predictions: predictions/val.csv, predictions/test.csv, and any others with the same columns."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd

from headstart.errors import UserError

PROBABILITY = "p_"
ROUNDING = 0.02  # by which the sum of a row may differ from 1: a thousand rounded classes may lack 0.0005


def prediction_table(examples: pd.DataFrame, classes: list[str], probabilities: np.ndarray) -> pd.DataFrame:
    """Return a row per example: path, item_id, label, predicted, then the probability of each class as p_CLASS.

    Args:
        examples: rows of the manifest.
        probabilities: (N, n_classes), each row summing to 1.
    """
    predicted = np.array(classes)[probabilities.argmax(axis=1)]
    table = examples[["path", "item_id", "label"]].reset_index(drop=True).assign(predicted=predicted)
    columns = [f"{PROBABILITY}{name}" for name in classes]
    return pd.concat([table, pd.DataFrame(probabilities, columns=columns)], axis=1)


def classes_of(table: pd.DataFrame) -> list[str]:
    """Return the classes that a table of predictions has probabilities for."""
    return [name.removeprefix(PROBABILITY) for name in table if name.startswith(PROBABILITY)]


def parse_predictions(content: bytes, name: str) -> pd.DataFrame:
    """Parse a file of predictions: rows indexed by item_id, probabilities as float64.

    Args:
        name: what messages call the file.

    Raises:
        UserError: if the columns or their values are not those of `prediction_table`.
    """
    try:
        # A class can be named `nan` or `None`.
        types = dict.fromkeys(("item_id", "path", "label", "predicted"), str)
        table = pd.read_csv(io.BytesIO(content), dtype=types, keep_default_na=False).set_index("item_id")
        if not table.index.is_unique:
            raise ValueError("an item_id is there twice")
        table[["path", "label", "predicted"]]
        known = classes_of(table)
        probabilities = table[[PROBABILITY + label for label in known]].to_numpy(np.float64)
        if probabilities.shape[1] < 2 or not np.isfinite(probabilities).all():
            raise ValueError("probabilities of at least two classes are needed, all of them finite")
        if (probabilities < 0).any() or (abs(probabilities.sum(axis=1) - 1) > ROUNDING).any():
            raise ValueError("a row of probabilities is below 0, or does not sum to 1")
        for column in ("label", "predicted"):
            if not table[column].isin(known).all():
                raise ValueError(f"a {column} has no column of probabilities")
    except (ValueError, KeyError, UnicodeDecodeError) as error:
        raise UserError(
            f"{name}: not predictions: {' '.join(str(error).split())}; the columns must be path, item_id, label, "
            f"predicted and {PROBABILITY}CLASS for each class, as evaluate writes them"
        ) from error
    return table
