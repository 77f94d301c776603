"""Clips to pretrain on: spoken words in noise, rooms and narrow channels, and plain sounds drawn by formula."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soxr

from pretraining import speech
from pretraining.formula_sounds import KINDS
from pretraining.speech import RATE

CLIP = RATE  # samples of a clip
STEP = 320  # samples of a step of the network
DELAY = 4  # steps: a phoneme is asked for so long after its moment, for a causal network needs to hear it
UNKNOWN = -1  # label that is not learned
PLAIN = 0.15  # share of the clips that are drawn by formula
SEVERAL = 0.2  # share of the spoken clips with several words; none of them is asked for


@dataclass(frozen=True)
class Corpus:
    """Utterances one after another.

    Attributes:
        samples: (n,) int16.
        ends: (k,) int64, where each utterance ends.
        words, programs: (k,) int16; the word's number, and 0 for espeak, 1 for flite.
        phonemes: (m, 3) int64: utterance, first sample in it, number of the phoneme among those of its program.
        names: phonemes of either program.
    """

    samples: np.ndarray
    ends: np.ndarray
    words: np.ndarray
    programs: np.ndarray
    phonemes: np.ndarray
    names: tuple[list[str], list[str]]

    def utterance(self, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return samples in [-1, 1], starts of phonemes and their numbers."""
        start = self.ends[number - 1] if number else 0
        low, high = np.searchsorted(self.phonemes[:, 0], [number, number + 1])
        samples = self.samples[start : self.ends[number]].astype(np.float32) / 32768
        return samples, self.phonemes[low:high, 1], self.phonemes[low:high, 2]


def make_corpus(each: int, seed: int, file: Path) -> Corpus:
    """Return `each` utterances of every word, from `file` if they are there already."""
    if not file.is_file():
        _write_corpus(each, seed, file)
    with np.load(file) as arrays:
        names = (list(map(str, arrays["names_0"])), list(map(str, arrays["names_1"])))
        return Corpus(*(arrays[key] for key in ("samples", "ends", "words", "programs", "phonemes")), names)


def _write_corpus(each: int, seed: int, file: Path) -> None:
    random = np.random.default_rng(seed)
    names: dict[str, dict[str, int]] = {"espeak": {}, "flite": {}}
    parts, words, programs, phonemes = [], [], [], []
    for word, text in enumerate(speech.words()):
        for _ in range(each):
            found = speech.speak(text, random)
            if not found:
                continue
            program, said = found
            known = names[program]
            number = len(parts)
            phonemes += [(number, start, known.setdefault(name, len(known))) for start, name in said.phonemes]
            parts.append(said.samples)
            words.append(word)
            programs.append(list(names).index(program))
    arrays = {f"names_{n}": np.array(list(known)) for n, known in enumerate(names.values())}
    partial = file.with_suffix(".partial.npz")
    np.savez(
        partial,
        samples=np.concatenate(parts),
        ends=np.cumsum([len(part) for part in parts]),
        words=np.array(words, np.int16),
        programs=np.array(programs, np.int16),
        phonemes=np.array(phonemes, np.int64),
        **arrays,
    )
    partial.replace(file)


Labels = tuple[int, np.ndarray, np.ndarray]  # the word or plain sound, phonemes of espeak and of flite at each step


def draw(corpus: Corpus, random: np.random.Generator) -> tuple[np.ndarray, Labels]:
    """Draw one clip, (CLIP,) float32 in [-1, 1], and its labels."""
    phonemes = np.full((2, CLIP // STEP), UNKNOWN, np.int32)
    if random.random() < PLAIN:
        kind = int(random.integers(len(KINDS)))
        clip, label = _place(KINDS[kind](random), random)[0], len(speech.words()) + kind
    else:
        several = random.random() < SEVERAL
        clip, at_samples, program, label = _spoken(corpus, several, random)
        moments = np.arange(CLIP // STEP) * STEP + STEP // 2 - DELAY * STEP
        phonemes[program] = np.where(moments >= 0, at_samples[np.maximum(moments, 0)], UNKNOWN)
    return _record(clip, corpus, random), (label, phonemes[0], phonemes[1])


def _spoken(corpus: Corpus, several: bool, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Return a clip, the phoneme at each sample, the program, and the word; UNKNOWN if there are several words."""
    first = int(random.integers(len(corpus.ends)))
    program = int(corpus.programs[first])
    chosen = [first]
    while several and len(chosen) < 4:
        other = int(random.integers(len(corpus.ends)))
        chosen += [other] if corpus.programs[other] == program else []
    silence = {"_:", "pau"}
    quiet = next(n for n, name in enumerate(corpus.names[program]) if name in silence)
    pieces, labels = [], []
    for number in chosen:
        samples, starts, names = corpus.utterance(number)
        speed = float(np.exp(random.uniform(-0.2, 0.2)))  # of the recording: it changes the size of the speaker, too
        lengths = np.diff([*starts, len(samples)])
        labels.append(np.repeat(names, np.maximum(lengths, 0)) if len(starts) else np.full(len(samples), quiet))
        turned = soxr.resample(samples, RATE * speed, RATE, quality="QQ")
        places = np.minimum((np.arange(len(turned)) * speed).astype(int), len(labels[-1]) - 1)
        pieces.append(turned)
        labels[-1] = labels[-1][places]
    samples, spoken = np.concatenate(pieces), np.concatenate(labels)
    clip, start, skipped = _place(samples, random)
    at_samples = np.full(CLIP, quiet)
    part = spoken[skipped : skipped + CLIP - start]
    at_samples[start : start + len(part)] = part
    return clip, at_samples, program, UNKNOWN if several else int(corpus.words[first])


def _place(samples: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, int, int]:
    """Put samples somewhere into a clip, or a part of them; return it, where they start, how many are skipped."""
    clip = np.zeros(CLIP, np.float32)
    spare = CLIP - len(samples)
    start, skipped = (int(random.integers(spare + 1)), 0) if spare >= 0 else (0, int(random.integers(-spare + 1)))
    part = samples[skipped : skipped + CLIP - start]
    clip[start : start + len(part)] = part
    return clip, start, skipped


def _record(clip: np.ndarray, corpus: Corpus, random: np.random.Generator) -> np.ndarray:
    """Record a clip: in a room, through a channel, with noise, at some volume."""
    length = CLIP + RATE // 4
    frequency = np.fft.rfftfreq(length, 1 / RATE)
    spectrum = np.fft.rfft(clip, length)
    if random.random() < 0.5:
        spectrum *= np.fft.rfft(_room(random), length)
    points = np.sort(random.uniform(0, np.log2(RATE / 2 / 50), 5))
    equalizer = np.interp(np.log2(np.maximum(frequency, 50) / 50), points, random.normal(0, 4, 5))
    spectrum *= 10 ** (equalizer / 20)
    noise = _noise(frequency, random)
    if random.random() < 0.5:  # telephones, and recordings at 8 kHz
        low, high = random.uniform(50, 350), random.choice([3400, 3800, 4000, 5500])
        band = (frequency > low) & (frequency < high) if random.random() < 0.5 else frequency < high
        spectrum, noise = spectrum * band, noise * band
    both = np.fft.irfft(np.stack([spectrum, noise]), length)[:, :CLIP].astype(np.float32)
    power = np.square(both).mean(axis=1) + 1e-12
    clip = both[0] + both[1] * np.sqrt(power[0] / power[1]) * 10 ** (-random.uniform(3, 50) / 20)
    if random.random() < 0.1:  # others talk
        other, _, _ = corpus.utterance(int(random.integers(len(corpus.ends))))
        clip = clip + _place(other, random)[0] * float(random.uniform(0.02, 0.15))
    clip = clip * (10 ** (random.uniform(-32, 0) / 20) / (np.abs(clip).max() + 1e-9))
    if random.random() < 0.1:
        clip = np.clip(clip * random.uniform(1, 3), -np.abs(clip).max(), np.abs(clip).max())
    if random.random() < 0.3:
        bits = int(random.integers(8, 13))
        clip = np.round(clip * 2**bits) / 2**bits
    return (clip + random.normal(0, 10 ** random.uniform(-5, -3.5))).astype(np.float32)


def _room(random: np.random.Generator) -> np.ndarray:
    """Return an echo that fades: the direct sound, then noise."""
    count = int(random.uniform(0.02, 0.25) * RATE)
    fading = np.exp(-np.arange(count) / count * random.uniform(4, 8))
    echo = random.standard_normal(count) * fading
    echo *= random.uniform(0.1, 1.0) / (np.linalg.norm(echo) + 1e-9)
    echo[0] = 1
    return echo


def _noise(frequency: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return the spectrum of noise that falls with frequency, perhaps with a hum."""
    count = len(frequency)
    noise = random.standard_normal(count) + 1j * random.standard_normal(count)
    noise *= np.maximum(frequency, 40) ** -random.uniform(0, 1)
    if random.random() < 0.1:
        hum = random.choice([50, 60]) * np.arange(1, 6)
        places = np.searchsorted(frequency, hum)
        noise[places] *= random.uniform(10, 100)
    return noise
