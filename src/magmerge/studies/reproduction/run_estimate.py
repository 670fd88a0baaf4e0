"""What a run will take, told before it begins: disk, rows, forward passes, and time by a trial."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.text import Text

from magmerge.core.errors import OutputError
from magmerge.live.modules import bare_model
from magmerge.report.terminal_tables import plain
from magmerge.studies.reproduction.merges import models_a_round
from magmerge.studies.reproduction.pipeline_models import find_here
from magmerge.studies.reproduction.reproduction_table import ZERO_SHOT
from magmerge.studies.reproduction.run_scores import scored_models
from magmerge.studies.reproduction.run_spec import RunSpec

GB = 10**9
TRIAL_ROWS = 8
TRIAL_TOKENS = 64


@dataclass(frozen=True, slots=True)
class RunEstimate:
    """What is known beforehand; disk and download in bytes.

    `models` are still to be made; `rows` are the test rows, by the pipeline's figures.
    `download` is of models that are not here yet (data sets come on top), `disk` of models that lie
    in the folder at once. `passes` is rows times models that are still to be measured; `seconds`
    what they take by a trial of the base, None where it is not here yet or no trial succeeds.
    """

    models: int
    rows: int
    passes: int
    download: float
    disk: float
    free: float
    seconds: float | None

    def check(self, folder: Path) -> None:
        """OutputError where the disk is too small."""
        if self.disk + self.download > self.free:
            raise OutputError(
                f"this needs {(self.disk + self.download) / GB:.1f} GB, and {self.free / GB:.1f} "
                "GB are free",
                source=folder,
                remedy="free some, take a folder on another disk, or fewer --methods at a time",
            )


def estimate(request: RunSpec) -> RunEstimate:
    """What is left to do, as far as it can be told from what is here."""
    pipeline, inputs = request.pipeline, request.inputs
    roles = ("base", *request.tasks)
    missing = [role for role in roles if find_here(pipeline, role, inputs) is None]
    known = scored_models(request.folder)
    rows = sum(pipeline.experts[task].rows or 0 for task in request.tasks)
    left = [variant for variant in request.variants if variant.name not in known]
    passes = rows * len(left) + (0 if ZERO_SHOT in known else 2 * rows)
    base, seconds = find_here(pipeline, "base", inputs), None
    if base is not None and passes:
        row_seconds = seconds_a_row(request, base)
        seconds = None if row_seconds is None else row_seconds * passes
    size = int(pipeline.expert_gb * GB)
    together = len(left) if request.options.keep else min(len(left), models_a_round(request, size))
    download = pipeline.expert_gb * len([role for role in missing if role != "base"])
    download += pipeline.base_gb if "base" in missing else 0.0
    place = request.folder.absolute()
    while not place.exists():
        place = place.parent
    free = float(shutil.disk_usage(place).free)
    return RunEstimate(len(left), rows, passes, GB * download, size * together, free, seconds)


def seconds_a_row(request: RunSpec, base: Path) -> float | None:
    """One row's forward pass of the base, by the second of two calls on made-up inputs.

    None where that fails: what is wrong is told by the work itself.
    """
    kind, device = request.pipeline.kind, request.machine.device
    model_class = "CLIPVisionModelWithProjection" if kind == "vision" else None
    code = torch.bfloat16 if request.hardware.dtype == "bfloat16" else torch.float32
    try:
        module = bare_model(base, model_class=model_class, loaded=True)
        module = module.to(device=device, dtype=code).eval()
        call = _trial(module, kind)
        with torch.inference_mode():
            call()
            start = time.monotonic()
            call()
    except Exception:
        return None
    return (time.monotonic() - start) / TRIAL_ROWS


def _trial(module: Any, kind: str) -> Callable[[], Any]:
    like = next(module.parameters())
    if kind == "vision":
        side = module.config.image_size
        pixels = torch.zeros(TRIAL_ROWS, 3, side, side, dtype=like.dtype, device=like.device)
        return lambda: module(pixel_values=pixels)
    ids = torch.ones(TRIAL_ROWS, TRIAL_TOKENS, dtype=torch.int64, device=like.device)
    return lambda: module(input_ids=ids)


def estimate_text(estimate: RunEstimate) -> Text:
    """What the run will take."""
    time = "" if estimate.seconds is None else f", about {_duration(estimate.seconds)} by a trial"
    rows = f", {estimate.rows} test rows each" if estimate.rows else ""
    parts = [f"{estimate.models} models to make{rows}{time}"]
    if estimate.download:
        parts.append(f"{_gigabytes(estimate.download)} of models to fetch, and the data sets")
    disk, free = _gigabytes(estimate.disk), _gigabytes(estimate.free)
    parts.append(f"at most {disk} of disk for merges at once, {free} are free")
    return plain("; ".join(parts))


def _gigabytes(size: float) -> str:
    if size < 0.01 * GB:
        return "under 10 MB"
    return f"{size / GB:.{2 if size < GB else 0 if size > 100 * GB else 1}f} GB"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
