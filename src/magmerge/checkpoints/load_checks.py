"""Whether a model's library would load a folder: config and tokenizer against tensors, by headers.

What is not sure is no fault: models of all architectures come here, also of libraries unknown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from magmerge.checkpoints.donor import (
    CONFIG,
    DIFFUSERS,
    MODEL,
    MODULES,
    PIPELINE,
    TOKENS,
)
from magmerge.checkpoints.heads import WITH_A_HEAD
from magmerge.checkpoints.tokens.vocabulary import TextError, vocabulary_of
from magmerge.core.errors import Fault, shortened
from magmerge.core.types import TensorSpec

RESTORE = "restore the config.json that was made for these tensors"
RESTORE_TOKENIZER = "restore the tokenizer that the model was trained with"
BEYOND = f"{RESTORE_TOKENIZER}, or give the embeddings a row for each token"
TABLES = (*TOKENS, "token_embedding")
"""What the names of token embeddings end in, CLIP's too."""
PREDICTS = tuple(ending for ending in WITH_A_HEAD if ending != "ForPreTraining")
LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
OWN_COUNTS = ("num_hidden_groups", "block_sizes", "depths", "num_codebooks", "H_cycles")
"""Keys of configs whose models use a layer several times, or have several stacks or heads."""
MORE_ROWS = ("mllama", "mllama_text_model", "kyutai_speech_to_text")
"""Types of models that have more token embeddings than vocab_size tells."""
CLASSIFIES = re.compile(r"For(Sequence|Token|Image|Audio|Video)Classification(WithTeacher)?$")
CLASSES = ("classifier.weight", "score.weight", "classifier.out_proj.weight")
"""The last layer of transformers' classifiers."""
LOADED_ONLY_QUANTISED = ("gptq", "awq")
WITH_WEIGHTS = ("Dense", "LayerNorm", "CNN", "LSTM", "WeightedLayerPooling")
"""Modules of a sentence encoder that have weights of their own."""
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
FIRST_NUMBER = re.compile(r"^(.*?)\.(\d+)\.")


class Written(NamedTuple):
    """A model's folder as its library finds it: headers by tensor, texts by file, and the files of
    its weights. `parts` are the folders of a pipeline's models.
    """

    specs: Mapping[str, TensorSpec]
    texts: Mapping[str, bytes]
    files: Sequence[str] = ()
    parts: Sequence[str] = ()

    @property
    def config(self) -> dict[str, Any]:
        """Its config.json; empty where there is none, or where it cannot be read."""
        return _object(self.texts.get(CONFIG, b"{}")) or {}


@dataclass(frozen=True, slots=True)
class Check:
    """What was looked at, what is wrong there, and else what was seen, in words; or, where it is
    not `done`, why not.
    """

    name: str
    faults: tuple[Fault, ...] = ()
    seen: str = ""
    done: bool = True


def checks_of(written: Written) -> list[Check]:
    """Every check that headers and texts allow; a pipeline's parts are checked each for itself."""
    if PIPELINE in written.texts:
        parts = {part: checks_of(_part(written, part)) for part in written.parts}
        named = [replace(c, name=f"{part}: {c.name}") for part in parts for c in parts[part]]
        return [Check("parts", tuple(_parts(written))), *named]
    config = written.config
    return [
        Check(name, tuple(check(written, config)))
        for name, check in CHECKS.items()
        if not config.get("auto_map") or name not in OF_KNOWN_MODELS
    ]


def _part(written: Written, part: str) -> Written:
    """One model of a pipeline as a folder of its own, with the tokenizer that feeds it."""
    tokenizer = part.replace("text_encoder", "tokenizer")
    texts = {
        name.removeprefix(f"{folder}/"): text
        for folder in dict.fromkeys((tokenizer, part))
        for name, text in written.texts.items()
        if name.startswith(f"{folder}/")
    }
    start = f"{part}."
    specs = {
        name.removeprefix(start): spec
        for name, spec in written.specs.items()
        if name.startswith(start)
    }
    files = [name.removeprefix(f"{part}/") for name in written.files if name.startswith(f"{part}/")]
    return Written(specs, texts, files)


def _parts(written: Written) -> Iterator[Fault]:
    """What the pipeline's index names, and its folder has not."""
    for name, entry in (_object(written.texts[PIPELINE]) or {}).items():
        named = isinstance(entry, list) and len(entry) == 2 and None not in entry
        if named and not any(
            file.startswith(f"{name}/") for file in (*written.texts, *written.files)
        ):
            yield Fault(
                f"{PIPELINE} names {name}, and there is no such folder", "restore that folder"
            )


def _object(text: bytes) -> dict[str, Any] | None:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _config_is_read(written: Written, config: Mapping[str, Any]) -> Iterator[Fault]:
    del config
    if CONFIG in written.texts and _object(written.texts[CONFIG]) is None:
        yield Fault(f"{CONFIG} is no JSON object", RESTORE)


def _file_names(written: Written, config: Mapping[str, Any]) -> Iterator[Fault]:
    """The stems that the library of this config looks for."""
    diffusers, known = "_class_name" in config, "_class_name" in config or "model_type" in config
    expected = DIFFUSERS if diffusers else MODEL
    stems = (expected.partition(".")[0], *(() if diffusers else ("pytorch_model",)))
    odd = [name for name in written.files if not name.startswith(stems)]
    if known and odd:
        library = "diffusers" if diffusers else "transformers"
        yield Fault(
            f"{library} looks for {expected}, and the weights are in {shortened(odd)}",
            f"rename it to {expected}",
        )


def _values(config: Any, ending: str) -> set[int]:
    """Whole numbers that a config has anywhere under keys that end so."""
    found: set[int] = set()
    inner = config.values() if isinstance(config, dict) else config
    if isinstance(config, dict):
        found |= {
            value
            for key, value in config.items()
            if key.endswith(ending) and isinstance(value, int) and not isinstance(value, bool)
        }
    for value in inner if isinstance(config, dict | list) else ():
        found |= _values(value, ending) if isinstance(value, dict | list) else set()
    return found


def _numbers(config: Any) -> set[int]:
    """All whole numbers of a config."""
    if isinstance(config, dict | list):
        inner = config.values() if isinstance(config, dict) else config
        return set().union(*map(_numbers, inner))
    return {config} if isinstance(config, int) else set()


def _tables(written: Written) -> dict[str, tuple[int, ...]]:
    return {
        name: spec.shape
        for name, spec in written.specs.items()
        if name.removesuffix(".weight").split(".")[-1] in TABLES and len(spec.shape) == 2
    }


def _vocabulary_size(written: Written, config: Mapping[str, Any]) -> Iterator[Fault]:
    """No tensor has the rows that the config tells, and the token embedding has others."""
    sizes = _values(config, "vocab_size")
    sizes |= {first + second for first in sizes for second in sizes}
    rows = {spec.shape[0] for spec in written.specs.values() if len(spec.shape) == 2}
    if not sizes or rows & sizes or config.get("model_type") in MORE_ROWS:
        return
    for name, (count, _) in _tables(written).items():
        told = " or ".join(map(str, sorted(_values(config, "vocab_size"))))
        yield Fault(f"{CONFIG} says vocab_size {told}, but {name} has {count} rows", RESTORE)


def _width(written: Written, config: Mapping[str, Any]) -> Iterator[Fault]:
    numbers = _numbers(config)
    for name, (_, width) in _tables(written).items():
        if "vocab_size" in config and width not in numbers:
            text = f"no size in {CONFIG} is {width}, which is the width of {name}"
            yield Fault(text, RESTORE)


def _layers(written: Written, config: Mapping[str, Any]) -> Iterator[Fault]:
    stacks: dict[str, set[int]] = {}
    for name in written.specs:
        match = FIRST_NUMBER.match(name)
        if match:
            stacks.setdefault(match[1], set()).add(int(match[2]))
    key = next((key for key in LAYERS if isinstance(config.get(key), int)), None)
    plain = "vocab_size" in config or {"image_size", "num_attention_heads"} <= config.keys()
    if key is None or not stacks or not plain or any(own in config for own in OWN_COUNTS):
        return
    name = max(stacks, key=lambda stack: len(stacks[stack]))
    count, most = config[key], len(stacks[name])
    told = _values(config, "layers") | _values(config, "layer") | _values(config, "depth")
    # Layers that predict further tokens lie after the others.
    told |= {count + more for more in _values(config, "nextn_predict_layers")}
    if count > most or most not in told:
        yield Fault(f"{CONFIG} says {key} {count}, but there are {most} of {name}", RESTORE)


def _head_of_tokens(written: Written, config: Mapping[str, Any]) -> Iterator[Fault]:
    """A head of its own is announced, and none is there: the library would draw it at random."""
    inner = config.get("text_config")
    parts = [config, *([inner] if isinstance(inner, dict) else [])]
    apart = all(part.get("tie_word_embeddings") is False for part in parts)
    classes = config.get("architectures")
    predicts = isinstance(classes, list) and any(str(c).endswith(PREDICTS) for c in classes)
    tables = _tables(written)
    several = any(own in config for own in OWN_COUNTS)
    if not predicts or not apart or several or MODULES in written.texts:
        return
    rows = {shape[0] for shape in tables.values()} | _values(config, "vocab_size")
    heads = [n for n, s in written.specs.items() if n not in tables and rows & {*s.shape[:2]}]
    if len(tables) == 1 and not heads and all("." in n.removesuffix(".weight") for n in tables):
        text = f"{CONFIG} says tie_word_embeddings false, and there is no head beside {min(tables)}"
        yield Fault(text, f"set tie_word_embeddings to true in {CONFIG}, or {RESTORE}")


def _classes(written: Written, config: Mapping[str, Any]) -> Iterator[Fault]:
    names = config.get("architectures")
    if not isinstance(names, list) or not any(CLASSIFIES.search(str(name)) for name in names):
        return
    labels = config.get("id2label")
    count = len(labels) if isinstance(labels, dict) else config.get("num_labels", 2)
    for name, spec in written.specs.items():
        if name in CLASSES and len(spec.shape) == 2 and spec.shape[0] != count:
            text = f"{CONFIG} tells {count} labels, but {name} has {spec.shape[0]} rows"
            yield Fault(text, RESTORE)


def _tokenizer(written: Written, config: Mapping[str, Any]) -> Iterator[Fault]:
    rows = {shape[0] for shape in _tables(written).values()}
    try:
        told = vocabulary_of(written.texts) if rows else None
    except TextError as error:
        yield Fault(f"the tokenizer's {error.file} cannot be read: {error}", RESTORE_TOKENIZER)
        return
    ids = {} if told is None else told.ids
    most = max(rows | _values(config, "vocab_size"), default=0)
    if ids and max(ids.values()) >= most:
        beyond = sorted(token for token, number in ids.items() if number >= most)
        text = f"the tokenizer gives ids up to {max(ids.values())}, but there are {most} rows"
        yield Fault(f"{text}: {shortened(beyond)}", BEYOND)


def _quantisation(written: Written, config: Mapping[str, Any]) -> Iterator[Fault]:
    own = config.get("quantization_config")
    kind = own.get("quant_method") if isinstance(own, dict) else None
    if kind in LOADED_ONLY_QUANTISED and not any("qweight" in name for name in written.specs):
        text = f"{CONFIG} says that the model is quantised ({kind}), and no tensor is"
        yield Fault(text, f"remove quantization_config from {CONFIG}")


def _modules(written: Written, config: Mapping[str, Any]) -> Iterator[Fault]:
    """A sentence encoder's modules that have weights, each of which is a folder of its own."""
    del config
    try:
        entries = json.loads(written.texts.get(MODULES, b"[]"))
        modules = [(str(entry.get("type")), str(entry.get("path"))) for entry in entries]
    except (ValueError, AttributeError, TypeError, RecursionError):
        yield Fault(f"{MODULES} cannot be read", f"restore {MODULES}")
        return
    for kind, path in modules:
        own = [name for name in WEIGHTS if f"{path}/{name}" in written.files]
        if path and kind.rpartition(".")[2] in WITH_WEIGHTS and not own:
            text = f"{MODULES} names {path}, and its weights ({path}/{WEIGHTS[0]}) are not there"
            yield Fault(text, f"copy the base's own into the folder {path} of the result")


CHECKS: dict[str, Callable[[Written, Mapping[str, Any]], Iterator[Fault]]] = {
    "config.json": _config_is_read,
    "file names": _file_names,
    "vocabulary size": _vocabulary_size,
    "width": _width,
    "layers": _layers,
    "head": _head_of_tokens,
    "classes": _classes,
    "tokenizer": _tokenizer,
    "quantisation": _quantisation,
    "modules": _modules,
}
OF_KNOWN_MODELS = ("vocabulary size", "width", "layers", "head", "classes")
"""Not made of models whose own code says what their config means."""
