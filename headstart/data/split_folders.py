"""Which folders of a source are its splits: recognized by the usual names, or named by `data.splits`."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from functools import cache

from headstart.errors import UserError
from headstart.provenance import set_option

Splits = Mapping[str, str] | str | None  # see config.Data.splits
MAX_NAMES = 3  # in a message
_WORDS = {
    **dict.fromkeys(["train", "training", "trainval"], "train"),
    **dict.fromkeys(["val", "valid", "validation", "dev", "development"], "val"),
    **dict.fromkeys(["test", "testing"], "test"),
    # Beside a test split they are what val is called, else what test is called.
    **dict.fromkeys(["eval", "evaluation", "holdout"], "eval"),
}
_FILLERS = "sets?|images?|imgs?|data|datasets?|folders?|splits?|files?|photos?|pictures?|samples?|examples?"
_WORD = re.compile(f"(?:{_FILLERS})*({'|'.join(sorted(_WORDS, key=len, reverse=True))})(?:{_FILLERS})*")


def recognize(names: Iterable[str]) -> dict[str, str]:
    """Return those of `names` that are usual for splits, each with its split: train, val or test.

    Case, digits, separators and words such as `set` and `images` do not count. Other words do not, either, if they are
    the same in all, as in seg_train and seg_test.
    """
    groups: dict[tuple[str, ...], dict[str, str]] = defaultdict(dict)
    for name in names:
        kind, others = _parse(name)
        if kind:
            groups[others][name] = kind
    found = max(groups.values(), key=lambda group: len(set(group.values())), default={})
    eval_is = "val" if "test" in found.values() and "val" not in found.values() else "test"
    return {name: eval_is if kind == "eval" else kind for name, kind in found.items()}


@cache
def _parse(name: str) -> tuple[str | None, tuple[str, ...]]:
    """Return the kind of split that a name speaks of, and its other words."""
    words = re.findall(r"[^\W\d_]+", name.lower().replace("hold-out", "holdout").replace("hold_out", "holdout"))
    kinds, others = [], []
    for word in words:
        if match := _WORD.fullmatch(word):
            kinds.append(_WORDS[match[1]])
        elif not re.fullmatch(f"(?:{_FILLERS})+", word):
            others.append(word)
    return (kinds[0] if len(kinds) == 1 else None), tuple(others)


def find_splits(source: str, names: list[str], outer: str, splits: Splits) -> dict[str, str]:
    """Return the folders that are splits, each with a `/` at its end, and which split each is; none if there are none.

    Args:
        names: of the files.
        outer: the folder around all of them, with a `/` at its end, or an empty text.
        splits: data.splits.

    Raises:
        UserError: if the folders look like splits, but not which; or if there is nothing in one that `splits` names.
    """
    if splits == "none":
        return {}
    if isinstance(splits, Mapping):
        return _named(source, names, outer, splits)
    folders = _Folders(name[len(outer) :] for name in names)
    named = recognize(folders.tops)
    known = {top: split for top, split in named.items() if folders.classes[top]}
    others = [top for top in folders.tops if top not in named]
    kinds = set(known.values())
    train = {label for top, split in known.items() if split == "train" for label in folders.classes[top]}
    no_splits = set_option("data.splits", "none")
    if not known and not others and len(named) > 1:
        raise UserError(
            f"{source}: the folders {_list(named)} are named as splits, but hold no class folders; put a folder "
            f"for each class into them, or, if they are the classes: dvc exp run {no_splits}"
        )
    if len(kinds) > 1 and "train" not in kinds:
        raise UserError(
            f"{source}: split folders ({_list(known)}) beside {_list(others) or 'no train folder'}; give train and "
            "optionally val and test, with the class folders inside"
        )
    if train and (len(kinds) > 1 or not others) and not any(train.intersection(folders.classes[top]) for top in others):
        return {f"{outer}{folders.inside[top]}": split for top, split in known.items()}
    if shared := folders.shared():
        raise UserError(f"{source}: {_ask(folders, shared, named)}")
    if len(train) > 1 and not any(folders.flat[top] for top in known) and not any(map(folders.classes.get, others)):
        only_train = set_option("data.splits", {"train": next(iter(known))})
        raise UserError(
            f"{source}: {_list(known)} holds folders ({_list(sorted(train))}) as a split does, {_list(others)} does "
            f"not. If only the first is a split: dvc exp run {only_train}. If they are classes: dvc exp run {no_splits}"
        )
    return {}


class _Folders:
    """The top folders of a source and the folders in them.

    Attributes:
        tops: names of the top folders, sorted.
        inside: where the class folders of a top folder lie, e.g. `train/`, or `train/images/` if it holds that alone.
        classes: the folders there, by top folder, with their numbers of files.
        flat: number of files of a top folder that are in none of them.
    """

    def __init__(self, names: Iterable[str]) -> None:
        below: dict[str, list[str]] = defaultdict(list)
        for name in names:
            top, slash, rest = name.partition("/")
            if slash:
                below[top].append(rest)
        self.tops = sorted(below)
        self.inside = {}
        self.classes: dict[str, Counter[str]] = {}
        self.flat = {}
        for top, rests in below.items():
            prefix = ""
            while lone := self._lone_folder(rests, len(prefix)):
                prefix += f"{lone}/"
            self.inside[top] = f"{top}/{prefix}"
            labels = [rest[len(prefix) :].partition("/") for rest in rests]
            self.classes[top] = Counter(label for label, slash, _ in labels if slash)
            self.flat[top] = sum(not slash for _, slash, _ in labels)

    @staticmethod
    def _lone_folder(rests: list[str], start: int) -> str | None:
        """Return the only folder there if it has such a name as in train/images/cat and seg_train/seg_train/cat."""
        first = rests[0][start:].split("/", 1)[0]
        kind, others = _parse(first)
        is_around = kind or (not others and not first.isdecimal())
        return first if is_around and all(rest.startswith(f"{first}/", start) for rest in rests) else None

    def shared(self) -> list[str]:
        """Return the names that the folders in the top folders share, if that makes the top folders look like splits.

        They do if all of them but one at most hold two folders or more and most of their files there, and if at least
        half of these folders have names that others have, too.
        """
        holding = [top for top in self.tops if len(self.classes[top]) > 1]
        holding = [top for top in holding if self.classes[top].total() > self.flat[top]]
        counts = Counter(label for top in holding for label in self.classes[top])
        shared = {label for label, count in counts.items() if count > 1}
        if len(holding) < 2 or len(holding) < len(self.tops) - 1 or len(shared) < 2:
            return []
        mostly = all(2 * len(shared.intersection(self.classes[top])) >= len(self.classes[top]) for top in holding)
        return sorted(shared) if mostly else []


def _ask(folders: _Folders, shared: list[str], known: dict[str, str]) -> str:
    """Return what to say of top folders that look like splits and have other names."""
    text = f"{_list(folders.tops)} hold folders of the same names ({_list(shared)})"
    none = set_option("data.splits", "none")
    if len(recognize(shared)) == len(shared):
        return (
            f"{text}, which are named as splits; give one of the folders as data.source, put the splits at the top, "
            f"or, if those at the top are the classes: dvc exp run {none}"
        )
    guess = {split: top for top, split in known.items()}
    unknown = (top for top in folders.tops if top not in known)
    guess |= zip((split for split in ("train", "test", "val") if split not in guess), unknown, strict=False)
    example = {split: guess[split] for split in ("train", "val", "test") if split in guess}
    return (
        f"{text}. If they are splits, say which: dvc exp run {set_option('data.splits', example)}. If they are the "
        f"classes: dvc exp run {none}"
    )


def _named(source: str, names: list[str], outer: str, splits: Mapping[str, str]) -> dict[str, str]:
    """Return the folders that data.splits names, from the top or below the outer folder."""
    found = {}
    for split, folder in splits.items():
        plain = folder.strip("/") + "/"
        for prefix in (outer + plain, plain):
            if any(name.startswith(prefix) for name in names):
                found[prefix] = split
                break
        else:
            raise UserError(f"{source}: params.yaml: data.splits.{split}: there are no files in the folder {folder!r}")
    nested = next((prefix for prefix in found for other in found if prefix != other and prefix.startswith(other)), None)
    if nested:
        raise UserError(f"{source}: params.yaml: data.splits: {nested.rstrip('/')!r} lies in another of these folders")
    return found


def _list(names: Iterable[str]) -> str:
    shown = [repr(name) for name in names]
    more = f" and {len(shown) - MAX_NAMES} more" if len(shown) > MAX_NAMES else ""
    return ", ".join(shown[:MAX_NAMES]) + more
