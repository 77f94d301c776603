"""Run the frozen backbone over every example, once: what the feature store has is not computed again.

Reads:   data/prepared/manifest.parquet, the examples.
Writes:  features/train.npy, val.npy, test.npy: (N, feature_dim) of extract.storage, rows in manifest order;
         features/train_views.npy: (N, extract.views, feature_dim), augmented views of the training examples;
         features/meta.json: what they were made by.
Params:  backbone, weights, seed, data, extract.
Command: python -m pipeline extract
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from headstart import keras_backend

keras_backend.choose(Path("params.yaml"))  # before Keras loads

from headstart import paths
from headstart.data.prepared import load_manifest
from headstart.data.watching import unwatched
from headstart.features.encoding import Features, encode
from headstart.features.extraction import retry_on_oom
from headstart.machine import may_have_gpu
from headstart.modalities import load_modality
from headstart.stage import Run, stage


def main() -> None:
    """Run the stage."""
    with stage("extract") as run:
        keras_backend.check_jax(run.params)
        if may_have_gpu():
            from headstart.framework import take_gpus  # takes seconds

            take_gpus("extract")
        for line in unwatched("weights", run.params):
            print(f"extract: {line}")
        retry_on_oom("extract", lambda batch_size: extract(run, batch_size), run.params.extract.batch_size)


def extract(run: Run, batch_size: int | None) -> None:
    """Compute what is missing, and write the outputs."""
    manifest = load_manifest()
    with encode(manifest, run.params, batch_size) as features:
        for split, file in paths.FEATURES.items():
            features.write(run.path(file), split)
        features.write(run.path(paths.TRAIN_VIEWS), "train", augmented=True)
        manifest_sha256 = hashlib.sha256(paths.MANIFEST.read_bytes()).hexdigest()
        run.json(paths.FEATURES_META, {**features.meta, "manifest_sha256": manifest_sha256})
        run.cost(**features.costs())
        print_summary(run, features)


def print_summary(run: Run, features: Features) -> None:
    """Say what it cost."""
    costs, meta, noun = features.costs(), features.meta, load_modality().noun
    views = f" and {costs['views']} augmented views" if costs["views"] else ""
    print(
        f"extract: {costs['examples']} {noun}s{views} through {meta['backbone']} at size {meta['size']}, "
        f"{meta['feature_dim']} features each"
    )
    line = f"extract: {costs['computed']} computed"
    if costs["computed"]:
        rate = f"{costs['examples_per_second']:.0f} {noun}s/s by {meta['engine']} in {meta['precision']}"
        line += f" in {costs['seconds']:.1f} s, {rate} on {costs['device']}"
    if costs["from_store"]:
        line += f"; {costs['from_store']} from the feature store, {costs['seconds_saved']:.1f} s saved"
    print(line)
    for remark in features.remarks():
        print(f"extract: {remark}")


if __name__ == "__main__":
    main()
