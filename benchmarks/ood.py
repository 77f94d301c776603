"""How many images of another kind the out-of-distribution detector flags, at how many false alarms.

Command, in a workspace after `dvc repro`: python benchmarks/ood.py OTHER...    # folders or archives of images

Each score gets its threshold on test, for several rates; false alarms are counted by the thresholds of each half on
the other, detections on up to 500 images of each OTHER. The scores: the one of headstart/serving/ood.py, the distance
to the 5th nearest of train; the same to the nearest and to the 20th; Mahalanobis' distance to the nearest class (Lee et
al. 2018, covariance by Ledoit and Wolf); 1 - the highest probability (Hendrycks and Gimpel 2017).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.stats import binomtest
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from headstart import paths
from headstart.config import load_params
from headstart.data.layouts import open_examples
from headstart.data.prepared import load_split
from headstart.data.sources import open_source
from headstart.modalities.loading import read_batches
from headstart.serving import ood
from headstart.training import networks

RATES = (0.05, 0.02, 0.01)
OTHERS = 500
Score = Callable[[np.ndarray, np.ndarray], np.ndarray]  # of features (n, d) and probabilities (n, c): (n,)


def scores(train: np.ndarray, targets: np.ndarray) -> dict[str, Score]:
    """The scores by name, each fitted on features (n, d) of train; higher is stranger."""
    reference = ood.normalize(train)

    def neighbour(k: int) -> Score:
        return lambda features, _: -np.partition(ood.normalize(features) @ reference.T, -k, axis=1)[:, -k]

    means = np.stack([train[targets == target].mean(axis=0) for target in np.unique(targets)])
    precision = LedoitWolf(assume_centered=True).fit(train - means[targets]).precision_

    def mahalanobis(features: np.ndarray, _: np.ndarray) -> np.ndarray:
        apart = [features - mean for mean in means]
        return np.min([((rows @ precision) * rows).sum(axis=1) for rows in apart], axis=0)

    return {
        "5th nearest": lambda features, _: ood.knn_distances(reference, features),
        "nearest": neighbour(1),
        "20th nearest": neighbour(20),
        "Mahalanobis": mahalanobis,
        "1 - probability": lambda _, probabilities: -probabilities.max(axis=1),
    }


def share(hits: np.ndarray) -> str:
    interval = binomtest(int(hits.sum()), len(hits)).proportion_ci(method="wilson")
    return f"{hits.mean():5.1%} ({interval.low:.1%} to {interval.high:.1%})"


def main(others: list[str]) -> None:
    params, classifier = load_params(), networks.load_classifier(paths.MODEL)
    modality, size, scorer, found = classifier.modality, classifier.size, ood.Scorer(classifier), {}
    with open_examples(params.data, modality) as source:
        for split in ("train", "test"):
            rows = load_split(split).sample(frac=1, random_state=0)
            listed = list(rows.path), list(rows.file_hash)
            found[split] = scorer.run(read_batches(source, modality, *listed, size, scorer.batch_size))
            if split == "train":
                targets = rows.target.to_numpy()
    for other in others:
        with open_source(other) as source:
            files = sorted(name for name in source.scan().files if name.lower().endswith(tuple(modality.suffixes)))
            chosen = np.random.default_rng(0).permutation(files)[:OTHERS]
            arrays = [modality.load(source.read(name), size) for name in chosen]
        starts = range(0, len(arrays), scorer.batch_size)
        found[other] = scorer.run(modality.batch(arrays[start : start + scorer.batch_size]) for start in starts)
    print(", ".join(f"{len(rows)} {Path(name).name}" for name, (rows, _) in found.items()))
    for name, score in scores(found["train"][0], targets).items():
        test, *rest = (score(*found[split]) for split in ("test", *others))
        print(f"{name}: ROC AUC " + ", ".join(
            f"{roc_auc_score(np.repeat([0, 1], [len(test), len(other)]), np.concatenate([test, other])):.3f}"
            f" {Path(label).name}" for label, other in zip(others, rest, strict=True)
        ))  # fmt: skip
        for rate in RATES:
            threshold = ood.conformal_threshold(test, rate)
            if np.isinf(ood.conformal_threshold(test[: len(test) // 2], rate)):
                print(f"  rate {rate:g}: test is too small")
                continue
            detected = [f"{Path(o).name} {share(values > threshold)}" for o, values in zip(others, rest, strict=True)]
            print(
                f"  rate {rate:g}: false alarms {share(ood.flag_halves(test, rate))}; detected: " + ", ".join(detected)
            )


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(sys.argv[1:])
