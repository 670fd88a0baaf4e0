"""What makes tensors a model: config, tokenizer and generation files, taken from a stated donor."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from magmerge.checkpoints.kinds import RESTORE, read_config, read_json, read_model_config
from magmerge.checkpoints.open_files import read_errors
from magmerge.core import dtypes
from magmerge.core.errors import CheckpointError, OutputError, shortened
from magmerge.core.lazy import load
from magmerge.core.models import Checkpoint, Expert

SUFFIXES = frozenset({".json", ".txt", ".model", ".jinja", ".tiktoken", ".spm", ".bpe", ".vocab"})
LEFT_OUT = frozenset({"magmerge.json", "adapter_config.json", "trainer_state.json"})
MODULES, PIPELINE = "modules.json", "model_index.json"
CONFIG = "config.json"
MODEL, DIFFUSERS = "model.safetensors", "diffusion_pytorch_model.safetensors"
OPEN_CLIP, OPEN_CLIP_CONFIG = "open_clip_model.safetensors", "open_clip_config.json"
DTYPE_KEYS = ("dtype", "torch_dtype")
REMOVED = object()
"""In place of a setting's value: the result's config.json has none of its name."""
TOKENIZER, PAIRS, LIST = "tokenizer.json", "vocab.json", "vocab.txt"
"""Files that say which token has which id; the last by its line."""
TEMPLATES = "additional_chat_templates"
"""The folder of chat templates that have names."""
VOCABULARIES = (TOKENIZER, PAIRS, LIST, "tokenizer.model")
BESIDE = ("added_tokens.json", "tokenizer_config.json")
"""Files that say it of added tokens, where there is no tokenizer.json."""
IDENTITY = ("model_type", "architectures", "_class_name")
SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "tie_word_embeddings", "d_model", "d_ff", "n_embd",
    "n_layer", "n_head", "num_experts", "num_local_experts", "embedding_size",
    "type_vocab_size", "patch_size", "image_size", "n_inner", "hidden_act", "activation_function",
)  # fmt: skip
"""Keys of a config that decide which tensors a model has, of what shapes, and what they compute."""
POSITIONS = ("max_position_embeddings", "n_positions")
TOKENS = ("embed_tokens", "word_embeddings", "wte", "embed_in", "tok_embeddings", "shared")
"""What the names of token embeddings end in."""


def companion_files(folder: Path | None) -> dict[str, Path]:
    """The files of a model folder that are no weights, by their path within it, and those of the
    subfolders that a sentence encoder's modules.json or a pipeline's model_index.json names, and
    further chat templates. Code (.py) is never copied.
    """
    if folder is None:
        return {}
    inner = [*_module_folders(folder), *part_folders(folder)]
    inner += [TEMPLATES] if (folder / TEMPLATES).is_dir() else []
    folders = {"": folder, **{f"{sub}/": folder / sub for sub in inner}}
    return {
        f"{start}{path.name}": path
        for start, place in folders.items()
        for path in sorted(place.iterdir())
        if path.suffix in SUFFIXES and path.name not in LEFT_OUT and path.is_file()
        if not path.name.startswith(".") and ".index." not in path.name
    }


def same_tokens(models: Sequence[Checkpoint | Expert]) -> bool:
    """Whether nothing tells that rows of tokens differ between models: neither the shapes of their
    tensors, nor the bytes of their tokenizers. The first is the layout.
    """
    layout = models[0]
    for other in models[1:]:
        for name, spec in other.specs.items():
            own = layout.specs.get(name, spec)
            if own.shape != spec.shape and len(own.shape) == len(spec.shape):
                return False
    whole: list[Any] = [getattr(model, "whole", model) for model in models]
    folders = dict.fromkeys(model.folder for model in whole if model is not None)
    told = [files for folder in folders if folder and (files := _tokenizer_files(folder))]
    return all(_same_bytes(told[0], files) for files in told[1:])


def _tokenizer_files(folder: Path) -> dict[str, Path]:
    """The files that say a folder's tokens: the one that says all of them, or several."""
    files = {name: folder / name for name in VOCABULARIES if (folder / name).is_file()}
    if TOKENIZER in files:
        return {TOKENIZER: files[TOKENIZER]}
    beside = {name: folder / name for name in BESIDE if (folder / name).is_file()}
    return {**files, **beside} if files else {}


def _same_bytes(files: Mapping[str, Path], others: Mapping[str, Path]) -> bool:
    if files.keys() != others.keys():
        return False
    for name, path in files.items():
        with read_errors(path):
            if path.stat().st_size != others[name].stat().st_size:
                return False
            if path.read_bytes() != others[name].read_bytes():
                return False
    return True


def read_companions(
    files: Mapping[str, Path], settings: Mapping[str, Any], texts: Mapping[str, bytes | None]
) -> dict[str, bytes]:
    """Their contents; config.json with `settings`, and `texts` in place of files of their names;
    None: without that file.

    A setting of a part of the model is named by its path, text_config.vocab_size; one of a part of
    a pipeline by its folder first, text_encoder/dtype. Of REMOVED nothing is left.
    """
    contents = {}
    for name, path in files.items():
        with read_errors(path):
            contents[name] = path.read_bytes()
    folders = {key.rpartition("/")[0] for key in settings}
    for name in [f"{folder}/{CONFIG}".lstrip("/") for folder in sorted(folders)]:
        if name not in contents:
            continue
        config = read_json(files[name], RESTORE)
        start = name.removesuffix(CONFIG)
        own = {k.removeprefix(start): v for k, v in settings.items() if k.startswith(start)}
        for key, value in own.items():
            *parts, last = key.split(".")
            inner = config
            for part in parts:
                inner = inner[part]
            inner[last] = value
            if value is REMOVED:
                del inner[last]
        contents[name] = (json.dumps(config, indent=2) + "\n").encode()
    every = {**contents, **texts}
    return {name: text for name, text in every.items() if text is not None}


def dtype_settings(folder: Path | None, dtype: str | None) -> dict[str, Any]:
    """What a config.json says of the format, where a new one was asked for; those of a pipeline's
    parts too.
    """
    if folder is None or dtype is None:
        return {}
    places = {"": folder, **{f"{part}/": folder / part for part in part_folders(folder)}}
    return {
        f"{start}{key}": dtypes.torch_name(dtype)
        for start, place in places.items()
        for key in DTYPE_KEYS
        if key in read_config(place)
    }


def weights_file(folder: Path | None) -> str:
    """The name under which the library of a model's config.json looks for its weights.

    diffusers writes its classes' names as `_class_name`, and loads nothing that is named otherwise.
    open_clip has a config of its own name, and beside transformers' config its own weights.
    """
    if folder is not None and (folder / OPEN_CLIP_CONFIG).is_file():
        return MODEL if (folder / CONFIG).is_file() else OPEN_CLIP
    config = {} if folder is None else read_config(folder)
    return DIFFUSERS if "_class_name" in config else MODEL


def check_donor(
    donor: Path,
    layout: Checkpoint,
    settings: Mapping[str, Any] = MappingProxyType({}),
    texts: Mapping[str, bytes | None] = MappingProxyType({}),
) -> None:
    """OutputError if the donor's config or tokenizer are not for the model's own tensors, but for
    what `settings` and `texts` put in their place.
    """
    if layout.folder is not None and os.path.realpath(donor) == os.path.realpath(layout.folder):
        return
    parts, theirs = getattr(layout, "parts", {}), part_folders(donor)
    if bool(parts) != bool(theirs) or not set(parts) <= set(theirs):
        wish = f"that is a pipeline with {', '.join(parts)}" if parts else "that is no pipeline"
        have = f"a pipeline of {', '.join(theirs)}" if theirs else "no pipeline"
        problem = f"it is {have}, and what is written is {'one' if parts else 'none'}"
        raise OutputError(problem, source=donor, remedy=f"name a donor {wish}")
    for part, model in parts.items():
        check_donor(donor / part, model)
    own, other = read_model_config(layout), read_config(donor)
    rows = _token_rows(layout, own)
    highest = max(rows, default=None)
    checks = [
        (p, r) for p, r, key in _config_faults(own, other, layout, rows) if key not in settings
    ]
    if not {TOKENIZER, PAIRS, LIST} & texts.keys():
        checks += _tokenizer_faults(donor, layout.folder, highest)
    for problem, remedy in checks:
        raise OutputError(problem, source=donor, remedy=f"name a donor {remedy}")


def _config_faults(
    own: Mapping[str, Any], other: Mapping[str, Any], layout: Checkpoint, rows: set[int]
) -> Iterator[tuple[str, str, str]]:
    """What is wrong with the donor's config, what another one would have to be, and the key."""
    for key in IDENTITY:
        if own.get(key) and other.get(key) and own[key] != other[key]:
            text = f"its config.json says {key} {other[key]!r}, but the model's says {own[key]!r}"
            yield text, "of the same architecture", key
    if other.get("quantization_config"):
        text = "its config.json has a quantization_config, and what is written is not quantised"
        yield text, "that is not quantised", "quantization_config"
    sizes, theirs = sizes_of(own), sizes_of(other)
    tables = [spec.shape for name, spec in layout.specs.items() if "position" in name]
    counts = [shape[0] for shape in tables if shape]
    for key in POSITIONS:
        # Of rotary embeddings, which have no table of so many positions, it says no shape.
        if key in own and own[key] in counts:
            sizes[key], theirs[key] = own[key], other.get(key, own[key])
    for key in [key for key in theirs if key in sizes and theirs[key] != sizes[key]]:
        text = f"its config.json says {key} {theirs[key]}, but the model's says {sizes[key]}"
        remedy = "that was made for a model of these shapes"
        if key.endswith("vocab_size"):
            remedy += ", or take its tokens too: --tokenizer and the expert's name (tokenizer=)"
        yield text, remedy, key
    tokens = theirs.get("vocab_size")
    if not own and rows and tokens not in rows:
        own_rows = f"the model's embeddings have {' or '.join(map(str, sorted(rows)))} rows"
        text = f"its config.json says vocab_size {tokens}, but {own_rows}"
        yield text, "that was made for a vocabulary of this size", "vocab_size"


def sizes_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a config says of its model's tensors, also in the parts of one that has several."""
    sizes = {key: config[key] for key in SIZES if key in config}
    for part, inner in config.items():
        if isinstance(inner, dict) and part.endswith("_config"):
            sizes |= {f"{part}.{key}": value for key, value in sizes_of(inner).items()}
    return sizes


def _token_rows(layout: Checkpoint, config: Mapping[str, Any]) -> set[int]:
    """The rows of the tensors that have one for each token."""
    if isinstance(config.get("vocab_size"), int):
        return {config["vocab_size"]}
    names = [name for name in layout.specs if name.removesuffix(".weight").endswith(TOKENS)]
    return {layout.specs[name].shape[0] for name in names if len(layout.specs[name].shape) == 2}


def _tokenizer_faults(donor: Path, own: Path | None, rows: int | None) -> Iterator[tuple[str, str]]:
    """Tokens of the donor that have no row, or the rows of other tokens."""
    read = load("magmerge.checkpoints.tokens.vocabulary:read_vocabulary")
    theirs, ours = ({} if one is None else one.ids for one in map(read, (donor, own)))
    wish = "whose tokenizer the model was trained with"
    highest = max(theirs.values(), default=0)
    if rows is not None and highest >= rows:
        yield f"its tokenizer gives ids up to {highest}, but the model has {rows} tokens", wish
    moved = [token for token, number in theirs.items() if ours.get(token, number) != number]
    if moved:
        text = f"its tokenizer gives other ids to {len(moved)} tokens of the model's own"
        yield f"{text}: {shortened(sorted(moved))}", wish


def part_folders(folder: Path) -> list[str]:
    """The folders inside a pipeline that its model_index.json names; none where there is none."""
    path = folder / PIPELINE
    if not path.is_file():
        return []
    content = read_json(path, "restore the pipeline's model_index.json")
    # No other name than an identifier leads nowhere else.
    names = [name for name, entry in content.items() if isinstance(entry, list)]
    return [name for name in names if name.isidentifier() and (folder / name).is_dir()]


def _module_folders(folder: Path) -> list[str]:
    path = folder / MODULES
    if not path.is_file():
        return []
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        names = [entry.get("path", "") for entry in entries]
    except (ValueError, AttributeError, TypeError, RecursionError, OSError) as error:
        raise CheckpointError(
            f"cannot be read: {error}", source=path, remedy="restore or remove this file"
        ) from error
    # A name with a separator could lead out of the folder.
    return [n for n in names if n and n == Path(n).name and n != ".." and (folder / n).is_dir()]
