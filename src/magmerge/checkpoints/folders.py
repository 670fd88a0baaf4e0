"""Which files of a folder are the checkpoint in it, in all the manners that programs save them."""

from __future__ import annotations

import re
from pathlib import Path

from magmerge.checkpoints.loader import SUFFIXES, Files, files_in
from magmerge.core.errors import CheckpointError, shortened

METADATA = ".metadata"
"""The file of torch's distributed checkpoints that tells where in the others each tensor is."""
OF_FSDP = "pytorch_model_fsdp_0"
"""The folder of such a one within that of a training with accelerate."""
SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.safetensors|\.bin|\.pt|\.pth)")
CONSOLIDATED = re.compile(r"consolidated\.(\d\d)\.pth")
STEP = re.compile(r"checkpoint-(\d{1,18})")
RANK = re.compile(r"model_world_size_(\d+)_rank_(\d+)\.pt")
STATES = re.compile(r"(zero_pp_rank_\d+_)?mp_rank_(\d+)_model_states\.pt")
EMA = "_ema"
"""What diffusers' trainings put after the name of a folder for the average of its weights."""


def last_checkpoint(path: Path) -> Path:
    """The last of the folders checkpoint-N in a training's folder that holds nothing of a known
    name; the folder itself where there are none.
    """
    steps = {int(match[1]): entry for entry in path.iterdir() if (match := _step(entry))}
    if not steps or any(path.glob("*.safetensors")) or (path / METADATA).is_file():
        return path
    return steps[max(steps)]


def files_of(folder: Path, weights: str | None) -> Files:
    """The checkpoint in a folder; CheckpointError, with the remedy, where there is none.

    `weights` "model" takes the raw ones of a training that has their average beside them.
    """
    if (folder / METADATA).is_file():
        return Files([folder / METADATA], folder)
    if (folder / OF_FSDP / METADATA).is_file():
        return Files([folder / OF_FSDP / METADATA], folder)
    # The index of a variant: model.safetensors.index.fp16.json.
    indices = list(folder.glob("*.safetensors.index.*.json"))
    if len(indices) == 1:
        return Files([], folder, indices[0])
    for find in (_numbered, _consolidated, _of_deepspeed, _of_verl):
        files = find(folder)
        if files is not None:
            return files
    pair = _pair(folder)
    if pair is not None:
        return _of_pair(*pair, weights)
    lone = sorted([*folder.glob("*.safetensors"), *folder.glob("*.gguf")])
    if len(lone) == 1:
        return Files(lone, folder)
    listing = ", ".join(file.name for file in lone) or "no .safetensors or .bin file"
    raise CheckpointError(
        f"no checkpoint in this folder: it holds {listing}",
        source=folder,
        remedy=_one_before(folder)
        or "name the file itself, or a folder with model.safetensors or its index",
    )


def _one_before(folder: Path) -> str:
    """The remedy for a checkpoint-N without weights, as a full disk leaves it: the last that has
    some; empty where there is none.
    """
    own = _step(folder)
    steps = [] if own is None else [(_step(entry), entry) for entry in folder.parent.iterdir()]
    earlier = {
        int(match[1]): entry
        for match, entry in steps
        if own is not None and match is not None and int(match[1]) < int(own[1])
    }
    for number in sorted(earlier, reverse=True):
        if any(file.suffix in SUFFIXES for file in earlier[number].iterdir()):
            return f"name the one before, which has weights: {earlier[number]}"
    return ""


def check_whole(file: Path) -> None:
    """CheckpointError, with the command that puts it together, where a file by its name is one of
    several that each hold slices of all tensors.
    """
    kinds = ((CONSOLIDATED, _consolidated), (STATES, _of_deepspeed), (RANK, _of_verl))
    for pattern, find in kinds:
        if pattern.fullmatch(file.name):
            find(file.parent)


def _step(entry: Path) -> re.Match[str] | None:
    return STEP.fullmatch(entry.name) if entry.is_dir() else None


def _numbered(folder: Path) -> Files | None:
    """Numbered shards without an index, all of them."""
    sets: dict[tuple[str, int, str], dict[int, Path]] = {}
    for file in sorted(folder.iterdir()):
        match = SHARD.fullmatch(file.name)
        if match and file.is_file():
            key = match[1], int(match[3]), match[4]
            sets.setdefault(key, {})[int(match[2])] = file
    for suffix in SUFFIXES:
        # As where there are indices, safetensors files come before others.
        if len(sets) > 1 and any(key[2] == suffix for key in sets):
            sets = {key: files for key, files in sets.items() if key[2] == suffix}
    if not sets:
        return None
    if len(sets) > 1:
        names = [f"{name}-...-of-{total:05d}{suffix}" for name, total, suffix in sets]
        raise CheckpointError(
            f"it holds the shards of several checkpoints: {shortened(names)}",
            source=folder,
            remedy="move those of one checkpoint to a folder of its own",
        )
    (((name, total, suffix), files),) = sets.items()
    if not 1 <= min(files) <= max(files) <= total:
        raise CheckpointError(
            f"its shards are numbered from {min(files)} to {max(files)}, of {total}",
            source=folder,
            remedy="fetch the folder once more: shards of two versions are mixed",
        )
    missing = [n for n in range(1, total + 1) if n not in files]
    if missing:
        lost = [f"{name}-{n:05d}-of-{total:05d}{suffix}" for n in missing]
        raise CheckpointError(
            f"{len(missing)} of its {total} shards are missing: {shortened(lost)}",
            source=folder,
            remedy="fetch the missing files into this folder",
        )
    note = f"{folder} has no index: its {total} shards are read as one checkpoint"
    return Files([files[n] for n in sorted(files)], folder, notes=(note,))


def _consolidated(folder: Path) -> Files | None:
    """Files as Meta publishes its models."""
    files = [file for file in sorted(folder.iterdir()) if CONSOLIDATED.fullmatch(file.name)]
    if len(files) > 1:
        raise CheckpointError(
            f"its {len(files)} files {files[0].name}, ... hold slices of each tensor, for as many "
            "GPUs",
            source=folder,
            remedy="write it as one model: python -m transformers.models.llama."
            f"convert_llama_weights_to_hf --input_dir {folder} --output_dir OUT",
        )
    return Files(files, folder) if files else None


def _of_deepspeed(folder: Path) -> Files | None:
    """What DeepSpeed saves in training, where it holds whole tensors: ZeRO's first two stages."""
    tag = folder / "latest"
    place = folder
    if tag.is_file() and not tag.stat().st_size > 200:
        name = tag.read_text(encoding="utf-8", errors="replace").strip()
        # A name with a separator could lead out of the folder.
        place = folder / name if name == Path(name).name and (folder / name).is_dir() else folder
    states = {file: match for file in sorted(place.iterdir())
              if (match := STATES.fullmatch(file.name))}  # fmt: skip
    if not states:
        return None
    if len(states) > 1 or any(match[1] for match in states.values()):
        top = folder if tag.is_file() else folder.parent
        raise CheckpointError(
            "DeepSpeed has saved it in slices, one for each GPU",
            source=place,
            remedy=f"put it together: python {top}/zero_to_fp32.py {top} OUT (DeepSpeed writes "
            "that script beside each checkpoint), and give OUT",
        )
    note = f"{folder} is a training's: {place.name}/{next(iter(states)).name} is read"
    return Files(list(states), folder, notes=(note,))


def _of_verl(folder: Path) -> Files | None:
    """What verl saves of a model under FSDP, where one file holds all of it."""
    ranks = {file: match for file in sorted(folder.iterdir())
             if (match := RANK.fullmatch(file.name))}  # fmt: skip
    if not ranks:
        return None
    if len(ranks) > 1 or any(int(match[1]) > 1 for match in ranks.values()):
        sizes = {match[1] for match in ranks.values()}
        raise CheckpointError(
            f"verl has saved it in slices, one for each of {'/'.join(sorted(sizes))} GPUs",
            source=folder,
            remedy="put it together: python -m verl.model_merger merge --backend fsdp "
            f"--local_dir {folder} --target_dir OUT, and give OUT",
        )
    config = folder / "huggingface"
    return Files(list(ranks), config if config.is_dir() else folder)


def _pair(folder: Path) -> tuple[Path, Path] | None:
    """The folders of a model in training and of its average, as diffusers' trainings save them."""
    pairs = [
        (folder / entry.name.removesuffix(EMA), entry)
        for entry in sorted(folder.iterdir())
        if entry.is_dir() and entry.name.endswith(EMA)
    ]
    pairs = [pair for pair in pairs if pair[0].is_dir()]
    return pairs[0] if len(pairs) == 1 else None


def _of_pair(raw: Path, average: Path, weights: str | None) -> Files:
    place = raw if weights == "model" else average
    files = files_in(place, weights)
    note = (
        f"{raw.parent} holds averaged weights ({average.name}) beside the raw ones ({raw.name}): "
        f"{place.name} is read"
    )
    return files._replace(notes=(*files.notes, note), averaged=place is average)
