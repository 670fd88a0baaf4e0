"""Weights into a live module, by their names in its checkpoint, and all of it back as it was."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from magmerge.checkpoints.output.writer import entries_of
from magmerge.core.errors import CheckpointError, StructureError
from magmerge.core.types import Step

if TYPE_CHECKING:
    from magmerge.core.models import Bytes

WRAPPINGS = ("base_model.model.", "module.", "_orig_mod.")
"""What PEFT, data parallelism and compilation put before a module's own names."""


def load(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> dict[str, str]:
    """Copy `tensors` into the module's parameters and buffers; each one's name to its tensor's.

    Raises what `matched` does. Tensors that the module has no place for are left aside.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    names = matched(model, shapes, source)
    take_off_pooler(model, shapes)
    own = model.state_dict(keep_vars=True)
    with torch.no_grad():
        for name, stored in names.items():
            own[name].copy_(tensors[stored])
    return names


def matched(model: nn.Module, shapes: Mapping[str, tuple[int, ...]], source: str) -> dict[str, str]:
    """Each parameter and buffer of `model` that a tensor is for, to that tensor's name.

    StructureError with all parameters that no tensor is for, or whose shape is another, but for
    those of a pooler that can be taken off.
    """
    own = model.state_dict(keep_vars=True)
    names = stored_names(model, shapes)
    filled = {id(own[name]) for name in names}
    filled |= {
        id(parameter)
        for owner in _without_pooler(model, names)
        for parameter in owner.pooler.parameters()  # type: ignore[union-attr]
    }
    faults = [
        f"{name} of the {type(model).__name__} is not in {source}"
        for name, parameter in model.named_parameters()
        # PEFT puts adapters beside a layer; they are switched off meanwhile.
        if id(parameter) not in filled and ".lora_" not in name
    ]
    faults += [
        f"{stored} has shape {list(shapes[stored])} in {source}, {list(own[name].shape)} in "
        f"the {type(model).__name__}"
        for name, stored in names.items()
        if tuple(own[name].shape) != tuple(shapes[stored])
    ]
    if faults:
        raise StructureError(
            faults,
            remedy="name the class that these weights belong to (model_class=, --model-class), or "
            "a function that builds the model (build=, --build)",
        )
    return names


class ModelSink:
    """Takes the tensors of a merge right into a module; those it has no place for are dropped."""

    def __init__(self, model: nn.Module, names: Mapping[str, str]) -> None:
        own = model.state_dict(keep_vars=True)
        self._places: dict[str, Tensor] = {}
        for name, stored in names.items():
            place = own[name].detach()
            if not place.is_contiguous():
                own[name].data = place = place.contiguous()
            self._places[stored] = place

    def write(self, step: Step, start: int, part: Bytes) -> None:
        """Take the stored bytes of `step` from its entry `start` on."""
        place = self._places.get(step.spec.name)
        if place is not None:
            entries = entries_of(part, step.spec.dtype)
            place.reshape(-1)[start : start + len(entries)] = entries

    def write_parts(self, step: Step, parts: Sequence[tuple[int, Bytes]]) -> None:
        """The same of many parts, each with its start."""
        for start, part in parts:
            self.write(step, start, part)


def take_off_pooler(model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Take off a pooler that no tensor is for, where the model's class can do without one.

    Many encoders are published so.
    """
    for owner in _without_pooler(model, stored_names(model, shapes)):
        owner.pooler = None  # type: ignore[assignment]


def _without_pooler(model: nn.Module, names: Mapping[str, str]) -> list[nn.Module]:
    """The modules whose pooler is optional and gets nothing."""
    owners = []
    for path, owner in model.named_modules():
        optional = "add_pooling_layer" in inspect.signature(type(owner).__init__).parameters
        if optional and isinstance(getattr(owner, "pooler", None), nn.Module):
            inside = f"{path}.pooler." if path else "pooler."
            if not any(name.startswith(inside) for name in names):
                owners.append(owner)
    return owners


@contextmanager
def at_rest(model: nn.Module) -> Iterator[None]:
    """In evaluation mode, without adapters or fused attention, and afterwards as it was."""
    with ExitStack() as stack:
        for module in model.modules():
            stack.callback(setattr, module, "training", module.training)
        model.eval()
        # Fused kernels compute several layers at once, and none of them would be seen.
        stack.callback(
            torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled()
        )
        torch.backends.mha.set_fastpath_enabled(False)
        config = getattr(model, "config", None)
        if config is not None and getattr(config, "use_cache", None):
            # What is kept for generating text would grow with every call.
            stack.callback(setattr, config, "use_cache", config.use_cache)
            config.use_cache = False
        # PEFT's adapters are switched off: what was merged is in the layers that they wrap.
        for layer in model.modules():
            if not hasattr(layer, "base_layer"):
                continue
            switch: Callable[[bool], None] | None = getattr(layer, "enable_adapters", None)
            if switch is None:
                raise CheckpointError(
                    f"a {type(layer).__name__} wraps a layer in a way that magmerge does not know",
                    remedy="give the plain model, without adapters",
                )
            if not getattr(layer, "disable_adapters", False):
                stack.callback(switch, True)
            switch(False)
        yield


def stored_names(model: nn.Module, tensors: Collection[str]) -> dict[str, str]:
    """Each parameter or persistent buffer of `model`, by its name there, to its tensor's name.

    Names are equal, but for the wrapping of PEFT layers (`base_layer`), for those that transformers
    saves under other names than the module has, and for one leading part more or less on either
    side, as between a bare encoder and a classifier. What has no counterpart is left out; a
    parameter under two names needs a tensor for one of them.
    """
    own = model.state_dict(keep_vars=True)
    plain = {name: _unwrapped(name) for name in own}
    matched = (
        {name: stored for name, stored in candidates.items() if stored in tensors}
        for names in (plain, plain | _saved_names(model, own))
        for candidates in _candidates(names, tensors)
    )
    names = max(matched, key=len)
    stored = {id(own[name]): tensor for name, tensor in names.items()}
    return {
        name: names.get(name, stored[id(tensor)])
        for name, tensor in own.items()
        if id(tensor) in stored
    }


def _saved_names(model: nn.Module, own: Mapping[str, Tensor]) -> dict[str, str]:
    """The names that transformers gives to parameters when it saves them, where they differ.

    Told by what becomes of tensors without data; those that are taken apart or put together on the
    way have no one name.
    """
    if not hasattr(model, "save_pretrained"):
        return {}
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:
        # Before version 5 modules were saved under their own names.
        return {}
    empty = {name: torch.empty_like(tensor, device="meta") for name, tensor in own.items()}
    known = {id(tensor): name for name, tensor in empty.items()}
    saved = revert_weight_conversion(model, dict(empty))
    return {known[id(tensor)]: name for name, tensor in saved.items() if id(tensor) in known}


def _candidates(plain: Mapping[str, str], tensors: Collection[str]) -> list[dict[str, str]]:
    """The names as they are, and with each leading part taken away or put before them."""
    candidates = [dict(plain)]
    for part in sorted({name.partition(".")[0] for name in (*plain.values(), *tensors)}):
        shorter = {
            name: text if text in tensors else text.removeprefix(f"{part}.")
            for name, text in plain.items()
        }
        longer = {
            name: text if text in tensors else f"{part}.{text}" for name, text in plain.items()
        }
        candidates += [shorter, longer]
    return candidates


def _unwrapped(name: str) -> str:
    for wrapping in WRAPPINGS:
        name = name.removeprefix(wrapping)
    return name.replace(".base_layer.", ".")
