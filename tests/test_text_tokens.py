"""Texts become the tokens of a backbone."""

from __future__ import annotations

import numpy as np
import pytest
from text_models import write_bert

from headstart.backbones import get_backbone
from headstart.errors import ItemError, UserError
from headstart.modalities import Modality, get_modality
from headstart.modalities.text import tokens


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Modality:
    """Texts as a small BERT reads them."""
    folder = write_bert(tmp_path_factory.mktemp("models") / "bert")
    return get_modality("text", get_backbone(str(folder)).reading())


def test_a_text_is_its_tokens_between_the_special_ones(texts):
    cls, the, bank, sep = texts.load(b"The BANK", 16)
    assert (cls, sep) == (2, 3)
    assert texts.load(b"bank the", 16).tolist() == [2, bank, the, 3]
    assert texts.load(b"bank the", 16).dtype == np.int32


def test_what_is_longer_is_cut_and_remarked(texts):
    whole, remark = texts.load_with_remark(b"the bank", 4)
    assert (len(whole), remark) == (4, "")
    cut, remark = texts.load_with_remark(b"the bank is warm", 4)
    assert cut.tolist() == whole.tolist()
    assert remark == "have more than 4 tokens, as many as the model reads; the rest is left out."
    assert len(texts.load(b"the bank is warm " * 20, 12)) == 12  # not the 7 that its tokenizer.json says
    assert len(texts.whole(b"the bank is warm " * 20)) == 24


def test_only_the_words_that_can_matter_are_tokenized(texts, monkeypatch):
    read = []
    plain = tokens._first_words
    monkeypatch.setattr(tokens, "_first_words", lambda *given: read.append(plain(*given)) or read[-1])
    long = b"  the  bank\n" * 10_000
    assert texts.load(long, 8).tolist() == texts.load(b"the bank the bank the bank", 8).tolist()
    assert len(read[0]) < 100
    assert plain(" a  b c", 3) == " a  b c"
    assert plain(" a  b c d", 2) == " a  b "


def test_batches_are_filled_up_to_the_longest(texts):
    first, second = texts.load(b"bank", 16), texts.load(b"the bank is warm", 16)
    filled = texts.batch([first, second])["tokens"]
    assert filled.tolist() == [[*first, 0, 0, 0], second.tolist()]
    for longest, expected in ((512, [32, 48, 48, 64]), (50, [32, 48, 48, 50])):  # see Tokens.fill
        modality = get_modality("text", {**texts.reading, "longest": longest})
        batches = [modality.batch([np.ones(count, np.int32)])["tokens"] for count in (32, 33, 48, 49)]
        assert [batch.shape[1] for batch in batches] == expected


def test_a_prefix_stands_before_each_text(texts):
    prefixed = get_modality("text", {**texts.reading, "prefix": "is "})
    assert prefixed.load(b"warm", 8).tolist() == texts.load(b"is warm", 8).tolist()


def test_without_a_backbone_there_are_no_tokens():
    assert get_modality("text").decode(b"bank") == "bank"
    with pytest.raises(ValueError, match="a backbone says how texts become tokens"):
        get_modality("text").load(b"bank", 8)


def test_a_reading_of_another_form_is_refused(texts):
    with pytest.raises(UserError, match=r"data\.kind text: pad must be int, got 'x'; run `dvc repro --force prepare`"):
        get_modality("text", {**texts.reading, "pad": "x"})


def test_a_request_holds_texts(texts):
    assert texts.parse_request("größer") == "größer".encode()
    with pytest.raises(ItemError, match="must be a text, got int"):
        texts.parse_request(3)


def test_probes_are_of_many_lengths(texts):
    lengths = [len(texts.load(probe, 16)) for probe in texts.probes(16)]
    assert lengths[0] == 16
    assert min(lengths) < 8
