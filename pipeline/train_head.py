"""Train a classifier on the features. No image is touched, so an epoch takes a moment.

Reads:   data/prepared, features/train.npy, train_views.npy, val.npy.
Writes:  models/head.keras: (N, feature_dim) float32 -> (N, n_classes); plots/train_head.csv; metrics/train_head.json.
Params:  seed, train_head.
Command: python -m pipeline.train_head
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline import networks, paths, stage
from pipeline.dataset import EVALUATION_BATCH, FeatureBatches, load_classes, load_features, load_split, load_views
from pipeline.engine import keras, make_repeatable
from pipeline.outputs import Outputs
from pipeline.params import Params
from pipeline.training import KeepBest, verbosity


def train(
    train_set: FeatureBatches,
    val_set: FeatureBatches,
    feature_dim: int,
    n_classes: int,
    hidden: Sequence[int],
    dropout: float,
    learning_rate: float,
    epochs: int,
) -> tuple[keras.Model, KeepBest]:
    """Adam on the cross-entropy; the head is left as it was after its best epoch on val."""
    head = networks.build_head(feature_dim, n_classes, hidden, dropout)
    # The wrapper is compiled, not the head: optimizer state has no place in the file that is shipped.
    trainer = keras.Model(head.inputs, head.outputs)
    trainer.compile(
        keras.optimizers.Adam(learning_rate),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        steps_per_execution=8,  # a step takes less time than Python takes between two
    )
    keep = KeepBest()
    trainer.fit(train_set, validation_data=val_set, epochs=epochs, callbacks=[keep], verbose=verbosity())
    return head, keep


def main(params: Params, outputs: Outputs) -> None:
    """Run the stage."""
    head_file = outputs.path(paths.HEAD)
    make_repeatable(params.seed)
    classes = load_classes()
    train_images, val_images = load_split("train"), load_split("val")
    features = load_features("train", len(train_images))
    batch_size = params.train_head.batch_size
    head, keep = train(
        FeatureBatches(
            features, train_images.target.to_numpy(), batch_size, load_views(len(train_images)), params.seed
        ),
        FeatureBatches(load_features("val", len(val_images)), val_images.target.to_numpy(), EVALUATION_BATCH),
        features.shape[1],
        len(classes),
        params.train_head.hidden,
        params.train_head.dropout,
        params.train_head.learning_rate,
        params.train_head.epochs,
    )
    outputs.csv(paths.curves("train_head"), keep.curves())
    networks.save(head, head_file, classes)
    outputs.json(
        paths.metrics("train_head"),
        {
            "val_accuracy": keep.best["val_accuracy"],
            "val_loss": keep.best["val_loss"],
            "best_epoch": keep.best["epoch"],
        },
    )
    print(f"train_head: {keep.summary()}")


if __name__ == "__main__":
    stage.run("train_head", main)
