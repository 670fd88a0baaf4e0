"""What is fuzzed: each target reads one file of a kind, and may raise MagmergeError alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from magmerge.checkpoints.adapters.adapter_loader import open_adapter
from magmerge.checkpoints.kinds import kinds_of, read_model_config
from magmerge.checkpoints.loader import open_checkpoint
from magmerge.checkpoints.tokens.vocabulary import read_vocabulary
from magmerge.core.errors import MagmergeError
from magmerge.core.models import Checkpoint
from magmerge.core.recipe import Recipe
from magmerge.core.recipe_check import check_text
from magmerge.data.inputs import prepare
from magmerge.data.rows import Preparation, SampleDraw
from magmerge.data.sources import read_samples
from magmerge.evaluation.entries import read_suite

MOST = 1 << 16
"""Entries of a tensor that are read."""
SAMPLES = SampleDraw(name="a", samples=1)
PLAIN = Preparation(image_size=4, mean=(0.5,) * 3, std=(0.5,) * 3)


@dataclass(frozen=True, slots=True)
class Target:
    """A kind of file: what it is called in its folder, how it is read, and what lies beside it."""

    file: str
    read: Callable[[Path], object]
    beside: Mapping[str, str] = field(default_factory=dict)
    """From a file's name to that of one in `fuzz/corpus`."""


def _checkpoint(file: Path) -> None:
    _looked_at(open_checkpoint(file))


def _folder(file: Path) -> None:
    checkpoint = open_checkpoint(file.parent)
    kinds_of(checkpoint, read_model_config(checkpoint))
    _looked_at(checkpoint)


def _looked_at(checkpoint: Checkpoint) -> None:
    """Read some entries of some tensors."""
    for name, spec in list(checkpoint.specs.items())[:4]:
        count = 1
        for size in spec.shape:
            count *= size
        checkpoint.read_part(name, 0, min(count, MOST))


def _recipe(file: Path) -> None:
    text = file.read_bytes().decode("utf-8", "replace")
    recipes = Recipe.all_from_yaml(text, str(file), "better")
    for recipe in recipes:
        again = Recipe.all_from_yaml(recipe.to_yaml(), str(file), "better")
        assert [one.digest for one in again] == [recipe.digest]
    check_text(text, str(file), set())


def _adapter(file: Path) -> None:
    open_adapter(file.parent)


def _pickle(file: Path) -> None:
    _looked_at(open_checkpoint(file))


def _tokenizer(file: Path) -> None:
    read_vocabulary(file.parent)


def _suite(file: Path) -> None:
    read_suite(file)


def _samples(file: Path) -> None:
    rows = read_samples(file.parent if file.suffix == ".png" else file, SAMPLES)
    if file.suffix == ".png":
        prepare(rows, None, PLAIN)


TARGETS: Mapping[str, Target] = MappingProxyType(
    {
        "safetensors": Target("model.safetensors", _checkpoint),
        "index": Target(
            "model.safetensors.index.json",
            _folder,
            {
                "model-00001-of-00002.safetensors": "safetensors/first",
                "model-00002-of-00002.safetensors": "safetensors/second",
            },
        ),
        "config": Target("config.json", _folder, {"model.safetensors": "safetensors/first"}),
        "recipe": Target("recipe.yaml", _recipe),
        "mergekit": Target("recipe.yaml", _recipe),
        "adapter": Target(
            "adapter_config.json", _adapter, {"adapter_model.safetensors": "safetensors/adapter"}
        ),
        "tokenizer": Target("tokenizer.json", _tokenizer),
        "sentencepiece": Target("tokenizer.model", _tokenizer),
        "pickle": Target("model.pt", _pickle),
        "gguf": Target("model.gguf", _checkpoint),
        "suite": Target("suite.yaml", _suite),
        "image": Target("image.png", _samples),
        "rows": Target("rows.jsonl", _samples),
    }
)
CORPUS = Path(__file__).parent / "corpus"


def prepared(target: Target, folder: Path) -> Path:
    """A folder with what lies beside the target's file; where that one goes."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, source in target.beside.items():
        (folder / name).write_bytes((CORPUS / source).read_bytes())
    return folder / target.file


def tried(target: Target, place: Path, content: bytes) -> str:
    """How a file's content was taken: "read", or the name of the error that refused it. Whatever
    else is raised is a fault, and goes on.
    """
    place.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            target.read(place)
        except MagmergeError as error:
            str(error)
            return type(error).__name__
    return "read"
