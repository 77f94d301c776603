"""Which words of a text are marked: those without which the score of a class falls."""

from __future__ import annotations

import numpy as np
import pytest
from text_models import LONGEST, write_bert

from headstart.backbones import get_backbone
from headstart.modalities import get_modality
from headstart.modalities.text import TextModality, evidence

LONG = "the bank is cold and " * 20


class Counting:
    """A network whose score of class 0 is twice the number of its word, and of class 1 that number less."""

    def __init__(self, token: int) -> None:
        self.token, self.calls = token, 0

    def scores(self, arrays: list[np.ndarray], classes: np.ndarray) -> np.ndarray:
        self.calls += len(arrays)
        count = np.array([(array == self.token).sum() for array in arrays], np.float32)
        return np.stack([2 * count, -count], axis=1)[np.arange(len(arrays))[:, None], classes]


def test_the_words_that_a_score_comes_from_are_marked(tmp_path):
    modality = get_modality("text", get_backbone(str(write_bert(tmp_path / "bert"))).reading())
    (token,) = modality.load(b"bank", LONGEST)[1:-1]
    classes = np.array([[0, 1]] * 3)
    texts = ["the <b> bank & card", "soup", LONG]
    network = Counting(token)
    shown, legend = modality.explain([text.encode() for text in texts], LONGEST, classes, network)
    marked = '<mark style="--s:100%" title="2.00">bank</mark>'
    assert shown[0][0] == ""
    assert shown[0][1] == f'<blockquote dir="auto">the &lt;b&gt; {marked} &amp; card</blockquote>'
    assert "<mark" not in "".join([shown[0][2], *shown[1]])
    assert shown[2][1].endswith("\N{HORIZONTAL ELLIPSIS}</blockquote>")  # what is beyond `size` cannot matter
    assert "falls if the word is left out" in legend
    assert network.calls <= sum(1 + min(len(text.split()), evidence.MAX_PARTS) for text in texts)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a  b\nc", ["a", "b", "c"]),
        ("你好 ok。", ["你", "好", "ok。"]),
        ("  ", []),
        ("ab " * 100, ["ab ab ab"] * 33 + ["ab"]),
    ],
)
def test_parts_of_texts(text, parts):
    assert [text[start:end] for start, end in evidence.find_parts(text, 1000)] == parts


def test_modalities_without_a_tokenizer_explain_nothing():
    with pytest.raises(ValueError, match="none is chosen yet"):
        TextModality().explain([b"bank"], 8, np.array([[0]]), Counting(0))
