"""What a figure's points depend on, as settings for a reader and as one digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from magmerge.checkpoints import open_checkpoint
from magmerge.checkpoints.lora import CONFIG
from magmerge.digests import DigestMemory
from magmerge.evaluation.entries import WHOLE, resolved
from magmerge.figures.asking import Asked
from magmerge.figures.ground import Ground
from magmerge.figures.measuring import How
from magmerge.version import __version__

UNTOLD = ("threads", "memory")
"""How fast a point is made changes none of its numbers."""


def settings_of(ground: Ground, asked: Asked, how: How) -> dict[str, Any]:
    """For a reader: models, samples, and how they are used.

    What the figure shows, as its merges and seeds, is not among them: more of it can be added.
    """
    told = {key: value for key, value in asdict(how).items() if key not in UNTOLD}
    samples = {} if asked.kind == "samples" else {"samples": asked.samples}
    return {
        "suite": str(ground.suite.path),
        "base": ground.base,
        "experts": dict(ground.experts),
        "data": {name: [draw.source for draw in one] for name, one in ground.draws.items()},
        **samples,
        **told,
        "tasks": list(how.tasks or ground.suite.tasks),
        "sensitive": list(how.sensitive),
    }


def digest_of_settings(kind: str, settings: Mapping[str, Any], ground: Ground) -> str:
    """One digest of the settings and of the content of all files that they name."""
    memory = DigestMemory()
    parts: list[Any] = [__version__, kind, json.loads(json.dumps(settings, default=str))]
    parts.append(ground.entry.model_dump(mode="json"))
    parts.append([asdict(draw) for own in ground.draws.values() for draw in own])
    for file in _files(ground, str(settings.get("split", WHOLE)), settings.get("tasks", ())):
        parts.append([file.name, memory.digest(file)])
    memory.save()
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _files(ground: Ground, split: str, tasks: Iterable[str]) -> Iterator[Path]:
    """Weights, heads and rows; a data set of the hub is known by its name alone."""
    for model in (ground.base, *ground.experts.values()):
        yield from open_checkpoint(model).files
        if (Path(model) / CONFIG).is_file():
            yield Path(model) / CONFIG
    folder = ground.suite.path.parent
    named = [draw.source for own in ground.draws.values() for draw in own]
    for task in tasks:
        entry = ground.entry.tasks[task]
        data = entry.data if isinstance(entry.data, str) else entry.data.get(split)
        named += [resolved(folder, one) for one in (data, entry.head) if one is not None]
    for path in map(Path, named):
        if path.is_dir():
            yield from sorted(one for one in path.rglob("*") if one.is_file())
        elif path.is_file():
            yield path
