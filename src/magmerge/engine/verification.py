"""A written model against its own headers and its record."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from hashlib import sha256
from os.path import isfile, lexists
from pathlib import Path
from typing import Any

from magmerge.checkpoints.digests import DigestMemory
from magmerge.checkpoints.donor import companion_files
from magmerge.checkpoints.input_digests import is_as_recorded
from magmerge.checkpoints.kinds import kinds_of, read_model_config
from magmerge.checkpoints.load_checks import RESTORE, Check, Written, checks_of
from magmerge.checkpoints.output.own_files import RECIPE, RECORD
from magmerge.core import dtypes
from magmerge.core.errors import Fault, shortened
from magmerge.core.lazy import load, torch
from magmerge.core.machine import Machine
from magmerge.core.models import Checkpoint
from magmerge.core.pieces import cut
from magmerge.core.recipe_paths import rooted_at, with_paths
from magmerge.engine.executors import local

AGAIN = "write it anew from its inputs: magmerge merge RECIPE.yaml OUT"
WEIGHTS = frozenset({".safetensors", ".bin"})
MASKS = ("mask", "masked_bias", "bias_mask")
"""What the names of tensors end in that may hold infinities."""


def header_checks(checkpoint: Checkpoint) -> list[Check]:
    """What headers, config and tokenizer tell of a folder; nothing of a file alone."""
    folder = checkpoint.folder
    if folder is None:
        return []
    texts = {name: path.read_bytes() for name, path in companion_files(folder).items()}
    inner = {name.rpartition("/")[0] for name in texts}
    files = [
        f"{place}/{file.name}".lstrip("/")
        for place in sorted({"", *inner, *getattr(checkpoint, "parts", ())})
        for file in sorted((folder / place).iterdir())
        if file.suffix in WEIGHTS and (place or file in checkpoint.files)
    ]
    written = Written(checkpoint.specs, texts, files, tuple(getattr(checkpoint, "parts", ())))
    return [_whole(folder, checkpoint.files, texts), *checks_of(written)]


def _whole(folder: Path, weights: Sequence[Path], texts: Mapping[str, bytes]) -> Check:
    """Shards have an index beside them, and each text that is JSON can be read."""
    faults = []
    shards = [file.name for file in weights if "-of-" in file.name and file.parent == folder]
    if shards and not any(folder.glob("*.index.json")):
        remedy = "fetch the index, or write the model again: magmerge convert reads it and does"
        faults.append(Fault(f"{len(shards)} shards, {shards[0]} the first, and no index", remedy))
    for name, text in texts.items():
        try:
            if name.endswith(".json"):
                json.loads(text)
        except (ValueError, RecursionError) as error:
            faults.append(Fault(f"{name} cannot be read: {error}", f"restore {name}"))
    return Check("folder", tuple(faults), f"{len(texts)} files beside the weights can be read")


def tensor_checks(
    checkpoint: Checkpoint, machine: Machine, record: Mapping[str, Any]
) -> list[Check]:
    """Every tensor read once: it is finite, and has the bytes that were recorded."""
    names = list(checkpoint.specs)
    calls = [partial(_look, checkpoint, name) for name in names]
    done = machine.counter("reading", len(names))
    looks = dict(zip(names, local.run(local.single(calls), machine, done=done), strict=True))
    bad = [name for name, (_, sound) in looks.items() if not sound]
    faults = [Fault(f"not finite: {shortened(bad)}", AGAIN)] if bad else []
    counted = ", ".join(sorted({dtypes.torch_name(s.dtype) for s in checkpoint.specs.values()}))
    checks = [Check("finite", tuple(faults), f"{len(names)} tensors ({counted})")]
    recorded = record.get("checksums")
    if isinstance(recorded, dict):
        checks.append(_checksums({name: crc for name, (crc, _) in looks.items()}, recorded))
    return [*checks, *_ties(checkpoint)]


def _look(checkpoint: Checkpoint, name: str) -> tuple[str, bool]:
    """A tensor's CRC-32, and whether it is finite, looked at piece by piece."""
    total, sound = 0, True
    spec = checkpoint.specs[name]
    for piece in cut(spec.shape, "other", "entries"):
        part = checkpoint.read_part(name, piece.start, piece.stop)
        if part.numel():
            total = zlib.crc32(part.view(torch.uint8).numpy().data, total)
        if part.is_floating_point():
            wide = part.float() if part.element_size() == 1 else part
            masks = name.endswith(MASKS)
            sound &= not bool(wide.isnan().any() if masks else (~wide.isfinite()).any())
    return f"{total:08x}", sound


def _checksums(looks: Mapping[str, str], recorded: Mapping[str, Any]) -> Check:
    lacking = sorted(set(recorded) - set(looks))
    foreign = sorted(set(looks) - set(recorded))
    changed = [name for name in looks if name in recorded and looks[name] != recorded[name]]
    told = {"are missing": lacking, "are not of this result": foreign, "were changed": changed}
    faults = [
        Fault(f"{len(names)} tensors {words}: {shortened(names)}", AGAIN)
        for words, names in told.items()
        if names
    ]
    return Check("checksums", tuple(faults), f"{len(recorded)} tensors are as they were written")


def _ties(checkpoint: Checkpoint) -> Iterator[Check]:
    """Where config.json says that embedding and head are one, and both are stored."""
    config = read_model_config(checkpoint)
    inner = config.get("text_config")
    flags = [part.get("tie_word_embeddings") for part in (config, inner) if isinstance(part, dict)]
    kinds = kinds_of(checkpoint, config)
    of = {kind: [n for n, k in kinds.items() if k == kind] for kind in ("embedding", "head")}
    specs = checkpoint.specs
    tokens = {p.get("vocab_size") for p in (config, inner) if isinstance(p, dict)}
    pairs = [
        (table, head)
        for table in of["embedding"]
        for head in of["head"]
        if specs[table].shape == specs[head].shape and specs[table].dtype == specs[head].dtype
        if specs[table].shape[0] in tokens and "position" not in table
    ]
    if True not in flags or len(pairs) != 1:
        return
    table, head = pairs[0]
    same = checkpoint.read(table).equal(checkpoint.read(head))
    text = f"config.json says that {head} is {table}, and they differ: one of them would be lost"
    remedy = f"set tie_word_embeddings to false in config.json, or {RESTORE}"
    yield Check("ties", () if same else (Fault(text, remedy),), f"{head} is {table}")


def beside(place: Path, name: str) -> Path:
    """A file of magmerge's own in a folder, or beside a single file."""
    return place / name if place.is_dir() else place.parent / f"{place.stem}.{name}"


def record_of(place: Path) -> dict[str, Any]:
    """The record beside a folder's or a file's tensors, its paths as they are called from here,
    and without results of earlier documents, which are no paths; empty where there is none to read.
    """
    file = beside(place, RECORD)
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(content, dict) or "magmerge" not in content:
        return {}
    names = _documents(place, content)
    change = rooted_at(file.parent, names)
    if isinstance(content.get("recipe"), dict):
        content["recipe"] = with_paths(content["recipe"], change)
    entries = content.get("inputs")
    if isinstance(entries, list):
        told = [each for each in entries if isinstance(each, dict)]
        told = [each for each in told if isinstance(each.get("source"), str)]
        own = [each for each in told if each["source"] not in names]
        content["inputs"] = [{**each, "source": change(each["source"])} for each in own]
    return content


def _documents(place: Path, record: Mapping[str, Any]) -> set[str]:
    """The names of the documents that a result was made by, as its record and recipe tell them."""
    entries = record.get("inputs")
    told = entries if isinstance(entries, list) else []
    names = {
        str(each["document"]) for each in told if isinstance(each, dict) and "document" in each
    }
    try:
        text = beside(place, RECIPE).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return names
    documents = load("magmerge.core.plain_yaml:documents_of")(text)
    return names | set(load("magmerge.core.plain_yaml:names_of")(documents))


def record_checks(place: Path, record: Mapping[str, Any]) -> list[Check]:
    """The files that the record names are there, and its inputs are what they were."""
    if not record and beside(place, RECORD).exists():
        fault = Fault(f"{RECORD} cannot be read as a record of magmerge's", AGAIN)
        return [Check("record", (fault,))]
    if not record:
        return [Check("record", seen="no magmerge.json: not written by magmerge", done=False)]
    listed = record.get("files")
    files = [str(name) for name in listed] if isinstance(listed, list) else []
    gone = [name for name in files if place.is_dir() and not (place / name).is_file()]
    faults = [Fault(f"files are missing: {shortened(gone)}", AGAIN)] if gone else []
    changed = [
        name
        for name, digest in texts_of(record).items()
        for file in [(place if place.is_dir() else place.parent) / name]
        if file.is_file() and sha256(file.read_bytes()).hexdigest() != digest
    ]
    if changed:
        remedy = "if that was you, all is well; else merge again"
        faults.append(Fault(f"files were changed since: {shortened(changed)}", remedy))
    return [Check("record", tuple(faults), f"{len(files)} files"), _inputs(record)]


def texts_of(record: Mapping[str, Any]) -> dict[str, str]:
    """The digests of config, tokenizer and recipe that a record tells, by names inside a folder."""
    texts = record.get("texts")
    pairs = texts.items() if isinstance(texts, dict) else ()
    return {
        str(name): str(digest)
        for name, digest in pairs
        if ".." not in Path(str(name)).parts and not Path(str(name)).is_absolute()
    }


def _inputs(record: Mapping[str, Any]) -> Check:
    """Digests of the inputs that are still at hand."""
    memory, files = DigestMemory(), dict(_input_files(record))
    changed = [str(file) for file, told in files.items() if not is_as_recorded(file, told, memory)]
    memory.save()
    remedy = "merge again, or restore the inputs that the record tells"
    faults = [Fault(f"inputs were changed since: {shortened(changed)}", remedy)] if changed else []
    return Check(
        "inputs", tuple(faults), f"{len(files)} files are as they were merged", done=bool(files)
    )


def _input_files(record: Mapping[str, Any]) -> Iterator[tuple[Path, str]]:
    """The inputs that are at hand, with their digests: models' files and statistics; a record may
    hold anything.
    """
    yield from _statistics_files(record)
    entries = record.get("inputs")
    for entry in entries if isinstance(entries, list) else ():
        files = entry.get("files") if isinstance(entry, dict) else None
        places = _places(str(entry.get("source"))) if isinstance(files, dict) else []
        for name, digest in files.items() if isinstance(files, dict) else ():
            inside = ".." not in Path(name).parts and not Path(name).is_absolute()
            # An adapter is called by its weights, and its configuration lies beside them.
            found = [(p if p.is_dir() else p.parent) / name for p in places]
            file = next((file for file in found if file.is_file()), None)
            if inside and file is not None and isinstance(digest, str):
                yield file, digest


def _statistics_files(record: Mapping[str, Any]) -> Iterator[tuple[Path, str]]:
    """The files of statistics that are where the recipe says, with their digests."""
    recipe, told = record.get("recipe"), record.get("statistics")
    places = recipe.get("statistics") if isinstance(recipe, dict) else None
    for name, entry in told.items() if isinstance(told, dict) else ():
        place = places.get(name) if isinstance(places, dict) else None
        digest = entry.get("digest") if isinstance(entry, dict) else None
        if isinstance(place, str) and isinstance(digest, str) and isfile(place):
            yield Path(place), digest


def _places(source: str) -> list[Path]:
    """Where an input is that a record names, of the hub in its cache: a model's, an adapter's."""
    if lexists(source):
        return [Path(source)]
    at_hand: list[Path] = load("magmerge.checkpoints.named:places_at_hand")(source)
    return at_hand or [Path(source)]
