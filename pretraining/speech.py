"""Words spoken by two programs, espeak-ng and flite, in many voices, with the phoneme of each moment.

Debian has them: `apt install libespeak-ng1 espeak-ng-data flite`. They are needed for pretraining alone.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import soundfile
import soxr

RATE = 16_000  # samples a second
VOCABULARY = Path(__file__).parent.parent / "headstart" / "backbones" / "weights" / "tinybert" / "tokenizer.json"
WORDS = 400
# Digits, and the words of Speech Commands: what people try sound on. Words that sound like one of them, too.
LEFT_OUT = frozenset(
    """
    zero one two three four five six seven eight nine ten oh won too fore for ate backward backwards bed bird birds
    cat cats dog dogs down follow followed follows forward go goes gone happy house houses learn learned learning
    left marvin no know off on right write stop stopped tree trees up visual wow yes threw fifth sixth seventh
    eighth ninth third second first fourth hundred sixteen seventeen eighteen nineteen thirteen fourteen fifteen
    twenty thirty forty fifty sixty seventy eighty ninety
    """.split()  # noqa: SIM905  rows are easier to read
)
ACCENTS = ("en-us", "en-us", "en-us", "en-us-nyc", "en-gb", "en-gb-x-rp", "en-gb-scotland", "en-gb-x-gbclan", "en-029")
VARIANTS = (
    *("m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "f1", "f2", "f3", "f4", "f5", "klatt", "klatt2", "klatt3"),
    *("Alex", "Alicia", "Andrea", "Andy", "Annie", "Denis", "Diogo", "Gene", "Gene2", "Henrique", "Hugo", "Jacky"),
    *("Lee", "Marco", "Mario", "Michael", "Mike", "Nguyen", "Storm", "Tweaky", "adam", "anika", "antonio", "aunty"),
    *("belinda", "benjamin", "boris", "caleb", "croak", "david", "ed", "edward", "grandma", "grandpa", "gustave"),
    *("iven", "john", "linda", "marcelo", "max", "michel", "miguel", "norbert", "pablo", "paul", "pedro", "quincy"),
    *("rob", "robert", "sandro", "shelby", "steph", "travis", "victor", "whisper", "zac"),
)
FLITE_VOICES = ("kal", "kal16", "awb", "rms", "slt", "slt", "rms", "awb")


@dataclass(frozen=True)
class Utterance:
    """What a program said.

    Attributes:
        samples: (n,) int16 at RATE.
        phonemes: what is heard from which sample on, in order; the last one ends with the samples.
    """

    samples: np.ndarray
    phonemes: tuple[tuple[int, str], ...]


@cache
def words() -> list[str]:
    """Return WORDS frequent English words, the most frequent first, without those of LEFT_OUT."""
    tokens = json.loads(VOCABULARY.read_text())["model"]["vocab"]
    found = [token for token in tokens if re.fullmatch("[a-z]{4,9}", token) and token not in LEFT_OUT]
    spread = [word for word in found if re.search("[aeiouy]", word)]
    return spread[:WORDS]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),  # milliseconds
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("string", ctypes.c_char * 8),
    ]


_END, _PHONEME = 0, 7
_RATE, _PITCH, _RANGE = 1, 3, 4  # parameters
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


class Espeak:
    """espeak-ng in this process; there can be one only."""

    def __init__(self) -> None:
        name = ctypes.util.find_library("espeak-ng")
        self._library = ctypes.CDLL(name) if name else None
        # Samples by callback, with events for phonemes.
        self._rate = self._library.espeak_Initialize(1, 0, None, 1) if self._library else -1
        if self._rate <= 0:
            sys.exit("espeak-ng or its data are missing: apt install libespeak-ng1 espeak-ng-data")
        self._parts: list[np.ndarray] = []
        self._events: list[tuple[int, str]] = []
        self._callback = _CALLBACK(self._receive)  # kept: the library calls it later
        self._library.espeak_SetSynthCallback(self._callback)

    def _receive(self, samples: ctypes._Pointer, count: int, events: ctypes._Pointer) -> int:
        if samples and count:
            self._parts.append(np.ctypeslib.as_array(samples, (count,)).copy())
        number = 0
        while events[number].type != _END:
            event = events[number]
            if event.type == _PHONEME:
                self._events.append((event.audio_position, event.string.decode("utf-8", "replace")))
            number += 1
        return 0

    def say(self, text: str, voice: str, speed: int, pitch: int, pitch_range: int) -> Utterance | None:
        """Speak a text; None if there is no such voice, or nothing is heard.

        Args:
            voice: a language and perhaps a variant, e.g. `en-us+f3`.
            speed: words a minute.
            pitch, pitch_range: in [0, 100].
        """
        self._parts, self._events = [], []
        if self._library.espeak_SetVoiceByName(voice.encode()):
            return None
        for parameter, value in ((_RATE, speed), (_PITCH, pitch), (_RANGE, pitch_range)):
            self._library.espeak_SetParameter(parameter, value, 0)
        data = text.encode() + b"\0"
        self._library.espeak_Synth(data, len(data), 0, 1, 0, 1, None, None)
        self._library.espeak_Synchronize()
        if not self._parts:
            return None
        samples = soxr.resample(np.concatenate(self._parts), self._rate, RATE)
        return Utterance(samples, tuple((start * RATE // 1000, name) for start, name in self._events))


def say_with_flite(text: str, voice: str, stretch: float, pitch: float) -> Utterance:
    """Speak a text with flite.

    Args:
        voice: one of FLITE_VOICES.
        stretch: of the duration; 1: as usual.
        pitch: mean of the fundamental frequency, Hz.
    """
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        command = ["flite", "-voice", voice, "-psdur", "-t", text, "-o", file.name]
        command += ["--setf", f"duration_stretch={stretch:.3f}", "--setf", f"int_f0_target_mean={pitch:.1f}"]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        samples, rate = soundfile.read(file.name, dtype="int16")
    ends = [(name, float(end)) for name, end in (part.split(":") for part in printed.split())]
    starts = [0.0, *(end for _, end in ends[:-1])]
    phonemes = tuple((round(start * RATE), name) for start, (name, _) in zip(starts, ends, strict=True))
    return Utterance(samples if rate == RATE else soxr.resample(samples, rate, RATE), phonemes)


@cache
def _espeak() -> Espeak:
    return Espeak()


def speak(text: str, random: np.random.Generator) -> tuple[str, Utterance] | None:
    """Speak a text in a random voice; return the program and the utterance, None if nothing is heard."""
    if random.random() < 0.5:
        pitch = float(random.uniform(80, 240))
        voice = FLITE_VOICES[random.integers(len(FLITE_VOICES))]
        return "flite", say_with_flite(text, voice, float(random.uniform(0.7, 1.4)), pitch)
    voice = f"{ACCENTS[random.integers(len(ACCENTS))]}+{VARIANTS[random.integers(len(VARIANTS))]}"
    said = _espeak().say(
        text, voice, int(random.integers(110, 260)), int(random.integers(15, 86)), int(random.integers(20, 90))
    )
    return ("espeak", said) if said else None
