"""Keras' guide to transfer learning, https://keras.io/guides/transfer_learning/, with a network of your choice.

Flips and small rotations, GlobalAveragePooling, Dropout 0.2, Dense: 20 epochs by Adam with the network frozen. With
--fine-tune, then 10 epochs of all layers at a learning rate of 1e-5. See task.py for the other arguments.
"""

from __future__ import annotations

import keras
import tensorflow as tf
from keras import layers
from task import parser, write

options = parser(__doc__)
options.add_argument("--fine-tune", action="store_true")
arguments = options.parse_args()
keras.utils.set_random_seed(arguments.seed)
family, constructor = arguments.network.split(".")
application = getattr(keras.applications, family)
shape = (arguments.size, arguments.size)

train = keras.utils.image_dataset_from_directory(arguments.folder / "train_val", image_size=shape, batch_size=32)
test = keras.utils.image_dataset_from_directory(arguments.folder / "test", image_size=shape, shuffle=False)
classes = train.class_names
augmentation = keras.Sequential([layers.RandomFlip("horizontal"), layers.RandomRotation(0.1)])
cached = train.cache().prefetch(tf.data.AUTOTUNE)

base = getattr(application, constructor)(weights="imagenet", include_top=False, input_shape=(*shape, 3))
base.trainable = False
inputs = keras.Input((*shape, 3))
x = augmentation(inputs)
x = application.preprocess_input(x)
x = base(x, training=False)  # BatchNormalization stays in inference mode, also when fine-tuning
x = layers.GlobalAveragePooling2D()(x)
x = layers.Dropout(0.2)(x)
model = keras.Model(inputs, layers.Dense(len(classes))(x))

loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile(optimizer=keras.optimizers.Adam(), loss=loss, metrics=["accuracy"])
model.fit(cached, epochs=20, verbose=2)
if arguments.fine_tune:
    base.trainable = True
    model.compile(optimizer=keras.optimizers.Adam(1e-5), loss=loss, metrics=["accuracy"])
    model.fit(cached, epochs=10, verbose=2)

write(arguments.predictions, test.file_paths, classes, keras.ops.softmax(model.predict(test, verbose=0)).numpy())
