"""fastai as its quick start has it: vision_learner, then fine_tune, with the network and ImageNet weights of timm.

Trains on train and validates on val after each epoch. See task.py for the arguments.
"""

from __future__ import annotations

import sys

import timm
from fastai.vision.all import ImageDataLoaders, Resize, accuracy, aug_transforms, set_seed, vision_learner
from task import parser, write

EPOCHS = 5  # after one with the network frozen

arguments = parser(__doc__).parse_args()
set_seed(arguments.seed)
wanted = arguments.network.split(".")[1].lower()
names = [name for name in timm.list_models() if name.replace("_", "") in (wanted, f"{wanted}100")]  # 100: of the width
if not names:
    sys.exit(f"timm has no {arguments.network}; leave fastai out of --peers")

loaders = ImageDataLoaders.from_folder(
    arguments.folder, train="train", valid="val", bs=32, seed=arguments.seed,
    item_tfms=Resize(460), batch_tfms=aug_transforms(size=arguments.size),
)  # fmt: skip
learner = vision_learner(loaders, names[0], metrics=accuracy)
learner.fine_tune(EPOCHS)

images = sorted(str(file) for file in (arguments.folder / "test").glob("*/*"))
probabilities, _ = learner.get_preds(dl=loaders.test_dl(images))
write(arguments.predictions, images, list(loaders.vocab), probabilities.numpy())
