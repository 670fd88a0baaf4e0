"""A whole model with an adapter folded in, tensor by tensor when it is read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from magmerge.checkpoints.adapters.adapter_expert import AdapterExpert
from magmerge.checkpoints.adapters.nouns import Adapter
from magmerge.checkpoints.kinds import read_model_config
from magmerge.checkpoints.ties import untied, untied_settings
from magmerge.core.dtypes import torch_dtype
from magmerge.core.errors import CheckpointError, Fault, StructureError
from magmerge.core.models import OWN_BASE, Checkpoint
from magmerge.core.types import Kind, TensorSpec

APART = "{} is {} in {}, and with {} another matrix: it has both, and tie_word_embeddings false"
BEFORE = "write the model that this adapter was trained on before the +"


class FoldedCheckpoint:
    """`model` with `adapter` merged into its weights: W + scale * B A in float32, and one cast to
    the format that the model has.

    StructureError where the adapter does not fit the model.
    """

    def __init__(self, model: Checkpoint, adapter: Adapter) -> None:
        if hasattr(model, "parts"):
            raise CheckpointError(
                "a pipeline with an adapter folded in is not read",
                source=f"{model.source}+{adapter.source}",
                remedy="name the pipeline as the base, and the adapter alone as an expert",
            )
        self.settings: Mapping[str, Any] = getattr(model, "settings", MappingProxyType({}))
        self._model = model
        self._expert = AdapterExpert(adapter.source, adapter, model)
        head, notes = self._expert.apart, model.notes
        if head is not None:
            # PEFT runs the two as different matrices then.
            self._model = untied(model, head)
            self._expert = AdapterExpert(adapter.source, adapter, self._model)
            self.settings = {**self.settings, **untied_settings(read_model_config(model))}
            notes = (*notes, APART.format(head.name, head.embedding, model.source, adapter.source))
        faults = [*self._expert.faults, *self._misfits()]
        if faults:
            told = [(f.text, BEFORE if f.remedy == OWN_BASE else f.remedy) for f in faults]
            raise StructureError([Fault(*fault) for fault in told])
        self.source = f"{model.source}+{adapter.source}"
        self.folder: Path | None = model.folder
        self.files: tuple[Path, ...] = (*model.files, *adapter.files)
        self.specs: Mapping[str, TensorSpec] = self._model.specs
        self.ties: Mapping[str, str] = self._model.ties
        self.kinds: Mapping[str, Kind] = self._model.kinds
        self.notes: tuple[str, ...] = (*notes, *self._expert.notes)
        self.written: str | None = getattr(model, "written", None)

    def read(self, name: str) -> Tensor:
        """The tensor `name` with what the adapter adds."""
        shape = self.specs[name].shape
        return self.read_part(name, 0, math.prod(shape)).reshape(shape)

    def read_part(self, name: str, start: int, stop: int, out: Tensor | None = None) -> Tensor:
        """Entries [start, stop) of the flattened tensor, in memory of their own or in `out`."""
        if name in self._expert.untouched:
            return self._model.read_part(name, start, stop, out)
        stored = torch_dtype(self.specs[name].dtype)
        own = self._model.read_part(name, start, stop, out)
        wide = own.to(torch.float64 if stored == torch.float64 else torch.float32)
        folded = self._expert.weight(name, wide, start)
        return folded.to(stored) if out is None else out.copy_(folded)

    def _misfits(self) -> list[Fault]:
        """What the adapter changes that the model has not, or has in another shape."""
        source, faults = self._expert.source, []
        for name, spec in self._expert.specs.items():
            own = self._model.specs.get(name)
            if own is None:
                text = f"{name} of {source} is not in {self._model.source}"
                faults.append(Fault(text, OWN_BASE))
            elif own.shape != spec.shape:
                text = f"{name} has shape {list(spec.shape)} in {source}, {list(own.shape)} in "
                faults.append(Fault(f"{text}{self._model.source}", OWN_BASE))
        return faults
