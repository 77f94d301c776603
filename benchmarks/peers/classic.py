"""The classic recipe in plain Keras: the frozen network, Flatten, Dense 128 ReLU, softmax; Adam, 10 epochs of batch 32.

The frozen network runs on every image in every epoch, as in most tutorials. See task.py for the arguments.
"""

from __future__ import annotations

import keras
from keras import layers
from task import parser, write

arguments = parser(__doc__).parse_args()
keras.utils.set_random_seed(arguments.seed)
family, constructor = arguments.network.split(".")
application = getattr(keras.applications, family)
shape = (arguments.size, arguments.size)

train = keras.utils.image_dataset_from_directory(arguments.folder / "train_val", image_size=shape, batch_size=32)
test = keras.utils.image_dataset_from_directory(arguments.folder / "test", image_size=shape, shuffle=False)
classes = train.class_names

base = getattr(application, constructor)(weights="imagenet", include_top=False, input_shape=(*shape, 3))
base.trainable = False
inputs = keras.Input((*shape, 3))
x = application.preprocess_input(inputs)
x = base(x, training=False)
x = layers.Flatten()(x)
x = layers.Dense(128, activation="relu")(x)
model = keras.Model(inputs, layers.Dense(len(classes), activation="softmax")(x))

model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
model.fit(train, epochs=10, verbose=2)

write(arguments.predictions, test.file_paths, classes, model.predict(test, verbose=0))
