"""Which classes differ between two runs: added, removed, renamed, split or merged.

Names alone cannot tell a renamed class from a removed and an added one. The labels of the examples that both runs have
can: a class of one run corresponds to a class of the other if more than half of the shared examples of either, and at
least FEWEST, are of both. Classes that correspond one to one are the same, whatever their names; one that corresponds
to several was split; several that correspond to one were merged. A class without counterpart keeps its identity by its
name, as when the runs share no examples, else it was added or removed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from headstart.errors import readable

MOST = 0.5  # of the shared examples of a class: more than this share are of its counterpart too
FEWEST = 3  # shared examples that make two classes counterparts
NAMED = 20  # changes of one kind, and classes of one change, that a sentence names
KINDS = ("added", "removed", "renamed", "split", "merged", "regrouped")


class ClassChange(NamedTuple):
    """Classes of base that became classes of head; an empty side: they were added, or removed.

    Attributes:
        examples: how many shared examples are of these classes in both runs.
    """

    base: tuple[str, ...]
    head: tuple[str, ...]
    examples: int = 0

    @property
    def kind(self) -> str:
        """One of KINDS; `regrouped`: several became several others."""
        if not self.base or not self.head:
            return "removed" if self.base else "added"
        if len(self.base) == len(self.head) == 1:
            return "renamed"
        return "split" if len(self.base) == 1 else "merged" if len(self.head) == 1 else "regrouped"


@dataclass(frozen=True)
class ClassChanges:
    """How the classes of head differ from those of base; false if they do not.

    Attributes:
        known: the classes that both runs know: name in base to name in head, in the order of base.
        changes: everything else, and the renamed ones.
    """

    known: dict[str, str]
    changes: list[ClassChange] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.changes)

    def __str__(self) -> str:
        return describe_changes(self.records())

    def records(self) -> list[dict[str, Any]]:
        """Return the changes as JSON can hold them: change, base, head, examples."""
        return [
            {"change": change.kind, "base": list(change.base), "head": list(change.head), "examples": change.examples}
            for change in self.changes
        ]


def find_class_changes(
    base_classes: Sequence[str], base_labels: pd.Series, head_classes: Sequence[str], head_labels: pd.Series
) -> ClassChanges:
    """Compare the classes of two runs.

    Args:
        base_classes: names of the classes that base knows; `head_classes` likewise.
        base_labels: labels by item_id, each of them once; `head_labels` likewise.
    """
    shared = base_labels.index.intersection(head_labels.index)
    pairs = pd.DataFrame({"base": base_labels[shared].to_numpy(), "head": head_labels[shared].to_numpy()})
    known: dict[str, str] = {}
    changes = []
    for bases, heads, examples in _counterparts(pairs):
        if len(bases) == len(heads) == 1:
            known[bases[0]] = heads[0]
        if not bases == heads == bases[:1]:
            changes.append(ClassChange(bases, heads, examples))
    from_base = {*known, *(name for change in changes for name in change.base)}
    from_head = {*known.values(), *(name for change in changes for name in change.head)}
    removed = [name for name in base_classes if name not in from_base]
    added = [name for name in head_classes if name not in from_head]
    same = set(removed) & set(added)
    known |= {name: name for name in same}
    changes += [ClassChange((name,), ()) for name in removed if name not in same]
    changes += [ClassChange((), (name,)) for name in added if name not in same]
    return ClassChanges({name: known[name] for name in base_classes if name in known}, changes)


def _counterparts(pairs: pd.DataFrame) -> Iterator[tuple[tuple[str, ...], tuple[str, ...], int]]:
    """Groups of classes of base and of head that correspond, each sorted, and how many shared examples show it."""
    links = pairs.value_counts(["base", "head"], sort=False).rename("examples").reset_index()
    base_share, head_share = (
        links.examples / links.groupby(side).examples.transform("sum") for side in ("base", "head")
    )
    links["is_mutual"] = (base_share > MOST) & (head_share > MOST)
    links = links[((base_share > MOST) | (head_share > MOST)) & (links.examples >= FEWEST)]
    (rows, bases), (columns, heads) = (pd.factorize(links[side]) for side in ("base", "head"))
    size = len(bases) + len(heads)
    graph = coo_array((np.ones(len(links)), (rows, len(bases) + columns)), shape=(size, size))
    for _, group in links.groupby(connected_components(graph, directed=False)[1][rows]):
        names = [tuple(sorted(set(group[side]))) for side in ("base", "head")]
        # One class is part of another that comes from elsewhere for the most part: not the same class.
        if len(group) > 1 or group.is_mutual.all() or names[0] == names[1]:
            yield names[0], names[1], int(group.examples.sum())


def describe_changes(records: Sequence[dict[str, Any]]) -> str:
    """Return all changes in one line, such as `added: owl; renamed: cat -> feline (20 examples)`.

    Args:
        records: as `ClassChanges.records` returns them.
    """
    by_kind: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for record in records:
        sides = " -> ".join(name_classes(record[side]) for side in ("base", "head") if record[side])
        by_kind[record["change"]].append(sides + (f" ({record['examples']:,} examples)" if record["examples"] else ""))
    return "; ".join(f"{kind}: {_first(texts)}" for kind, texts in by_kind.items() if texts)


def name_classes(names: Sequence[str]) -> str:
    """Return the names of classes for a sentence, at most NAMED of them; line breaks and the like are escaped."""
    return _first([readable(name) for name in names])


def _first(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - NAMED:,} more" if len(texts) > NAMED else ""
    return ", ".join(texts[:NAMED]) + more
