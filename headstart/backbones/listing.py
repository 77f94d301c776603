"""What `headstart backbones` prints: the table of backbones, or the blocks of one."""

from __future__ import annotations

from collections.abc import Sequence

from headstart.backbones import BACKBONES, cached_backbones, get_backbone
from headstart.errors import UserError


def run(words: Sequence[str]) -> None:
    """Print the table of backbones or the blocks of one, or fetch the files of one: `fetch NAME`.

    Raises:
        UserError: if there is no such backbone, its files cannot be downloaded, or the words mean something else.
    """
    if words[:1] == ["fetch"] and len(words) == 2:
        print(f"{words[1]}: its files are in {get_backbone(words[1]).fetch()}")
    elif len(words) > 1 or words == ["fetch"]:
        raise UserError("headstart backbones takes nothing, the name of a backbone, or fetch and a name")
    else:
        print_backbones(*words)


def print_backbones(name: str | None = None) -> None:
    """Print a row per backbone, or per block of the one called `name`, which loads TensorFlow.

    Raises:
        UserError: if there is no backbone of that name.
    """
    if name is not None:
        _print_blocks(name)
        return
    here = set(cached_backbones())
    print(
        f"{'backbone':<18} {'of':<6} {'features':>8} {'weights':>9} {'size':>5} {'min':>5}  {'here':<5} "
        f"{'licence':<14} preprocessing"
    )
    for name, row in BACKBONES.items():
        print(
            f"{name:<18} {row.modality:<6} {row.feature_dim:>8} {row.parameters:>7.1f} M {row.default_size:>5} "
            f"{row.min_size:>5}  {'yes' if name in here else '-':<5} {row.licence or '-':<14} {row.in_words()}"
        )
    asked = {name: consent for name, row in BACKBONES.items() if (consent := row.consent())}
    print(
        "\nsize, min: the default and the smallest `extract.size`. features: vector length after average pooling."
        "\nhere: the pretrained weights are on this machine; others are downloaded by `extract`."
        "\nlicence: of the weights; those of keras.applications: https://keras.io/api/applications."
        "\ntiny's weights come with this repository and were trained on drawn images: see pretraining/README.md."
    )
    for name, consent in asked.items():
        print(f"{name} needs a consent: {consent}.")


def _print_blocks(name: str) -> None:
    """Print a row per block, from the input to the output."""
    backbone = get_backbone(name)
    blocks = backbone.blocks(backbone.build("none", backbone.default_size, "avg", seed=0))
    print(f"{'from the output':>15}  {'block':<32} {'layers':>6} {'weights':>12}  output")
    for number, block in enumerate(blocks):
        shape = " x ".join(map(str, block.layers[-1].output.shape[1:]))
        count = len(blocks) - number
        print(f"{count:>15}  {block.name:<32} {len(block.layers):>6} {block.parameters:>12,}  {shape}")
    print(
        f"\nfine_tune.unfreeze: a number of blocks from the output, the name of a block or of a layer of {name},"
        "\na share of its layers, all, or none."
    )
