"""The section `data` of params.yaml."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from headstart.validation import Float, Rule, Section

Text = Annotated[str, Field(min_length=1)]


def _check_watch(value: Any) -> Any:
    if not isinstance(value, list) or not set(map(str, value)) <= {"source", "weights"} or len(set(value)) < len(value):
        raise ValueError
    return value


def _check_splits(value: Any) -> Any:
    if isinstance(value, dict):
        folders = [folder.strip("/") if isinstance(folder, str) else "" for folder in value.values()]
        if "train" not in value or not set(value) <= {"train", "val", "test"} or not all(folders):
            raise ValueError
        if len(set(folders)) < len(folders):
            raise ValueError(f"must name another folder for each split, got {value!r}")
    elif value not in (None, "none"):
        raise ValueError
    return value


Watch = Annotated[list[str], BeforeValidator(_check_watch), Rule("a list of source and weights, or []")]
Splits = Annotated[dict[str, str] | str | None, BeforeValidator(_check_splits), Rule("folders by split, or none")]


class Data(Section):
    """Where the examples come from."""

    kind: Text | None
    """What an example is: image, text or audio; null: found in the source, by its files or the columns of its table."""
    source: Text
    """Class folders, train/val/test folders, a .zip or .tar of either, or a .csv or .parquet manifest: a path, or an
    s3://, gs:// or https:// address; or COCO annotations: a .json, or a folder that holds annotations and images; or
    texts: a .csv, .tsv, .parquet or .jsonl table, or a folder or archive of such. Of a manifest or a .json DVC watches
    that file alone: if images change, run `dvc repro --force prepare`, or set data.watch."""
    text_column: Text | None
    """The column of a table that holds the texts; null: found by the usual names: text, sentence, review, content,
    message and the like."""
    label_column: Text | None
    """The column of a table that holds the labels of texts; null: found by the usual names: label, category, class,
    intent, target and the like."""
    watch: Watch
    """What is looked at before each run, since DVC does not see it. source: files behind links to folders, and those
    that a manifest names; weights: the weights file, or a folder that is the backbone."""
    splits: Splits
    """Which folders or tables are the splits, e.g. {train: seg_train, test: seg_test}, or which words in the column
    split of a table; null: they are recognized by the usual words; none: there are none, the top folders are the
    classes."""
    root: Text | None
    """The folder or address that the paths in a manifest or in COCO annotations start from; null: the folder of the
    manifest, or the usual places beside the annotations."""
    coco: Literal["boxes", "images"]
    """What an example of COCO annotations is. boxes: each box, with its category as the label; images: each image whose
    annotations have one category, which is the label."""
    margin: Annotated[Float, Field(ge=0, le=10)]
    """What is added on each side of a box of COCO annotations, as a share of its longer side; it ends at the border of
    the image."""
