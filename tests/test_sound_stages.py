"""Recordings through all stages, by a small WaveNet: speakers, windows, cached activations, pages, answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from audio_files import encode
from conftest import SMALL, run_stages, write_params

from headstart import paths
from headstart.backbones import sound_encoders, wavenet
from headstart.modalities import load_modality
from headstart.report.pages import make_pages
from headstart.training import networks

SPEAKERS, EACH, RATE = 6, 4, 16_000


def record(label: str, speaker: int, take: int) -> bytes:
    """Tones that rise or fall, higher or lower by speaker; some are longer than the two seconds that are heard."""
    random = np.random.default_rng([speaker, take])
    time = np.arange(int(RATE * (0.4 + 0.1 * take + (2 if take == 3 else 0)))) / RATE
    slope = 400 if label == "up" else -400
    height = 800 + 100 * speaker + slope * (time % 0.4)
    sound = 0.3 * np.sin(2 * np.pi * np.cumsum(height) / RATE) + 0.02 * random.standard_normal(len(time))
    return encode(sound, kind=("WAV", "FLAC")[take % 2])


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Iterator[Path]:
    """The current folder, after all stages: to be read only."""
    folder = tmp_path_factory.mktemp("finished")
    for label in ("up", "down"):
        for speaker in range(SPEAKERS):
            for take in range(EACH):
                file = folder / "recordings" / label / f"speaker_{speaker}_{take}.{('wav', 'flac')[take % 2]}"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(record(label, speaker, take))
    changes = {
        **SMALL,
        "data.source": "recordings",
        "weights": "none",
        "extract.size": 2,
        "prepare.split": "exact",
        "prepare.group_by": r"(speaker_\d+)",
        "fine_tune.unfreeze": 1,
        "fine_tune.trunk_cache": "on",
        "fine_tune.views": 1,
        "fine_tune.effort": "thorough",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("DVC_ROOT", raising=False)
        small = partial(wavenet.build_wavenet, channels=16, dilations=(1, 2, 4))
        patch.setattr(sound_encoders, "build_wavenet", small)
        write_params(Path("params.yaml"), **changes)
        run_stages("prepare", "extract", "train_head", "fine_tune", "evaluate")
        yield folder


def test_what_the_examples_are_follows_from_the_files(finished):
    assert json.loads(paths.READING.read_text())["kind"] == "audio"
    assert json.loads(paths.FEATURES_META.read_text())["backbone"] == "wavenet"


def test_fine_tuning_starts_from_cached_activations(finished):
    report = json.loads(paths.report("fine_tune").read_text())
    assert report["settings"]["trunk_cache"] is True
    assert (report["settings"]["views"], report["settings"]["shift"]) == (1, 0.1)


def test_a_recording_is_one_example_however_long_it_is(finished):
    test = pd.read_parquet(paths.MANIFEST).query("split == 'test'")
    assert test.seconds.max() > 2
    assert len(pd.read_csv(paths.PREDICTIONS)) == len(test)


def test_the_model_answers_alone_as_in_a_batch(finished):
    classifier, modality = networks.load_classifier(paths.MODEL), load_modality()
    sounds = [modality.load(record("up", 0, take), 2) for take in range(EACH)]
    together = classifier.predict(modality.batch(sounds))
    alone = np.concatenate([classifier.predict(modality.batch([sound])) for sound in sounds])
    np.testing.assert_allclose(together, alone, atol=2e-6)
    odd = sounds[1][:-7]  # no whole number of steps
    whole = np.asarray(classifier.network(odd[None]))
    np.testing.assert_allclose(whole, classifier.predict(modality.batch([odd])), atol=2e-6)


def test_the_pages_have_players_and_moments(finished):
    make_pages()
    page = Path("reports/report.html").read_text(encoding="utf-8")
    assert "Which moments matter" in page
    assert "<audio" in Path("reports/data.html").read_text(encoding="utf-8")
