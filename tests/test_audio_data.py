"""Recordings in prepare: which files are read and how, what is left out, what makes two equal, what is said of them."""

from __future__ import annotations

import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath

import numpy as np
import pandas as pd
import pytest
from audio_files import RATE, Case, accepted, as_float, encode, id3, refused, replaced, soundfile, tone
from conftest import run_stages, write_params

from headstart import paths
from headstart.errors import ItemError, UserError
from headstart.modalities import get_modality
from headstart.modalities.audio import decode, measures

ACCEPTED, REFUSED = accepted(), refused()
SOUND = as_float(tone())[:, 0]
QUIET = pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")  # in what libsndfile calls


def read_fate(data: bytes) -> str:
    """Return the hash of what is heard in a file, or why it is refused."""
    try:
        return decode.item_id(decode.read(data))
    except ItemError as error:
        return f"{error.reason}: {error}"


@QUIET
@pytest.mark.parametrize("name", ACCEPTED)
def test_an_odd_recording_is_read(name, capfd):
    case = ACCEPTED[name]
    recording = decode.read(case.data)
    found = measures.measure(recording)
    assert {key: found[key] for key in case.measures} == pytest.approx(case.measures, rel=0.01, abs=0.005)
    assert all(np.isfinite(value) for value in found.values())
    heard = recording.resampled()
    assert heard.dtype == np.float32
    assert np.abs(heard).max() <= 1
    assert len(heard) == pytest.approx(found["seconds"] * RATE, abs=1)
    assert np.sqrt(np.square(heard).mean()) > 0.02
    assert capfd.readouterr() == ("", "")


@QUIET
@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_recording_is_refused_with_a_reason(name, capfd):
    case = REFUSED[name]
    with pytest.raises(ItemError) as caught:
        decode.read(case.data)
    assert caught.value.reason == case.reason
    assert case.says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "BytesIO" not in str(caught.value)
    decode.decoding_memory(case.data)  # raises nothing
    assert capfd.readouterr() == ("", "")


def test_a_bomb_is_refused_by_its_header(monkeypatch):
    monkeypatch.setattr(soundfile.SoundFile, "read", None)
    assert decode.decoding_memory(REFUSED["bomb.flac"].data) == 0
    with pytest.raises(ItemError, match="at most 30 minutes"):
        decode.read(REFUSED["bomb.flac"].data)
    many = encode(np.zeros((31 * 60 * 1000, 1), np.int16), 1000, "FLAC")
    with pytest.raises(ItemError, match="31 minutes of 1 channels"):
        decode.read(many)


def test_memory_is_known_by_the_header():
    left = as_float(tone(1.0, 48_000)) * 3 + 0.5
    data = encode(np.concatenate([left, 0.9 - left], axis=1), 48_000, codec="FLOAT")
    decode.decode(data)
    tracemalloc.start()
    decode.decode(data)
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert taken <= decode.decoding_memory(data) < 4 * taken


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "AIFF", "AU", "W64"])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_recording_is_the_same_in_every_lossless_format(kind, channels):
    sound = tone(channels=channels)
    sound[:, -1] = sound[::-1, -1]
    same = decode.item_id(decode.read(encode(sound)))
    assert decode.item_id(decode.read(encode(sound, kind=kind))) == same
    assert decode.item_id(decode.read(encode(as_float(sound), codec="FLOAT"))) == same
    assert decode.item_id(decode.read(encode(sound, 8000))) != same
    assert decode.item_id(decode.read(encode(sound, kind="OGG"))) != same
    assert decode.item_id(decode.read(encode(sound[:-1]))) != same


@pytest.mark.parametrize("rate", [8000, 44_100, 48_000])
def test_a_recording_sounds_the_same_at_every_rate(rate):
    time = np.arange(rate) / rate
    heard = decode.decode(encode(0.4 * np.sin(2 * np.pi * 440 * time), rate))
    expected = 0.4 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)
    inside = slice(200, -200)
    np.testing.assert_allclose(heard[inside], expected[inside], atol=0.002)


def test_what_lies_above_8_khz_does_not_come_back_lower():
    time = np.arange(44_100) / 44_100
    heard = decode.decode(encode(np.sin(2 * np.pi * 12_000 * time), 44_100))
    assert np.abs(heard[200:-200]).max() < 1e-3


def test_channels_are_averaged_unless_they_cancel_each_other_out():
    other = np.random.default_rng(1).uniform(-0.2, 0.2, len(SOUND)).astype(np.float32)
    mixed = decode.read(encode(np.stack([SOUND, other], 1), codec="FLOAT"))
    np.testing.assert_allclose(mixed.samples, (SOUND + other) / 2, atol=1e-6)
    assert not mixed.out_of_phase
    assert mixed.peak == np.abs(mixed.samples).max() < np.abs(SOUND).max()
    opposite = decode.read(encode(np.stack([0.9 * SOUND, -SOUND], 1), codec="FLOAT"))
    np.testing.assert_array_equal(opposite.samples, -SOUND)
    assert opposite.out_of_phase
    silent = np.zeros((800, 2), np.int16)
    with pytest.raises(ItemError, match="silence"):
        decode.read(encode(silent))


def test_dc_offset_and_overload_are_removed():
    shifted = decode.read(encode(SOUND + np.float32(0.3), codec="FLOAT"))
    np.testing.assert_allclose(shifted.samples, SOUND - SOUND.mean(), atol=1e-5)
    small = decode.read(encode(SOUND + np.float32(0.005), codec="FLOAT"))
    np.testing.assert_allclose(small.samples, SOUND + 0.005, atol=1e-6)
    loud = decode.read(encode(4 * SOUND, codec="FLOAT"))
    np.testing.assert_allclose(loud.samples, SOUND / np.abs(SOUND).max(), atol=1e-6)


def test_a_loud_sine_is_not_clipped_and_a_flat_top_is():
    sine = np.sin(2 * np.pi * 300 * np.arange(RATE) / RATE).astype(np.float32)[:, None]
    assert measures.clipped_share(sine) == 0
    flat = np.clip(1.2 * sine, -1, 1)
    assert measures.clipped_share(flat) == pytest.approx((np.abs(flat) == 1).mean())
    assert measures.measure(decode.read(encode(0.5 * sine)))["loudness"] == pytest.approx(-9.03, abs=0.01)


def test_threads_read_the_same():
    files = [case.data for case in (*ACCEPTED.values(), *REFUSED.values())] * 2
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(read_fate, files)) == [read_fate(data) for data in files]


def test_recordings_are_recognized_by_their_content_and_nothing_else_is():
    image, text = get_modality("image"), get_modality("text")
    for name, case in ACCEPTED.items():
        head, suffix = case.data[:64], PurePosixPath(name).suffix
        assert decode.recognizes(head, suffix), name
        assert not image.recognizes(head, suffix), name
        assert suffix == ".nist" or not text.recognizes(head, suffix), name  # its header is plain text
    webp = b"RIFF\x99\0\0\0WEBPVP8 "
    others = [case.data for name, case in REFUSED.items() if case.reason in ("not_audio", "unsupported")]
    others = [data for data in others if not data.startswith(b"fLaC")]
    others += [
        "\ufeffüäö".encode("utf-16"),
        b"\xff\xfe<\0h\0",
        b"\xff\xfeA\0",
        b"PK\x03\x04",
        webp,
        b"FORM\0\0\0\x99ILBM",
    ]
    others += [
        b"\xef\xbb\xbftext",
        b"ID3 is a kind of tag",
        b"ID3\x03\0\0\xff\0\0\0",
        b".sndfile",
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xff\xff\xff",
        b"",
    ]
    for data in others:
        assert not decode.recognizes(data[:64]), data[:64]


def test_advice_for_files_that_cannot_be_read():
    assert "ffmpeg -i in.m4a" in decode.UNSUPPORTED[".m4a"]
    assert {".mp4", ".mov", ".mkv", ".webm", ".avi", ".wma", ".amr", ".aac"} <= set(decode.UNSUPPORTED)
    assert "header" in decode.UNSUPPORTED[".pcm"]
    assert not set(decode.SUFFIXES) & set(decode.UNSUPPORTED)


@pytest.mark.parametrize("library", ["soundfile", "soxr"])
def test_a_missing_library_is_named(library, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UserError, match=f"library {library}.*make setup EXTRAS=audio"):
        decode.decode(encode(tone(rate=8000), 8000))


def table(**cases: bytes) -> pd.DataFrame:
    rows = [measures.measure(decode.read(data)) for data in cases.values()]
    return pd.DataFrame(rows).astype(np.float32)


def test_what_is_odd_about_a_data_set_is_said():
    names = ["plain.wav", "8000.wav", "clipped.wav", "offset.wav", "beyond-full-scale.wav", "out-of-phase.wav"]
    examples = table(**{name: ACCEPTED[name].data for name in names}, long=encode(np.r_[tone(1), tone(10) * 0]))
    lines = measures.remarks(examples)
    assert [line.split(" recordings ")[0] for line in lines[:-1]] == ["1 of 7"] * 7
    assert [" ".join(line.split()[4:7]) for line in lines[:-1]] == [
        *("have fewer than", "are clipped: more", "were louder than", "had a DC", "have channels that"),
        *("are silent for", "are longer than"),
    ]
    assert lines[-1] == "samples a second: 16,000 (6), 8,000 (1)"
    assert measures.remarks(examples[:1]) == []


def test_a_class_that_its_sample_rate_gives_away_is_a_leak():
    rates = [8000] * 9 + [44_100] * 9 + [8000] * 3 + [16_000] * 6
    examples = pd.DataFrame({"label": ["phone"] * 9 + ["studio"] * 9 + ["both"] * 9, "rate": rates})
    (line,) = measures.find_leaks(examples)
    assert line.startswith("sample rates give 2 of 3 classes away: phone (100 % of it has fewer than 16,000")
    assert "17 % of others" in line
    assert "studio (0 % of it" in line
    assert "both" not in line
    assert "resample all to 8,000" in line
    assert measures.find_leaks(examples[examples.label == "both"]) == []
    assert measures.find_leaks(examples.assign(rate=[16_000, 44_100, 48_000] * 9)) == []


def test_prepare_asks_for_what_is_silent_and_for_leaks():
    audio = get_modality("audio")
    assert audio.reject({"peak": 1e-5}, None)[0] == "silent"
    assert audio.find_leaks(pd.DataFrame({"label": list("aaabbb"), "rate": [8000] * 3 + [16_000] * 3}), None)


def test_what_is_as_good_as_silence_is_left_out():
    faint = encode(SOUND * np.float32(2.0**-13), codec="FLOAT")
    assert measures.reject(measures.measure(decode.read(faint))) == (
        "silent",
        "the loudest sample is at -84 dB of full scale: as good as silence",
    )
    assert measures.reject(measures.measure(decode.read(encode(SOUND / 100)))) is None


def test_a_header_that_promises_more_than_there_is_names_both():
    data = replaced(encode(tone()), 40, "<I", 99_999)
    with pytest.raises(ItemError, match="99,999 bytes of samples are promised, 16,000 are there"):
        decode.read(data)


@pytest.mark.parametrize("kind", ["WAV", "AIFF", "AU", "FLAC", "OGG", "MP3"])
def test_a_tag_in_front_changes_nothing(kind):
    whole = encode(tone(), kind=kind)
    sound = decode.decode(id3(5000) + whole)
    np.testing.assert_array_equal(sound, decode.decode(whole))
    with pytest.raises(ItemError):
        decode.decode(id3(5000) + whole[: len(whole) // 2 - 7])


def test_prepare_decides_on_every_odd_recording(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    files = {f"odd/{name}": case for name, case in {**ACCEPTED, **REFUSED}.items()}
    for number in range(12):
        samples = np.random.default_rng(number).uniform(-0.5, 0.5, 4000)
        files[f"odd/more-{number}.wav"] = Case(encode(samples))
        files[f"even/{number}.wav"] = Case(encode(samples[::-1]))
    files["even/phone.m4a"] = Case(b"\0\0\0\x20ftypM4A ", "unsupported", "ffmpeg -i in.m4a")
    files["even/notes.txt"] = Case(b"even", "ignored")
    for name, case in files.items():
        file = tmp_path / "sounds" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(case.data)
    changes = {"data.source": "sounds", "prepare.max_bad_fraction": 0.9, "prepare.near_distance": 0}
    write_params(tmp_path / "params.yaml", **changes)
    run_stages("prepare")
    quarantine = pd.read_csv(paths.QUARANTINE).set_index("path")
    used = set(pd.read_parquet(paths.MANIFEST).path)
    for name, case in files.items():
        if case.reason == "ignored":
            assert name not in used
            assert name not in quarantine.index
        elif case.reason:
            assert quarantine.reason[name] == case.reason
            assert case.says in quarantine.detail[name]
        else:  # many are the same sound
            assert name in used or quarantine.reason[name] == "duplicate", name
    screen = capsys.readouterr().out
    assert "the examples are recordings, by the suffixes" in screen
    assert "were louder than full scale, and are scaled down to it" in screen
