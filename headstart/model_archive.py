"""What a .keras file says about itself: it may come from anybody, and is looked through before Keras opens it.

A .keras file is a zip of the weights, of config.json, which names the classes of all layers, and of what
`headstart.training.networks.save` adds: classes.json, the names of the classes, and ABOUT.
"""

from __future__ import annotations

import importlib
import json
import math
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from headstart import lockfile
from headstart.errors import HUB_EXTRA, UserError
from headstart.zips import open_zip

CLASSES, ABOUT, CONFIG, METADATA = "classes.json", "headstart.json", "config.json", "metadata.json"
DATE_SAVED = "1980-01-01@00:00:00"  # as METADATA has it: the same model gives the same bytes
WEIGHTS = "model.weights"  # the beginning of the names of members that hold weights
HUB = "keras-hub"  # the package
MAX_MEMBERS, MAX_TEXT_BYTES = 1000, 2**24  # the config of the largest backbone has a megabyte
MAX_ABOUT_BYTES = 2**26  # it holds the tokenizer of texts; that of 100 languages has 17 MB before it is escaped
MAX_RATIO, MIN_BYTES = 10, 2**26  # weights hardly compress

# Objects that a config may name, by their modules: what networks consist of. Other parts of Keras work on files.
_MODULES = re.compile(
    r"keras(\.(layers|models|ops|initializers|regularizers|constraints|activations|dtype_policies|quantizers))?"
    r"|keras\.src\.(layers|models|ops|initializers|regularizers|constraints|activations|dtype_policies|quantizers"
    r"|applications)\..*"
    r"|keras_hub\.src\.layers\.modeling\..*"
    r"|keras_hub\.src\.models\.(\w+\.\w+_layers|deberta_v3\.disentangled_attention_encoder)"
)
# Layers that hold code, run another framework's, or read files.
_CODE = {"Lambda", "TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer", "__lambda__", "__typespec__"}
_FILES = {"StringLookup", "IntegerLookup", "TextVectorization"}
_KERAS = {"DTypePolicy", "Functional", "Model", "Sequential"}  # of what is in `keras` itself
_FUNCTIONS = {"builtins", "keras.activations", "keras.ops"}  # `builtins`: activations, by their names


def write_members(file: Path, members: dict[str, bytes]) -> None:
    """Write a .keras file of these members; the same ones give the same bytes."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content)  # ZipInfo's date is 1980-01-01


def read_texts(file: Path) -> dict[str, Any]:
    """Return CONFIG, CLASSES and ABOUT of a .keras file, from JSON, by name: those that it has.

    Raises:
        UserError: if it has layers that need code of their own, by name.
        Exception: what zipfile and json raise if it is damaged, or larger inside than such files are.
    """
    if file.suffix != ".keras":  # Keras chooses the format by the suffix, and a file can be of two formats
        raise ValueError("its name does not end in .keras")
    with open_zip(file, MAX_MEMBERS) as archive:
        members = archive.infolist()
        sizes = {member.filename: member.file_size for member in members}
        if len(sizes) < len(members):
            raise ValueError("it has two members of the same name")
        most = max(MAX_RATIO * file.stat().st_size, MIN_BYTES)
        if sum(sizes.values()) > most:
            raise ValueError(f"it unpacks to more than {most >> 20} MiB, which networks do not")
        names = [name for name in (CONFIG, CLASSES, ABOUT) if name in sizes]
        for name in names:
            most = MAX_ABOUT_BYTES if name == ABOUT else MAX_TEXT_BYTES
            if sizes[name] > most:
                raise ValueError(f"its {name} has more than {most >> 20} MiB")
        texts = {name: json.loads(archive.read(name)) for name in names}
    for name, problem in _problems(texts.get(CONFIG)):
        if problem:
            raise UserError(
                f"{file}: the layer {name!r} is {problem}; such a model is not opened, since it could run any code. "
                "Build it from layers of Keras alone"
            )
    return texts


def is_recorded(file: Path) -> bool | None:
    """As `lockfile.is_recorded`; None also if dvc.lock is damaged, which says nothing about the model."""
    try:
        return lockfile.is_recorded(file)
    except UserError:
        return None


def has_hub_layers(config: Any) -> bool:
    """Whether a network has layers of KerasHub, by its config."""
    return '"keras_hub' in json.dumps(config)


def import_layers(config: Any) -> None:
    """Import KerasHub, with whose layers Keras can then open a network, if its config names some.

    Raises:
        UserError: if it is not installed.
    """
    if not has_hub_layers(config):
        return
    try:
        importlib.import_module("keras_hub")
    except ImportError as error:
        raise UserError(f"this model has layers of KerasHub, which is not installed; install {HUB_EXTRA}") from error


def check_weights(file: Path) -> None:
    """Check that a network asks for no more weights than its file holds, before they take memory.

    Building it as a graph takes about as long as loading it.

    Raises:
        UserError: if it asks for more.
        Exception: what Keras, zipfile and json raise if it is damaged.
    """
    from headstart.framework import keras, tf  # takes seconds

    with open_zip(file, MAX_MEMBERS) as archive:
        config = json.loads(archive.read(CONFIG))
        stored = sum(member.file_size for member in archive.infolist() if member.filename.startswith(WEIGHTS))
    config.pop("compile_config", None)
    import_layers(config)
    with tf.Graph().as_default():  # where variables have a shape, but no values yet
        network = keras.saving.deserialize_keras_object(config, safe_mode=True)
        asked = sum(math.prod(variable.shape) for variable in network.variables)
    if asked > stored:  # each takes a byte or more
        raise UserError(
            f"{file}: its config asks for {asked:,} weights, but the file holds {stored:,} bytes of them; such a model "
            "is not opened, since it could fill the memory. Save it again"
        )


def _problems(config: Any, layer: str = "") -> Iterator[tuple[str, str]]:
    """Yield, of each object in a config, the layer that it belongs to, and what is wrong with it, or nothing."""
    if isinstance(config, dict):
        inner = config.get("config")
        name = inner.get("name") if isinstance(inner, dict) else None
        layer = name if isinstance(name, str) else layer
        if "class_name" in config:
            yield layer, _problem(config.get("module"), str(config["class_name"]), inner)
    for item in config.values() if isinstance(config, dict) else config if isinstance(config, list) else ():
        yield from _problems(item, layer)


def _problem(module: Any, kind: str, config: Any) -> str:
    if kind in _CODE:
        return f"a {kind}, which holds code"
    if kind in _FILES:
        return f"a {kind}, which reads files"
    if kind == "function":
        return "" if module in _FUNCTIONS else f"the function {config} of {module}"
    if module is None:
        return "" if kind.startswith("__") else f"the custom object {kind}"
    known = _MODULES.fullmatch(str(module)) and (module != "keras" or kind in _KERAS)
    return "" if known else f"the custom object {module}.{kind}"
