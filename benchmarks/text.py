"""Texts: are the features right, how fast are they extracted, and how good is a head on them? All bars in one run.

Command: python benchmarks/text.py FOLDER [--backbone minilm-l6] [--part PART] [--shots 10] [--seeds 3]

FOLDER holds train.csv and test.csv, as Banking77 (https://github.com/PolyAI-LDN/task-specific-datasets).

features   error of Keras and OpenVINO against the formulas of BERT in NumPy and float64, relative to the longest
           feature; and in how many texts bits differ, at other places in other batches, of other lengths
speed      texts a second of the clock, and of the processor's time, which other programs disturb less: extract with
           reading, tokens and store; the network alone in the same batches; the network with every text padded to 64
           tokens, in the order of the table
accuracy   on test.csv, with all of train.csv and with --shots of each class: the pipeline with fine_tune.unfreeze=none,
           and logistic regression (C = 10) on TF-IDF of words and pairs of words
probe      quicker: logistic regression (C = 1) on the last layer's features, standardised, with --shots of each class,
           beside the same TF-IDF; only if asked for. FOLDER may also be a table, half of which is then for testing
tokens     of how many texts the tokens differ from those of another implementation: transformers' in Python, which must
           be installed (`pip install transformers`, 5 or later); only if asked for. FOLDER may also be a table
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
import pandas as pd
import yaml
from prepare import machine
from scipy.special import erf
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from headstart.backbones import get_backbone
from headstart.backbones.hub_text import TextEncoder
from headstart.data.files import file_hash
from headstart.data.sources import open_source
from headstart.data.tables import Columns, Rows, row_name
from headstart.features.engines import Engine, open_engine
from headstart.features.extraction import Extraction
from headstart.features.store import FeatureStore
from headstart.features.views import ViewIndex, ViewLoader
from headstart.framework import device_name
from headstart.modalities import Modality, get_modality

COMPARED, PADDED = 300, 64  # texts whose features are compared; tokens
BERT = ("minilm-l6", "tinybert")  # whose formulas are written down here


def bert(folder: Path, tokens: np.ndarray) -> np.ndarray:
    """Return the mean of the last layer of a BERT, (dim,) float64, of one text (t,), by its formulas."""
    from safetensors.numpy import load_file

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    weights = {name: array.astype(float) for name, array in load_file(folder / "model.safetensors").items()}
    heads = config["num_attention_heads"]

    def dense(x: np.ndarray, name: str) -> np.ndarray:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def normalize(x: np.ndarray, name: str) -> np.ndarray:
        centered = x - x.mean(-1, keepdims=True)
        scaled = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + config["layer_norm_eps"])
        return scaled * weights[f"{name}.LayerNorm.weight"] + weights[f"{name}.LayerNorm.bias"]

    word, position, kind = (
        weights[f"embeddings.{name}_embeddings.weight"] for name in ("word", "position", "token_type")
    )
    x = normalize(word[tokens] + position[: len(tokens)] + kind[0], "embeddings")
    for number in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{number}"
        query, key, value = (
            np.moveaxis(dense(x, f"{layer}.attention.self.{name}").reshape(len(x), heads, -1), 1, 0)
            for name in ("query", "key", "value")
        )
        scores = query @ np.moveaxis(key, 1, 2) / np.sqrt(query.shape[-1])
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        attended = np.moveaxis(shares / shares.sum(-1, keepdims=True) @ value, 0, 1).reshape(len(x), -1)
        x = normalize(x + dense(attended, f"{layer}.attention.output.dense"), f"{layer}.attention.output")
        inner = dense(x, f"{layer}.intermediate.dense")
        inner = inner * (1 + erf(inner / np.sqrt(2))) / 2
        x = normalize(x + dense(inner, f"{layer}.output.dense"), f"{layer}.output")
    return x.mean(axis=0)


def in_batches(engine: Engine, modality: Modality, tokens: list[np.ndarray], order: list[int]) -> np.ndarray:
    """Return the features of texts, computed in batches in that order."""
    size = engine.batch_size
    batches = [modality.batch([tokens[row] for row in order[at : at + size]]) for at in range(0, len(order), size)]
    found = np.concatenate(list(engine.map(batches)))
    features = np.empty_like(found)
    features[order] = found
    return features


def by_length(tokens: list[np.ndarray]) -> list[int]:
    return sorted(range(len(tokens)), key=lambda row: -len(tokens[row]))


def compare_features(row: TextEncoder, modality: Modality, texts: list[str]) -> None:
    size, rng = row.default_size, np.random.default_rng(0)
    tokens = [modality.load(text.encode(), size) for text in texts[:COMPARED]]
    encoder = row.build("pretrained", size, "avg", 0)
    engine = open_engine("openvino", lambda: encoder, modality.spec(size), "float32", None, "text")
    found = in_batches(engine, modality, tokens, by_length(tokens))
    if row.name in BERT:
        reference = np.stack([bert(row.origin.folder(), one) for one in tokens[:100]])
        keras_features = np.concatenate([encoder.predict_on_batch(modality.batch([one])) for one in tokens[:100]])
        for name, features in (("Keras", keras_features), ("OpenVINO", found[:100])):
            error = np.abs(features - reference).max() / np.abs(reference).max()
            print(f"features by {name} against NumPy in float64: relative error {error:.1e}")
    others = [in_batches(engine, modality, tokens, rng.permutation(len(tokens)).tolist()) for _ in range(3)]
    changed = [int((other != found).any(axis=1).sum()) for other in others]
    print(f"texts of {len(tokens)} whose bits differ in three random orders: {', '.join(map(str, changed))}")


def compare_tokens(row: TextEncoder, modality: Modality, texts: list[str]) -> None:
    try:
        from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy
    except ImportError:
        sys.exit("--part tokens needs transformers 5 or later: pip install transformers")
    described, size = json.loads(modality.reading["tokenizer"]), row.default_size
    numbers = described["model"]["vocab"]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vocab.txt"
        file.write_text("\n".join(sorted(numbers, key=numbers.get)) + "\n", encoding="utf-8")
        slow = BertTokenizerLegacy(str(file), do_lower_case=described["normalizer"]["lowercase"])
    start = time.perf_counter()
    found = [modality.load(text.encode(), size).tolist() for text in texts]
    middle = time.perf_counter()
    other = [slow.encode(row.prefix + text, truncation=True, max_length=size) for text in texts]
    end = time.perf_counter()
    unequal = [text for text, one, two in zip(texts, found, other, strict=True) if one != two]
    print(
        f"{row.name}: the tokens of {len(unequal)} of {len(texts):,} texts ({sum(map(len, found)):,} tokens) differ "
        f"from those by transformers in Python; {middle - start:.1f} and {end - middle:.1f} s"
    )
    for text in unequal[:5]:
        print(f"  {text[:100]!r}")


def measure_speed(row: TextEncoder, modality: Modality, table: Path, rounds: int) -> None:
    size = row.default_size
    engine = open_engine(
        "openvino",
        lambda: row.build("pretrained", size, "avg", 0, "half"),
        modality.spec(size),
        "float32",
        None,
        "text",
    )
    source = Rows(open_source(str(table)), Columns(), str(table))
    count = len(source.load(table.name))
    names = [row_name(table.name, number) for number in range(2, 2 + count)]
    data = [source.read(name) for name in names]
    manifest = pd.DataFrame({"path": names, "file_hash": list(map(file_hash, data)), "split": "test"})
    manifest[modality.length] = list(map(len, data))
    loader = ViewLoader(source, modality, size)
    index = ViewIndex(manifest, 0, loader)
    tokens = [modality.load(one, size) for one in data]
    batch = engine.batch_size
    order = list(index.sort(range(count)))
    same = [modality.batch([tokens[place] for place in order[at : at + batch]]) for at in range(0, count, batch)]
    padded = []
    for at in range(0, count, batch):
        (name, array), *_ = modality.batch([one[:PADDED] for one in tokens[at : at + batch]]).items()
        padded.append({name: np.pad(array, ((0, 0), (0, PADDED - array.shape[1])))})

    def extract() -> None:
        with (
            tempfile.TemporaryDirectory() as folder,
            FeatureStore(Path(folder) / "s.sqlite", {}, engine.feature_dim, "float32") as store,
        ):
            Extraction(index, loader, engine, store).compute(range(count), 0)

    clock: dict[str, list[float]] = {"extract": [], "network": [], "padded": []}
    processor: dict[str, list[float]] = {name: [] for name in clock}
    for _ in range(rounds):
        for name, work in (
            ("extract", extract),
            ("network", lambda: list(engine.map(same))),
            ("padded", lambda: list(engine.map(padded))),
        ):
            start, worked = time.perf_counter(), time.process_time()
            work()
            clock[name].append(time.perf_counter() - start)
            processor[name].append(time.process_time() - worked)
    mean = np.mean([len(one) for one in tokens])
    print(f"{row.name}, {count:,} texts of {mean:.0f} tokens, batches of {batch}, best of {rounds}")
    for unit, times in (("clock", clock), ("processor", processor)):
        rate = {name: count / min(values) for name, values in times.items()}
        print(
            f"by the {unit}: extract {rate['extract']:.0f} texts/s, {rate['extract'] / rate['network']:.2f} of the "
            f"network alone in the same batches ({rate['network']:.0f}), {rate['extract'] / rate['padded']:.1f} times "
            f"the network with all texts padded to {PADDED} tokens ({rate['padded']:.0f})"
        )


def pipeline_accuracy(train: pd.DataFrame, test: pd.DataFrame, backbone: str) -> float:
    """Return the accuracy of the head on test, by the four stages that it needs."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in ("pipeline", "headstart"):
            os.symlink(ROOT / name, root / name)
        (root / "texts").mkdir()
        for name, frame in (("train", train), ("test", test)):
            frame.to_csv(root / "texts" / f"{name}.csv", index=False, quoting=csv.QUOTE_ALL)
        params: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
        params |= {"backbone": backbone}
        params["data"]["source"], params["fine_tune"]["unfreeze"] = "texts", "none"
        params["prepare"]["split"] = "exact"  # else few examples of a class may leave none for val
        (root / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
        environment = {**os.environ, "HEADSTART_TRACKING": "off"}
        for stage in ("prepare", "extract", "train_head", "fine_tune", "evaluate"):
            command = [sys.executable, "-m", "pipeline", stage]
            done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"{stage}: {done.stdout}{done.stderr}")
        return float(json.loads((root / "metrics" / "evaluate.json").read_text())["accuracy"])


def tfidf_accuracy(train: pd.DataFrame, test: pd.DataFrame) -> float:
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    classifier = make_pipeline(words, LogisticRegression(C=10, max_iter=300))
    return float(classifier.fit(train.text, train.label).score(test.text, test.label))


def measure_accuracy(backbone: str, train: pd.DataFrame, test: pd.DataFrame, shots: int, seeds: int) -> None:
    for name, parts in (
        (f"{shots} of each class", [few(train, shots, seed) for seed in range(seeds)]),
        ("all of train", [train]),
    ):
        heads = [pipeline_accuracy(part, test, backbone) for part in parts]
        words = [tfidf_accuracy(part, test) for part in parts]
        print(
            f"{name} ({len(parts[0]):,} texts, {len(parts)} draws): head on {backbone} {np.mean(heads):.4f} +- "
            f"{np.std(heads):.4f}, TF-IDF {np.mean(words):.4f} +- {np.std(words):.4f}",
            flush=True,
        )


def few(frame: pd.DataFrame, shots: int, seed: int) -> pd.DataFrame:
    return frame.groupby("label").sample(shots, random_state=seed)


def probe(
    row: TextEncoder, modality: Modality, train: pd.DataFrame, test: pd.DataFrame, shots: int, seeds: int
) -> None:
    size = row.default_size
    engine = open_engine(
        "openvino", lambda: row.build("pretrained", size, "avg", 0), modality.spec(size), "float32", None, "text"
    )

    def features(frame: pd.DataFrame) -> np.ndarray:
        tokens = [modality.load(text.encode(), size) for text in frame.text]
        return in_batches(engine, modality, tokens, by_length(tokens))

    tested, scores, words = features(test), [], []
    for seed in range(seeds):
        part = few(train, shots, seed)
        classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
        scores.append(classifier.fit(features(part), part.label).score(tested, test.label))
        words.append(tfidf_accuracy(part, test))
    print(
        f"{row.name}, {shots} of each class, {seeds} draws: {np.mean(scores):.4f} +- {np.std(scores):.4f}; TF-IDF "
        f"{np.mean(words):.4f} +- {np.std(words):.4f}"
    )


def read(file: Path) -> pd.DataFrame:
    frame = pd.read_csv(file, dtype=str, keep_default_na=False)
    columns = Columns().find(list(frame.columns), file.name)
    return pd.DataFrame({"text": frame[columns.text], "label": frame[columns.label]})


def main() -> None:
    parser = argparse.ArgumentParser(description="Texts: features, speed, accuracy.")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="with train.csv and test.csv, or a table")
    parser.add_argument("--backbone", default="minilm-l6")
    parser.add_argument(
        "--part", choices=["features", "speed", "accuracy", "probe", "tokens"], help="default: the first three"
    )
    parser.add_argument("--shots", type=int, default=10, help="training texts of a class")
    parser.add_argument("--seeds", type=int, default=3, help="draws of these")
    parser.add_argument("--rounds", type=int, default=3, help="of measuring speed")
    args = parser.parse_args()
    row = get_backbone(args.backbone)
    assert isinstance(row, TextEncoder)
    modality = get_modality(row.modality, row.reading())
    if args.folder.is_file():
        whole = read(args.folder)
        test = whole.groupby("label").sample(frac=0.5, random_state=0)
        train = whole.drop(test.index)
    else:
        train, test = read(args.folder / "train.csv"), read(args.folder / "test.csv")
    print(f"{machine()}, {device_name()}, {args.backbone}")
    if args.part in (None, "features"):
        compare_features(row, modality, list(test.text))
    if args.part == "tokens":
        compare_tokens(row, modality, [*train.text, *test.text])
    if args.part in (None, "speed"):
        measure_speed(row, modality, args.folder / "test.csv", args.rounds)
    if args.part == "probe":
        probe(row, modality, train, test, args.shots, args.seeds)
    if args.part in (None, "accuracy"):
        measure_accuracy(args.backbone, train, test, args.shots, args.seeds)


if __name__ == "__main__":
    main()
