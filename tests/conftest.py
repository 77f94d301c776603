from __future__ import annotations

import importlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from headstart import paths, tracking
from headstart.head_config import OPEN
from headstart.validation import SAFE_LOADER

os.environ["HEADSTART_TRACKING"] = "off"  # tests of tracking turn it on, and so do projects

ROOT = Path(__file__).parent.parent
COLOURS = {"blue": (40, 40, 200), "green": (40, 180, 40), "red": (200, 40, 40)}
SMALL = {  # a run of seconds
    "prepare.val_fraction": 0.25,
    "prepare.test_fraction": 0.25,
    "prepare.max_bad_fraction": 0.0,
    "prepare.near_distance": 0.0,  # the photos of a class differ in noise alone
    "extract.size": 32,
    "extract.batch_size": 16,
    "train_head.hidden": [8],
    "train_head.epochs": 3,
    "train_head.learning_rate": 0.01,
    "fine_tune.epochs": 1,
    "fine_tune.folds": 0,
    "fine_tune.refit": False,
    "fine_tune.trunk_cache": "off",  # else each run builds and converts a second network
    "evaluate.top_k": 2,
}


# The longest first, so that no process is left with one of them when the others have nothing more to do.
LONGEST = ("test_end_to_end", "test_experiments", "test_extract", "test_fine_tune", "test_folds", "test_stages")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


def paint(file: Path, colour: tuple[int, int, int], seed: int, size: tuple[int, int] = (24, 20)) -> None:
    """Write an image, under noise: plain red, green with vertical stripes, or blue with horizontal ones.

    Equal arguments give equal files.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).normal(0, 20, (size[1], size[0], 3))
    y, x = np.mgrid[: size[1], : size[0]][..., None]
    stripes = [np.ones_like(x), x // 4 % 2, y // 4 % 2][int(np.argmax(colour))]
    Image.fromarray(np.uint8(np.clip(noise + stripes * colour, 0, 255))).save(file)


def paint_classes(folder: Path, count: int = 16, suffix: str = ".png", first: int = 0) -> Path:
    """Write `count` images a class; returns the folder."""
    for number, (label, colour) in enumerate(COLOURS.items()):
        for index in range(first, first + count):
            paint(folder / label / f"{index:03}{suffix}", colour, 1000 * number + index)
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Callable[..., Path]:
    """Makes a folder of `count` images a class under tmp_path."""
    return lambda name="photos", **options: paint_classes(tmp_path / name, **options)


def write_params(file: Path, start: Path = ROOT / "params.yaml", **changes: object) -> None:
    """Write the params of `start`, by default the committed ones, with `changes`, by dotted key."""
    params = yaml.load(start.read_text(encoding="utf-8"), SAFE_LOADER)
    for key, value in changes.items():
        *sections, last = key.split(".")
        target = params
        for section in sections:
            target = target[section]
        target[last] = value
    file.write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")


def run_stages(*stages: str, tracked: bool = False) -> None:
    """Run them in this process, by the params.yaml of the current folder; a UserError is raised as such.

    Args:
        tracked: log to MLflow, which takes seconds.
    """
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with pytest.MonkeyPatch.context() as patch:
            if not tracked:
                patch.setattr(tracking, "start", lambda *_: tracking.NO_LOGGER)
            for stage in stages:
                importlib.import_module(f"pipeline.{stage}").main()
    except SystemExit as end:
        raise (end.__cause__ if isinstance(end.__cause__, Exception) else end) from None
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def make_extracted(
    folder: Path, make: Callable[[], object] = lambda: paint_classes(Path("photos")), **changes: object
) -> Path:
    """Put examples (by default photos), params.yaml and what prepare and extract make of them into `folder`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("DVC_ROOT", raising=False)
        make()
        write_params(Path("params.yaml"), **{**SMALL, "data.source": "photos", **changes})
        run_stages("prepare", "extract")
    shutil.copy(folder / "params.yaml", folder / "start.yaml")
    return folder


@pytest.fixture(scope="session")
def extracted(tmp_path_factory) -> Path:
    """A folder with the features of photos: to be copied."""
    return make_extracted(tmp_path_factory.mktemp("extracted"))


SHORT = {"backbone": "short", "weights": "none"}


@pytest.fixture(scope="session")
def extracted_short(tmp_path_factory) -> Path:
    """As `extracted`, by `short`, a backbone of four blocks that compiles quickly."""
    register_short()
    return make_extracted(tmp_path_factory.mktemp("extracted"), **SHORT)


@pytest.fixture(scope="session")
def extracted_texts(tmp_path_factory) -> Path:
    """As `extracted_short`, of texts by a small BERT, which is also the backbone of the copies."""
    from text_models import TEXTS, write_texts

    return make_extracted(tmp_path_factory.mktemp("extracted"), write_texts, **TEXTS)


@pytest.fixture(scope="session")
def extracted_sounds(tmp_path_factory) -> Path:
    """As `extracted_short`, of recordings by a small WaveNet."""
    from sound_models import SOUNDS, register_wavenet, write_recordings

    register_wavenet()
    return make_extracted(tmp_path_factory.mktemp("extracted"), write_recordings, **SOUNDS)


def finish(folder: Path, extracted: Path, **changes: object) -> Path:
    """Make `folder`: `extracted` after the other stages."""
    shutil.copytree(extracted, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("DVC_ROOT", raising=False)
        write_params(Path("params.yaml"), Path("start.yaml"), **changes)
        run_stages("train_head", "fine_tune", "evaluate")
    return folder


@pytest.fixture(scope="session")
def finished_photos(tmp_path_factory, extracted) -> Path:
    """A folder after all five stages on photos, in which nothing is fine-tuned: to be copied, or read only."""
    folder = tmp_path_factory.mktemp("finished") / "here"
    return finish(folder, extracted, **{"train_head.epochs": 30, "fine_tune.unfreeze": "none"})


@pytest.fixture(scope="session")
def finished_sounds(tmp_path_factory, extracted_sounds) -> Path:
    """As `finished_photos`, on recordings, with fine-tuning."""
    chosen = {f"train_head.{key}": value for key, value in OPEN.items()}  # of several depths
    return finish(tmp_path_factory.mktemp("finished") / "here", extracted_sounds, **chosen)


@pytest.fixture(scope="session")
def finished_texts(tmp_path_factory) -> Path:
    """As `finished_photos`, on a table of texts, one of which looks like HTML."""
    from text_models import finish, make_split_table

    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("DVC_ROOT", raising=False)
        finish(folder, make_split_table())
    return folder


def register_short() -> None:
    """Make the backbone `short` known in this process: four times convolution, BatchNorm and ReLU, random weights."""
    import keras

    from headstart import backbones
    from headstart.backbones.base import BACKBONE_LAYER, POOL_LAYER, Backbone, Block
    from headstart.backbones.depths import find_taps, pool_name

    class Short(Backbone):
        def build(self, weights: str, size: int, pooling: str, seed: int, depth: str = "last") -> keras.Model:
            keras.utils.set_random_seed(seed)
            x = image = keras.Input((size, size, 3))
            for number, channels in enumerate((8, 16, 32, 128)):
                name = f"block_{number}"
                options = {"use_bias": False, "kernel_initializer": "he_normal", "name": f"{name}_conv"}
                x = keras.layers.Conv2D(channels, 3, 2, "same", **options)(x)
                x = keras.layers.BatchNormalization(name=f"{name}_norm")(x)
                x = keras.layers.ReLU(name=f"{name}_relu")(x)
            taps = find_taps(self._blocks(keras.Model(image, x).layers), x, depth)
            outputs = [x, *(layer.output for _, layer in taps)]
            base = keras.Model(image, outputs if taps else x, name=BACKBONE_LAYER, trainable=False)
            pixels = keras.Input((size, size, 3), name="image")
            maps = base(pixels / 127.5 - 1.0, training=False)
            names = [POOL_LAYER, *(pool_name(name, number) for number, (name, _) in enumerate(taps, 1))]
            pool = getattr(keras.layers, f"Global{'Max' if pooling == 'max' else 'Average'}Pooling2D")
            pooled = [pool(name=name)(one) for name, one in zip(names, maps if taps else [maps], strict=True)]
            features = keras.layers.Concatenate(name="features")(pooled) if taps else pooled[0]
            return keras.Model({"image": pixels}, features, name="encoder")

        def blocks(self, encoder: keras.Model) -> list[Block]:
            return self._blocks(encoder.get_layer(BACKBONE_LAYER).layers)

        def _blocks(self, layers: list[keras.Layer]) -> list[Block]:
            found: dict[str, list[keras.Layer]] = {}
            for layer in layers:
                found.setdefault(layer.name[:7] if layer.name.startswith("block_") else "stem", []).append(layer)
            return [Block(name, tuple(layers)) for name, layers in found.items()]

    backbones.register(Short("short", "image", 32, 128, 0.04, "RGB in [-1, 1]"))


SHIPPED_CLASSES = ["blue", "green", "rosé"]


@pytest.fixture(scope="session")
def shipped(tmp_path_factory) -> Path:
    """A model file as fine_tune writes it, of few layers: converters take a minute for all of a backbone's.

    Its head has a hidden layer, and takes roots of features of two depths.
    """
    import keras

    from headstart.backbones import get_backbone
    from headstart.backbones.base import BACKBONE_LAYER, POOL_LAYER
    from headstart.backbones.depths import pool_name
    from headstart.modalities import get_modality
    from headstart.training import networks

    keras.utils.set_random_seed(0)
    inner = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False)(inner)
    x = early = keras.layers.ReLU(6.0)(keras.layers.BatchNormalization()(x))
    x = keras.layers.DepthwiseConv2D(3, padding="valid")(keras.layers.ZeroPadding2D(1)(x))
    base = keras.Model(inner, [x, early], name=BACKBONE_LAYER)
    image = keras.Input((32, 32, 3), name="image")
    maps = base(get_backbone("tiny").preprocess(image), training=False)
    names = (POOL_LAYER, pool_name("half", 1))
    pooled = [keras.layers.GlobalAveragePooling2D(name=name)(one) for name, one in zip(names, maps, strict=True)]
    encoder = keras.Model({"image": image}, keras.layers.Concatenate(name="features")(pooled), name="encoder")
    head = networks.build_head(16, len(SHIPPED_CLASSES), [8], dropout=0.5, of_roots=True)
    network = networks.join(get_modality("image").front(32), encoder, head)
    file = tmp_path_factory.mktemp("models") / "model.keras"
    networks.save(network, file, SHIPPED_CLASSES, modality="image", size=32)
    return file


@pytest.fixture(scope="session")
def shipped_texts(tmp_path_factory) -> Path:
    """As `shipped`, for texts, by a small BERT."""
    from text_models import LONGEST, WORDS, write_bert

    from headstart.backbones import get_backbone
    from headstart.modalities import get_modality
    from headstart.training import networks

    folder = tmp_path_factory.mktemp("models")
    bert = get_backbone(str(write_bert(folder / "bert")))
    encoder, reading = bert.build("pretrained", LONGEST, "avg", 0), bert.reading()
    head = networks.build_head(encoder.output_shape[1], len(WORDS), [8], dropout=0.5)
    network = networks.join(get_modality("text", reading).front(LONGEST), encoder, head)
    file = folder / "model.keras"
    networks.save(network, file, sorted(WORDS), modality="text", size=LONGEST, reading=reading)
    return file


@pytest.fixture(scope="session")
def shipped_sounds(tmp_path_factory) -> Path:
    """As `shipped`, for recordings of a second, by a small WaveNet."""
    import keras

    from headstart.backbones import sound_encoders, wavenet
    from headstart.modalities import get_modality
    from headstart.training import networks

    small = partial(wavenet.build_wavenet, channels=8, dilations=(1, 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sound_encoders, "build_wavenet", small)
        encoder = sound_encoders.ROWS[0].build("none", 1, "avg", 0, "half")
    keras.utils.set_random_seed(0)
    head = networks.build_head(encoder.output_shape[1], 3, [8], dropout=0.5)
    file = tmp_path_factory.mktemp("models") / "model.keras"
    network = networks.join(get_modality("audio").front(1), encoder, head)
    networks.save(network, file, ["bell", "drum", "string"], modality="audio", size=1)
    return file


@pytest.fixture
def empty_workspace(tmp_path: Path, monkeypatch) -> Path:
    """A folder of its own as the working directory, in which prepare can run once a source and params are there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    paths.WATCHED.mkdir(parents=True)
    return tmp_path


@pytest.fixture(scope="session")
def fresh_store(tmp_path_factory) -> Path:
    """An MLflow store without runs: its first use takes seconds, a copy of it none."""
    from mlflow import MlflowClient

    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch, fresh_store: Path) -> Path:
    """A repository with a store; the current folder is a copy of it, as DVC makes one for a temporary experiment."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "DVC_ROOT"):
        monkeypatch.delenv(name, raising=False)
    shutil.copy(fresh_store, tmp_path / "mlflow.db")
    (tmp_path / "copy").mkdir()
    monkeypatch.chdir(tmp_path / "copy")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path


@pytest.fixture
def browser():
    """Chromium without a window, by Playwright; skips where none is installed."""
    names = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome", "chrome")]
    file = next((path for path in names if path), None)
    if file is None:
        pytest.skip("no Chromium or Chrome on this machine")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=file, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def shown(browser) -> Callable[[Path], tuple]:
    """Opens a page with all that is folded, when its pictures are there: the tab, what it asked for, its complaints."""

    def show(page: Path) -> tuple:
        tab = browser.new_page(viewport={"width": 1200, "height": 900})
        requests, errors = [], []
        tab.on("request", lambda request: requests.append(request.url))
        tab.on("console", lambda message: errors.append(message.text))
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.goto(page.resolve().as_uri())
        tab.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        tab.evaluate("document.querySelectorAll('img').forEach(i => i.loading = 'eager')")
        tab.wait_for_function("[...document.images].every(i => i.complete)")
        return tab, requests, errors

    return show


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def wait_for(url: str, process: subprocess.Popen) -> None:
    """Return when the server that `process` starts answers at `url`."""
    until = time.monotonic() + 120
    while True:
        try:
            urllib.request.urlopen(url, timeout=1).close()
            return
        except OSError:
            assert process.poll() is None, process.communicate()[0] or f"it ended with {process.returncode}"
            assert time.monotonic() < until, f"no answer at {url}"
            time.sleep(0.1)


class Project:
    """A clone of this repository with photos of its own."""

    def __init__(self, root: Path, env: dict[str, str] | None = None) -> None:
        self.root = root
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("DVC_", "MLFLOW_", "TF_", "HEADSTART_"))
        }
        self.env = {
            **inherited,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "KERAS_HOME": str(root / "keras"),
            **{
                f"GIT_{who}_{what}": "test@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
            },
            **(env or {}),
        }

    def run(self, command: str, code: int | None = 0, **env: str) -> str:
        """What `command` printed; its exit code must be `code`."""
        done = subprocess.run(
            command, shell=True, cwd=self.root, env={**self.env, **env}, capture_output=True, text=True, check=False
        )
        output = done.stdout + done.stderr
        assert code is None or done.returncode == code, output
        return output

    def set(self, **changes: object) -> None:
        write_params(self.root / "params.yaml", **{"data.source": "photos", **SMALL, **changes})


def make_project(root: Path, **changes: object) -> Project:
    """Make one in `root`, with `changes` of the params of `Project.set`."""
    root.mkdir(exist_ok=True)
    for name in ("headstart", "pipeline", ".dvcignore", ".gitignore", "dvc.yaml", "data/watched"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, root / name)
    project = Project(root)
    paint_classes(root / "photos")
    project.set(**changes)
    project.run("git init -q && dvc init -q && git add -A && git commit -qm start")
    return project


@pytest.fixture(scope="session")
def new_project(tmp_path_factory) -> Path:
    return make_project(tmp_path_factory.mktemp("new") / "project").root


@pytest.fixture
def project(tmp_path: Path, new_project) -> Project:
    shutil.copytree(new_project, tmp_path / "project", symlinks=True)
    return Project(tmp_path / "project")
