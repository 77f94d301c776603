"""Whether what was chosen on train and val is trained on both before it is shipped."""

from __future__ import annotations

import pandas as pd

MAX_REFITTED = 5000  # examples of train and val


def choose_refit(asked: bool | None, examples: pd.DataFrame) -> bool:
    """Return what was asked for; by default whether these are few examples.

    A val split that comes with the data is kept apart, unless its owner says otherwise.

    Args:
        examples: of train and val.
    """
    if asked is not None:
        return asked
    return len(examples) <= MAX_REFITTED and not examples.given[examples.split == "val"].any()
