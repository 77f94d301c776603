"""Texts in prepare: encodings, what is left out, copies, leaks, and what the screen and the page say."""

# ruff: noqa: RUF001
from __future__ import annotations

import unicodedata

import numpy as np
import pandas as pd
import pytest

from headstart.data.duplicates import near_pairs
from headstart.errors import ItemError
from headstart.modalities import get_modality
from headstart.modalities.text import measures
from headstart.modalities.text.copies import signature

TEXTS = get_modality("text")
WORDS = [
    "amber",
    "bronze",
    "copper",
    "dusk",
    "ember",
    "flint",
    "gravel",
    "harbor",
    "island",
    "jungle",
    "kettle",
    "lantern",
    "meadow",
    "needle",
    "orchard",
    "pebble",
    "quarry",
    "ribbon",
    "saddle",
    "timber",
    "umbrella",
    "velvet",
    "walnut",
    "yonder",
    "zephyr",
    "anchor",
    "basket",
    "candle",
    "dagger",
    "eagle",
    "falcon",
]


def sentence(seed: int, words: int = 14) -> str:
    return " ".join(np.random.default_rng(seed).permutation(WORDS)[:words])


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("schön 日本".encode(), "schön 日本"),
        ("schön".encode("utf-8-sig"), "schön"),
        ("schön 日本".encode("utf-16"), "schön 日本"),
        (b"\xfe\xff" + "schön".encode("utf-16-be"), "schön"),
        ("schön 日本".encode("utf-32"), "schön 日本"),
        ("Spaß, „groß“ – 5 €".encode("cp1252"), "Spaß, „groß“ – 5 €"),
        ("crème brûlée, “déjà vu”".encode("cp1252"), "crème brûlée, “déjà vu”"),
        (b"  two \n lines\r\n", "two \n lines"),
    ],
)
def test_encodings_are_told_apart(data, text):
    assert TEXTS.decode(data) == text


@pytest.mark.parametrize(
    ("data", "reason", "detail"),
    [
        (b"", "empty", "there is no text"),
        (b" \n\t ", "empty", "there is no text"),
        ("Привет, как дела".encode("cp1251"), "encoding", "neither UTF-8 nor UTF-16 nor Windows-1252"),
        ("你好世界，你好".encode("gb18030"), "encoding", "neither UTF-8"),
        ("日本語のテキストです".encode("shift-jis"), "encoding", "neither UTF-8"),
        ("安녕하세요 여러분".encode("cp949"), "encoding", "neither UTF-8"),
        ("schön".encode() + "größe".encode("latin-1"), "encoding", "or a mix of them; save it as UTF-8"),
        ("schön, schön".encode() + b"\xe9", "encoding", "byte 15 is not UTF-8, others are; save it as UTF-8"),
        ("schön".encode("utf-16-le"), "encoding", "no byte order mark"),
        (b"a text\0 with a zero", "not_text", "zero bytes"),
        (b"\x01\x02\x03\x04 abc", "not_text", "control characters"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "encoding", "save it as UTF-8"),
        (b"a " * 150_000, "too_long", r"299,999 characters, at most 250,000 are read"),
    ],
)
def test_what_is_no_text_is_refused_with_the_reason(data, reason, detail):
    with pytest.raises(ItemError, match=detail) as caught:
        TEXTS.decode(data)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Straße", "STRASSE", True),
        ("café", unicodedata.normalize("NFD", "CAFÉ"), True),
        ("two  words\n", "two words", True),
        ("ﬁne №1", "fine No1", True),
        ("fine", "fine!", False),
        ("resume", "résumé", False),
    ],
)
def test_texts_that_read_alike_are_the_same(one, other, same):
    assert (TEXTS.item_id(one) == TEXTS.item_id(other)) == same


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain words", {"characters": 11, "words": 2, "html": 0, "control": 0, "windows": 0}),
        ("<p class='a'>bold &amp; <br/></p>", {"html": 1}),
        ("a < b and b > c, R&D", {"html": 0}),
        ("ring\x07 the bell", {"control": 1}),
    ],
)
def test_measures(text, expected):
    found = TEXTS.measures(TEXTS.decode(text.encode()))
    assert expected.items() <= found.items()
    assert TEXTS.measures(TEXTS.decode("é à".encode("latin-1")))["windows"] == 1


@pytest.mark.parametrize(
    ("text", "script"),
    [
        *(
            ("hello", "Latin"),
            ("été 12", "Latin"),
            ("привет ok", "Cyrillic"),
            ("καλημέρα", "Greek"),
            ("مرحبا", "Arabic"),
        ),
        *(("नमस्ते", "Devanagari"), ("日本語です", "Japanese"), ("你好", "Han"), ("안녕", "Hangul"), ("12 % !", "none")),
        *(("สวัสดี", "Thai"), ("👍🏽", "none"), ("ᎣᏏᏲ", "other")),
    ],
)
def test_scripts(text, script):
    assert measures.SCRIPTS[measures.script(text)] == script


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text + "!",
        lambda text: text.replace(WORDS[0], WORDS[0].upper()) + " indeed",
        lambda text: f"<b>{text}</b>",
        lambda text: text.replace("e", "a", 1),
        lambda text: " ".join(text.split()[1:]),
    ],
    ids=["a mark", "a word more", "markup", "a typo", "a word less"],
)
def test_near_copies_are_found_and_nothing_else(change):
    originals = [sentence(seed) for seed in range(200)]
    pairs = near_pairs(np.stack([signature(text) for text in [*originals, *map(change, originals)]]), 0.25)
    expected = {(row, row + 200) for row in range(200)}
    found = set(map(tuple, pairs.tolist()))
    assert len(found & expected) >= 190
    assert found <= expected


def test_signatures_estimate_the_share_of_shingles_in_common():
    text, other = sentence(0), " ".join(sentence(0).split()[:-4])
    sets = [{f" {words} "[place : place + 5] for place in range(len(words) - 2)} for words in (text, other)]
    true = 1 - len(sets[0] & sets[1]) / len(sets[0] | sets[1])
    assert (signature(text) != signature(other)).mean() == pytest.approx(true, abs=0.12)
    assert (signature(text) != signature(sentence(1))).mean() > 0.7
    assert (signature("你好我想知道我的卡在哪里") != signature("你好我想知道你的卡在哪里")).mean() < 0.45
    assert (signature("Well - this (is) it!") == signature("well this is it")).all()
    assert signature("").shape == signature("a").shape == (TEXTS.descriptor_dim,)


@pytest.mark.parametrize(
    ("one", "other", "copies"),
    [
        *(("x += 1", "x *= 1", False), ("return a + b", "return a - b", False), ("C++", "C#", False)),
        *(
            ("if a < b: swap(a, b)", "if a > b: swap(a, b)", False),
            ("3 + 4", "3 4", False),
            ("<b>very good</b>", "<b>very good!</b>", True),
        ),
        *(("Thank you!", "thank you.", True), ("Ok, fine", "ok - fine", True), ("ok", "no", False)),
    ],
)
def test_short_texts_are_copies_if_their_words_are_and_code_if_its_marks_are_too(one, other, copies):
    texts = [one, other, *map(sentence, range(20))]
    assert (near_pairs(np.stack(list(map(signature, texts))), 0.25).tolist() == [[0, 1]]) is copies


def test_texts_without_a_word_are_no_copies_of_each_other():
    signatures = np.stack(
        [signature(text) for text in ["\N{GRINNING FACE}", "\N{ANGRY FACE}", "?!", *map(sentence, range(9))]]
    )
    assert not signatures[:3].any()
    assert len(near_pairs(signatures, 0.25)) == 0


def test_every_share_may_be_the_largest_distance():
    signatures = np.stack([signature(sentence(seed)) for seed in range(20)])
    for most in (1e-9, 0.999, 1 - 1e-17, 1.0):
        assert len(near_pairs(np.concatenate([signatures, signatures[:1]]), most)) >= 1


def test_the_beginning_of_a_text_is_recognized_wherever_it_ends():
    for text in ("\u4f60\u597d" * 40, "\u043f\u0440\u0438\u0432\u0435\u0442" * 20, " a" + "b" * 99):
        for encoding in ("utf-8", "utf-16", "utf-8-sig"):
            data = text.encode(encoding)
            assert all(TEXTS.recognizes(data[:length], ".note") for length in range(60, 65))
    assert not TEXTS.recognizes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", ".note")


def test_texts_of_one_template_are_not_copies_of_each_other():
    texts = [f"Your order {seed * 7919 % 100003} has been shipped from {sentence(seed, 2)}" for seed in range(600)]
    assert len(near_pairs(np.stack([signature(text) for text in texts]), 0.5)) < 60


@pytest.mark.parametrize("label", ["numpy", "credit_card"])
def test_labels_that_stand_in_their_texts_are_reported(label):
    examples = pd.DataFrame({"path": map(str, range(40)), "label": ["neg", label] * 20, "item_id": ""})
    own = [f" with {label.replace('_', ' ').title()}, again" if row % 4 == 1 else "" for row in range(40)]
    assert TEXTS.find_leaks(examples, lambda path: sentence(int(path)).encode()) == []
    (line,) = TEXTS.find_leaks(examples, lambda path: (sentence(int(path)) + own[int(path)]).encode())
    expected = f"the texts of 1 of 2 classes name their own label: {label} in 50 % of its texts and 0.0 % of"
    assert line.startswith(expected)
