"""Scores of experts, measured once and remembered by the content of all that they depend on."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from magmerge.checkpoints import open_checkpoint
from magmerge.checkpoints.adapters.formats.lora_config import CONFIG
from magmerge.checkpoints.digests import DigestMemory, Memory, default_path
from magmerge.core.version import __version__
from magmerge.evaluation.entries import SuiteEntry

DONATED = ("*.json", "*.txt", "*.model", "*.spm")
"""Files beside the weights that decide what a model makes of texts and images."""


def score_memory() -> Memory[float]:
    """Experts' scores by digest, in a small file beside that of the digests."""
    digests = default_path()
    path = None if digests is None else digests.with_name("expert-scores.json")
    return Memory(path, lambda score: isinstance(score, float) and math.isfinite(score))


def score_key(
    task: str,
    suite: SuiteEntry,
    files: Iterable[Path],
    expert: str,
    base: Path | None,
    settings: tuple[Any, ...],
) -> str | None:
    """A digest of all that an expert's score depends on; None where some of it is no file.

    `files` are the head, the data (a file or a folder) and the user's own code; `settings` what
    else the score depends on. The suite's settings of the task are added, and the versions.
    """
    memory = DigestMemory()
    entry = suite.tasks[task]
    parts: list[Any] = [__version__, str(torch.__version__), *map(str, settings)]
    parts.append(suite.model_dump(mode="json", exclude={"tasks", "suite", "base"}))
    parts.append(
        entry.model_dump(mode="json", exclude={"title", "expert", "expert_score", "head", "data"})
    )
    try:
        wanted = [*files, *open_checkpoint(expert).files, Path(expert) / CONFIG]
        if base is not None:
            wanted += [*open_checkpoint(base).files]
            wanted += sorted(path for pattern in DONATED for path in base.glob(pattern))
        for path in wanted:
            if path.name == CONFIG and not path.is_file():
                continue
            if not path.exists():
                return None
            inner = sorted(path.rglob("*")) if path.is_dir() else [path]
            parts += [[one.name, memory.digest(one)] for one in inner if one.is_file()]
    except OSError:
        return None
    memory.save()
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
