"""From a file or folder to an adapter, in whatever format it is; only headers are read.

Beside an adapter may lie weights that were trained with it and are no adapter of anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from magmerge.checkpoints.adapters.formats.keys import CONFIG, PEFT, style_of
from magmerge.checkpoints.adapters.formats.lora_config import MERGED_BY_PEFT, read_config
from magmerge.checkpoints.adapters.formats.peft_reading import read_peft
from magmerge.checkpoints.adapters.formats.single_files import read_diffusers, read_kohya
from magmerge.checkpoints.adapters.initial import PLAIN, initial_folder, learnt_since
from magmerge.checkpoints.adapters.names.vocabulary import COMPONENTS, Part, canonical, is_text
from magmerge.checkpoints.adapters.nouns import (
    Adapter,
    Addition,
    Module,
    Replacement,
    Rescale,
    TokenRows,
)
from magmerge.checkpoints.loader import (
    TORCH_SUFFIXES,
    located,
    located_note,
    open_checkpoint,
    place_of,
)
from magmerge.core.errors import AdapterError, EmptyCheckpointError
from magmerge.core.models import Checkpoint
from magmerge.core.types import Naming

T = TypeVar("T")
TRAINED = (
    "non_lora_trainables.bin",
    "non_lora_trainables.safetensors",
    "trainable_params.bin",
    "trainable_params.safetensors",
)
"""Files of tensors that replace the base's: LLaVA's trainer writes the first, LongLoRA's the third.
"""
LEAVES = (".weight", ".bias")
WRAPPERS = ("module.", "_orig_mod.")
"""What parallel and compiled models put before a name."""
NAMES = ("adapter_model.safetensors", "adapter_model.bin")
WEIGHTS = TORCH_SUFFIXES | {".safetensors"}
OF_TRAINING = ("optimizer", "scheduler", "rng_state", "training_args", "scaler", "random_states")
"""What the names of files begin with that a trainer needs to go on, and a model does not."""


def open_adapter(path: str | Path) -> Adapter:
    """Open an adapter without reading its factors.

    `path` is a file, or PEFT's folder with an adapter_config.json (or the file of tensors in it),
    or a folder of such folders for the models of a diffusion pipeline. What the format is, keys and
    header tell, never the file's name. AdapterError, with the key and the remedy, for anything that
    is no sound adapter.
    """
    named = place_of(path)
    place = located(named)
    parts = [name for name in COMPONENTS if (place / name / CONFIG).is_file()]
    if place.name in NAMES and (place.parent / CONFIG).is_file():
        adapter = _with_config(open_checkpoint(place), place.parent)
    elif (place / CONFIG).is_file():
        adapter = _open_peft(place)
    else:
        adapter = _join(place, parts) if parts else _open_file(named)
    if place != named:
        adapter = replace(adapter, notes=(*located_note(named), *adapter.notes))
    if named != Path(path):
        adapter = replace(adapter, source=str(path))
    for name in (*adapter.modules, *adapter.whole):
        if not name.isprintable():
            raise AdapterError(
                "a name with control characters", source=adapter.source, tensor=repr(name)[1:-1],
                remedy="do not use this file: nothing that trains adapters writes such names",
            )  # fmt: skip
    return adapter


def _open_file(path: str | Path) -> Adapter:
    checkpoint = open_checkpoint(path)
    metadata = read_metadata(checkpoint)
    style = style_of(checkpoint)
    if style in ("kohya", "comfy"):
        return read_kohya(checkpoint, metadata)
    if style != "peft":
        naming: Naming = "diffusers" if style == "diffusers" else "diffusers_old"
        return read_diffusers(checkpoint, metadata, naming)
    beside = checkpoint.files[0].parent
    if not (beside / CONFIG).is_file():
        problem = f"its keys are PEFT's, and no {CONFIG} says how they are scaled"
        remedy = f"put the adapter's {CONFIG} beside the file"
        raise AdapterError(problem, source=checkpoint.source, remedy=remedy)
    return _with_config(checkpoint, beside)


def _open_peft(folder: Path) -> Adapter:
    file = next((folder / name for name in NAMES if (folder / name).is_file()), folder)
    return _with_config(open_checkpoint(file), folder)


def _with_config(checkpoint: Checkpoint, folder: Path) -> Adapter:
    files, config = (*checkpoint.files, folder / CONFIG), read_config(folder)
    before = initial_folder(folder, config)
    if before is not None:
        config = {**config, **PLAIN}
    adapter = read_peft(checkpoint, config, files, read_metadata(checkpoint))
    if before is not None:
        adapter = learnt_since(adapter, _initial(before))
    return _with_other_weights(adapter, folder)


def _initial(folder: Path) -> Adapter:
    """An adapter as it was when its training began, whatever its start was."""
    file = next((folder / name for name in NAMES if (folder / name).is_file()), folder)
    checkpoint, config = open_checkpoint(file), {**read_config(folder), **PLAIN}
    return read_peft(checkpoint, config, (*checkpoint.files, folder / CONFIG), {})


def _join(folder: Path, components: list[str]) -> Adapter:
    """PEFT's folders of several models as one adapter; names begin with the folder's."""
    stored: dict[str, Module] = {}
    replaced: dict[str, Replacement] = {}
    parts = {component: _open_peft(folder / component) for component in components}
    metadata: dict[str, str] = {}
    added: dict[str, Addition] = {}
    rescales: dict[str, Rescale] = {}
    tokens: dict[str, TokenRows] = {}
    for component, part in parts.items():
        added |= _of_part(component, part.added)
        rescales |= _of_part(component, part.rescales)
        tokens |= _of_part(component, part.tokens)
        if part.experts:
            problem = "refused: it adapts bare parameters of a model of a pipeline"
            raise AdapterError(problem, source=part.source, remedy=MERGED_BY_PEFT)
        for name, module in part.stored.items():
            own = str(Part(component, canonical(name) if is_text(component) else name))
            stored[own] = module._replace(spec=replace(module.spec, name=own))
        for name, (_, checkpoint, key) in part.replaced.items():
            own = str(Part(component, name))
            replaced[own] = Replacement.of(checkpoint, key, own)
        metadata |= part.metadata
    files = tuple(file for part in parts.values() for file in part.files)
    config = {component: part.config for component, part in parts.items()}
    notes = tuple(note for part in parts.values() for note in part.notes)
    told = (metadata, config, notes, added, rescales, tokens)
    return Adapter(str(folder), files, "peft", stored, replaced, *told)


def _of_part(component: str, table: Mapping[str, T]) -> dict[str, T]:
    """What is by the names of one model's modules, or their tensors, by those that begin with the
    model's.
    """
    named = {}
    for name, own in table.items():
        stem, dot, leaf = name.rpartition(".") if name.endswith(LEAVES) else (name, "", "")
        module = canonical(stem) if is_text(component) else stem
        named[f"{Part(component, module)}{dot}{leaf}"] = own
    return named


def _with_other_weights(adapter: Adapter, folder: Path) -> Adapter:
    """`adapter` with the tensors that its folder holds besides; AdapterError for one in both."""
    trained = tuple(folder / name for name in TRAINED if (folder / name).is_file())
    replaced = dict(adapter.replaced)
    for file in trained:
        for name, tensor in _tensors(file).items():
            own = name in replaced or name in adapter.added or name in adapter.tokens
            if own or name.removesuffix(".weight") in adapter.stored:
                problem = f"it is in the adapter beside {file.name} too"
                remedy = f"remove {file.name} from the folder if it is of another training"
                raise AdapterError(problem, source=adapter.source, tensor=name, remedy=remedy)
            replaced[name] = tensor
    notes = tuple(
        f"{file} lies beside the adapter and is not read"
        for file in sorted(folder.iterdir())
        if file.suffix in WEIGHTS
        and file.name not in (*TRAINED, *NAMES)
        and not file.name.startswith(OF_TRAINING)
    )
    files, notes = (*adapter.files, *trained), (*adapter.notes, *notes)
    return replace(adapter, files=files, replaced=replaced, notes=notes)


def _tensors(file: Path) -> dict[str, Replacement]:
    """The file's tensors by their names in the model."""
    try:
        checkpoint = open_checkpoint(file)
    except EmptyCheckpointError:
        # A trainer writes it also where nothing else was trained.
        return {}
    tensors = {}
    for key in checkpoint.specs:
        name = key
        for wrapper in (*WRAPPERS, PEFT):
            name = name.removeprefix(wrapper)
        name = name.replace(".modules_to_save.default.", ".").replace(".base_layer.", ".")
        tensors[name] = Replacement.of(checkpoint, key, name)
    return tensors


def read_metadata(checkpoint: Checkpoint) -> Mapping[str, str]:
    """The entries of a safetensors header; none for other files."""
    if len(checkpoint.files) != 1 or checkpoint.files[0].suffix != ".safetensors":
        return {}
    from safetensors import safe_open

    with safe_open(checkpoint.files[0], framework="numpy") as file:
        # Their order is by chance: sorted, so that equal runs give equal bytes.
        return dict(sorted((file.metadata() or {}).items()))
