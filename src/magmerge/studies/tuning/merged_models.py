"""Recipes carried out in memory, and their results as models that can be measured."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from magmerge.core.errors import NonFiniteError, ParameterError
from magmerge.core.machine import Machine
from magmerge.core.recipe import Recipe
from magmerge.engine.job import Live
from magmerge.engine.outputs import result_texts
from magmerge.engine.result import Result
from magmerge.evaluation.entries import ModelEntry
from magmerge.evaluation.held_out import HeldOutTask
from magmerge.evaluation.live_model import Hardware, LiveModel, ModelWeights
from magmerge.evaluation.runner import Runner
from magmerge.pipeline.documents import run


@dataclass(frozen=True, slots=True)
class Bench:
    """Where recipes are carried out and their results run. `texts` is a folder for configs and
    tokenizers, which libraries read from files; no weights go there.
    """

    machine: Machine
    texts: Path
    entry: ModelEntry
    base: Path | None = None
    build: bool = False

    @property
    def hardware(self) -> Hardware:
        """The machine as evaluations know it."""
        machine = self.machine
        return Hardware(machine.threads, device=machine.device, memory=machine.limit)

    def merged(self, recipes: list[Recipe], name: str) -> ModelWeights:
        """The result of a recipe's documents, which nothing is written of."""
        result = run(recipes, machine=self.machine, live=Live(build=self.build))
        if result.job.writes_adapter:
            raise ParameterError(
                "the result is an adapter, which does not run by itself",
                remedy="name the base in the recipe, and leave the output's rank out",
            )
        shapes = {step.spec.name: step.tensor.shape for step in result.plan.steps}
        return ModelWeights(name, result.state_dict, shapes, self._folder(result))

    def _folder(self, result: Result) -> Path | None:
        """A folder with the result's config and tokenizer; None where it has no config."""
        if self.base is not None or result.job.donor is None:
            return self.base
        texts = result_texts(result.job)
        parts = [f"{name}\0{len(text)}\0".encode() + text for name, text in sorted(texts.items())]
        folder = self.texts / hashlib.sha256(b"".join(parts)).hexdigest()[:16]
        for name, text in texts.items() if not folder.exists() else ():
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(text)
        return folder


class Measuring:
    """One live module that takes all models of a search in turn."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.live = LiveModel(bench.entry, bench.base)

    def answers(self, weights: ModelWeights, tasks: Mapping[str, HeldOutTask]) -> dict[str, Tensor]:
        """What a model makes of each task's rows: tasks that ask the same are run once."""
        hardware = self.bench.hardware
        module = self.live.put(weights, hardware)
        runner = Runner([self.live], hardware, 0)
        known: dict[int, Tensor] = {}
        for task in tasks.values():
            key = id(task.prepared)
            if key not in known:
                known[key] = runner.answers([module], task.prepared)[0]
        answers = {name: known[id(task.prepared)] for name, task in tasks.items()}
        broken = [name for name, own in answers.items() if not bool(torch.isfinite(own).all())]
        if broken:
            raise NonFiniteError(
                f"its outputs on {', '.join(broken)} are not finite",
                source=weights.name,
                remedy="search smaller factors",
            )
        return answers
