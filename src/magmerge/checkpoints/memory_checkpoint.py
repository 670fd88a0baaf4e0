"""Checkpoints that are in memory: mappings of tensors, and modules."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from magmerge.core import dtypes
from magmerge.core.errors import CheckpointError
from magmerge.core.types import Kind, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor, nn


class MemoryCheckpoint:
    """A mapping from names to tensors, seen as a checkpoint. The tensors are never changed."""

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        source: str = "tensors in memory",
        *,
        folder: Path | None = None,
        files: tuple[Path, ...] = (),
        kinds: Mapping[str, Kind] | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        self.source = source
        self.folder = folder
        self.files = files
        self.notes = notes
        self.kinds = MappingProxyType(dict(kinds or {}))
        tensors = {name: _as_tensor(name, value, source) for name, value in tensors.items()}
        specs = {name: _spec(name, tensor, source) for name, tensor in tensors.items()}
        self.specs = MappingProxyType(specs)
        self._tensors = {name: tensor.detach() for name, tensor in tensors.items()}
        self.ties = MappingProxyType(_ties(self._tensors))

    def read(self, name: str) -> Tensor:
        """The tensor `name` on the CPU; it may share memory with the mapping's."""
        return self._tensors[name].cpu().contiguous()

    def read_part(self, name: str, start: int, stop: int, out: Tensor | None = None) -> Tensor:
        """Entries [start, stop) of the flattened tensor; without `out` perhaps shared memory."""
        part = _flat(self._tensors[name], start, stop)
        return part.cpu() if out is None else out.copy_(part)


def _flat(tensor: Tensor, start: int, stop: int) -> Tensor:
    """Entries of the flattened tensor; of one that is a turned view, only the rows they are in."""
    if tensor.is_contiguous() or tensor.ndim < 2 or start == stop:
        return tensor.reshape(-1)[start:stop]
    row = tensor[0].numel()
    first, last = start // row, -(-stop // row)
    return tensor[first:last].reshape(-1)[start - first * row : stop - first * row]


def from_module(module: nn.Module) -> MemoryCheckpoint:
    """A module's state, with the kinds its classes tell; of one that PEFT has wrapped, the model's
    within.
    """
    state, kinds = module.state_dict(), _module_kinds(module)
    if any(".base_layer." in name for name in state):
        if any(layer.merged for layer in wrapped_layers(module) if hasattr(layer, "merged")):
            raise CheckpointError(
                "PEFT has merged its adapter into these weights",
                source=_source(module),
                remedy="call unmerge_adapter() first, or pass model.merge_and_unload()",
            )
        state = {_within(name): tensor for name, tensor in state.items() if not _of_adapter(name)}
        kinds = {_within(name): kind for name, kind in kinds.items() if not _of_adapter(name)}
    return MemoryCheckpoint(state, _source(module), kinds=kinds)


def from_expert(module: nn.Module) -> MemoryCheckpoint:
    """A module's state as it computes: with what PEFT has put beside its weights merged into a
    copy.
    """
    layers = wrapped_layers(module)
    if all(layer.disable_adapters for layer in layers if hasattr(layer, "disable_adapters")):
        return from_module(module)
    copied: Any = copy.deepcopy(module)
    if hasattr(copied, "merge_and_unload"):
        _untie(wrapped_layers(copied), copied)
        with warnings.catch_warnings():
            # Of what PEFT tells, the plan tells what remains true of the result.
            warnings.simplefilter("ignore")
            merged = from_module(copied.merge_and_unload())
        tensors = {name: merged.read(name) for name in merged.specs}
        return MemoryCheckpoint(tensors, _source(module), kinds=merged.kinds)
    raise CheckpointError(
        "PEFT has put an adapter into it, and it cannot be merged from outside",
        source=_source(module),
        remedy="wrap it with get_peft_model, or save the adapter and give its folder",
    )


def wrapped_layers(module: nn.Module) -> list[Any]:
    """What PEFT has put around layers: adapters, and copies that are trained in their place."""
    return [
        layer
        for layer in module.modules()
        if type(layer).__module__.startswith("peft.")
        and (hasattr(layer, "base_layer") or hasattr(layer, "original_module"))
    ]


def _untie(layers: list[Any], module: nn.Module) -> None:
    """Give each layer that PEFT has wrapped a weight of its own: PEFT runs it apart from others
    that share it, so what it learns is not theirs.
    """
    from torch import nn

    owners: dict[int, set[int]] = {}
    for layer in module.modules():
        # The wrapper gives the weight of the layer in it as its own.
        weight = layer._parameters.get("weight")
        if weight is not None:
            owners.setdefault(weight.data_ptr(), set()).add(id(layer))
    for layer in layers:
        inner = getattr(layer, "base_layer", None) or layer.original_module
        weight = getattr(inner, "weight", None)
        if weight is not None and len(owners.get(weight.data_ptr(), ())) > 1:
            inner.weight = nn.Parameter(weight.detach().clone())


def _source(module: nn.Module) -> str:
    return f"a {type(module).__name__} in memory"


def _of_adapter(name: str) -> bool:
    """Whether PEFT put this tensor beside a model's own: factors, and copies that it trains."""
    return ".lora_" in name or ".modules_to_save." in name


def _within(name: str) -> str:
    plain = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
    return plain.replace(".original_module.", ".")


def _as_tensor(name: object, value: Any, source: str) -> Any:
    """A numpy array as the tensor of its memory; anything else as it is."""
    if not (type(value).__module__ == "numpy" and hasattr(value, "__array_interface__")):
        return value
    import numpy as np
    import torch

    array = np.asarray(value)
    # Tensors have no negative strides, and warn of memory that is not to be written to.
    plain = array if array.flags.writeable and min(array.strides, default=0) >= 0 else array.copy()
    try:
        return torch.from_numpy(plain)
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"it is a numpy array of {array.dtype}, which torch has no tensors of",
            source=source,
            tensor=str(name),
            remedy="convert it first: array.astype('float32')",
        ) from error


def _spec(name: object, tensor: object, source: str) -> TensorSpec:
    """The tensor's header; CheckpointError for what is no tensor of a name, or cannot be stored."""
    import torch

    if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
        raise CheckpointError(
            f"{name!r} is a {type(tensor).__name__}, but a model in memory maps names to tensors",
            source=source,
            remedy="pass state_dict() of a model that is loaded, or a mapping of such",
        )
    if tensor.is_meta:
        raise CheckpointError(
            "it is on the meta device: it has a shape and no numbers",
            source=source,
            tensor=name,
            remedy="load the model with its weights on the CPU (no init_empty_weights, no offload "
            "to disk), or give the folder that they are in",
        )
    code = dtypes.code_of(tensor.dtype)
    strided = str(tensor.layout) == "torch.strided"
    if code is None or not strided:
        raise CheckpointError(
            f"{tensor.dtype if strided else tensor.layout} cannot be stored in safetensors",
            source=source,
            tensor=name,
            remedy="convert it to a dense tensor of float32, float16, bfloat16 or another plain "
            "dtype first",
        )
    return TensorSpec(name, tuple(tensor.shape), code)


def _ties(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Each name whose tensor is the very memory of an earlier one, to that earlier name."""
    first: dict[tuple[object, ...], str] = {}
    ties: dict[str, str] = {}
    for name, tensor in tensors.items():
        if tensor.numel():
            place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
            ties[name] = first.setdefault(place, name)
    return {name: origin for name, origin in ties.items() if name != origin}


def _module_kinds(module: nn.Module) -> dict[str, Kind]:
    from torch import nn

    turned = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    kinds: dict[str, Kind] = {}
    for path, layer in module.named_modules():
        name = f"{path}.weight" if path else "weight"
        if isinstance(layer, nn.Embedding | nn.EmbeddingBag):
            kinds[name] = "embedding"
        elif type(layer).__name__ == "Conv1D" and hasattr(layer, "nf"):
            kinds[name] = "transposed"
        elif isinstance(layer, turned):
            kinds[name] = "transposed" if layer.groups == 1 else "other"
    return kinds
