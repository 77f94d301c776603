"""Classes that came, went, were renamed, split or merged between two runs."""

from __future__ import annotations

import pandas as pd
import pytest

from headstart.evaluation.class_changes import FEWEST, NAMED, find_class_changes


def labels(text: str, first: int = 0) -> pd.Series:
    """Labels by item_id, as `cat:3 dog:2`, numbered from `first`."""
    names = [name for part in text.split() for name in [part.split(":")[0]] * int(part.split(":")[1])]
    return pd.Series(names, index=[f"id{first + number}" for number in range(len(names))], dtype=object)


def changes(base: pd.Series, head: pd.Series, base_only: str = "", head_only: str = "") -> tuple[str, dict[str, str]]:
    """The changes as text and the classes that both know; classes that no example is of are named apart."""
    sides = [sorted({*found, *more.split()}) for found, more in ((base, base_only), (head, head_only))]
    found = find_class_changes(sides[0], base, sides[1], head)
    assert bool(found) == bool(str(found)) == bool(found.records())
    return str(found), found.known


@pytest.mark.parametrize(
    ("base", "head", "said", "known"),
    [
        ("cat:9 dog:9", "cat:9 dog:9", "", "cat=cat dog=dog"),
        ("cat:9 dog:9", "cat:8 dog:10", "", "cat=cat dog=dog"),  # a label was corrected
        ("cat:9 dog:9", "feline:9 dog:9", "renamed: cat -> feline (9 examples)", "cat=feline dog=dog"),
        ("cat:9 dog:9", "dog:9 cat:9", "renamed: cat -> dog (9 examples), dog -> cat (9 examples)", "cat=dog dog=cat"),
        ("cat:9 dog:9", "a:9 b:9", "renamed: cat -> a (9 examples), dog -> b (9 examples)", "cat=a dog=b"),
        ("cat:10 dog:9", "cat:5 kitten:5 dog:9", "split: cat -> cat, kitten (10 examples)", "dog=dog"),
        ("cat:10 dog:9", "tom:6 kitten:4 dog:9", "split: cat -> kitten, tom (10 examples)", "dog=dog"),
        ("cat:6 dog:6 owl:9", "pet:12 owl:9", "merged: cat, dog -> pet (12 examples)", "owl=owl"),
        ("cat:6 dog:60 owl:9", "dog:66 owl:9", "merged: cat, dog -> dog (66 examples)", "owl=owl"),
        ("cat:3 dog:9", f"feline:{FEWEST} dog:9", "renamed: cat -> feline (3 examples)", "cat=feline dog=dog"),
        ("cat:2 dog:9", f"feline:{FEWEST - 1} dog:9", "added: feline; removed: cat", "dog=dog"),
        ("cat:9 dog:9 owl:4", "cat:4 dog:14 owl:4", "regrouped: cat, dog -> cat, dog (18 examples)", "owl=owl"),
        ("wolf:6 dog:9 owl:4", "dog:12 husky:3 owl:4", "regrouped: dog, wolf -> dog, husky (15 examples)", "owl=owl"),
    ],
)
def test_labels_of_shared_examples_say_what_became_of_a_class(base, head, said, known):
    found = changes(labels(base), labels(head))
    assert found == (said, dict(pair.split("=") for pair in known.split()))


def test_without_shared_examples_names_alone_count():
    assert changes(labels("cat:9 dog:9"), labels("feline:9 dog:9", first=100)) == (
        "added: feline; removed: cat", {"dog": "dog"},
    )  # fmt: skip


def test_classes_that_came_and_went():
    assert changes(labels("cat:9 dog:9 wolf:9"), labels("cat:9 dog:9"))[0] == "removed: wolf"
    assert changes(labels("cat:9 dog:9"), labels("cat:9 dog:9 owl:9"))[0] == "added: owl"
    assert changes(labels("cat:9 dog:9"), labels("cat:9 dog:9"), head_only="owl")[0] == "added: owl"


def test_the_order_of_the_classes_does_not_matter():
    found = find_class_changes(["dog", "cat"], labels("cat:4 dog:4"), ["cat", "dog"], labels("cat:4 dog:4"))
    assert not found
    assert list(found.known) == ["dog", "cat"]


def test_a_name_can_be_given_to_another_class():
    """The old cats are felines now, and the images under `cat` are new."""
    base = labels("cat:9 dog:9")
    head = pd.concat([labels("feline:9 dog:9"), labels("cat:9", first=100)])
    assert changes(base, head) == ("added: cat; renamed: cat -> feline (9 examples)", {"cat": "feline", "dog": "dog"})


def test_a_class_that_takes_in_a_little_of_everything_is_no_renamed_one():
    """All 3 of x are junk now, but so are 8 of 9 others."""
    base, head = labels("x:3 cat:19 dog:19"), labels("junk:7 cat:15 junk:4 dog:15")
    assert changes(base, head) == ("added: junk; removed: x", {"cat": "cat", "dog": "dog"})


def test_many_and_strange_names_stay_one_short_line():
    names = [f"class {number}" for number in range(500)]
    found = find_class_changes(["cat\nok"], labels("cat:0"), names, labels("cat:0"))
    assert str(found).startswith("added: class 0, class 1, ")
    assert str(found).endswith(f" and {500 - NAMED} more; removed: 'cat\\nok'")
    assert len(found.records()) == 501
