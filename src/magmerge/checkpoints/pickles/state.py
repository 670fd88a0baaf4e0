"""The tensors of a model by name: those of a state dictionary, or of a whole pickled module."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from magmerge.checkpoints.pickles.limits import EmptyError, RefusedError, spoken
from magmerge.checkpoints.pickles.records import (
    ArrayRecord,
    Global,
    OddKey,
    Record,
    TensorRecord,
    as_tensor,
)

WRAPPERS = (
    "state_dict", "model_state_dict", "model", "model_state", "module", "net", "network", "params",
)  # fmt: skip
"""Keys under which training programs put the model, or its state."""
AVERAGED = frozenset({"ema", "swa", "avg", "average", "averaged"})
"""Words of the keys under which they put the average of the weights, which is the model to use."""
SHADOW = "shadow"
"""Under which an average's own object keeps its weights beside its decay and count."""
CALLBACKS = "callbacks"
RAW = "current_model_state"
"""Under which Lightning's WeightAveraging puts the raw weights: state_dict is their average."""
MODEL = "model"
"""The choice of the raw weights."""
AVERAGES_OWN = "n_averaged"
"""What torch's AveragedModel holds beside the model."""
PARTS = ("_parameters", "_buffers", "_modules")
"""What every module of torch has in its state."""
DEEPEST, MOST, LONGEST_NAME = 200, 200_000, 4096
"""How deep modules may be in each other, how many of them and of tensors there may be, and how long
a name is.
"""
LOOKED_AT, CHARACTERS = 2_000_000, 1 << 26
"""Entries of all modules, and characters of all names: modules may share what is in them."""
ENDLESS = "its modules are in each other without end"
LISTED = 8
"""How many keys a message lists."""
KINDS = {
    "torch._utils._rebuild_sparse_tensor": "a sparse tensor",
    "torch._utils._rebuild_sparse_csr_tensor": "a sparse tensor",
    "torch._utils._rebuild_qtensor": "a quantised tensor",
    "torch._utils._rebuild_nested_tensor": "a nested tensor",
    "torch._utils._rebuild_meta_tensor_no_storage": "a tensor without data",
    "torch._utils._rebuild_wrapper_subclass": "a tensor of a class of its own",
}
"""What some calls that are no plain tensors would give."""
OF_DTYPE = "torch._utils._rebuild_tensor_v3"


class ModelState:
    """Tensors by name in the order of state_dict(), and the classes of the modules they are of.
    `holds` says in words what the file holds, `note` what a reader should know of it; `averaged`
    whether it is the moving average of a training's weights.
    """

    def __init__(self, holds: str) -> None:
        self.holds = holds
        self.note: str | None = None
        self.averaged = False
        self.tensors: dict[str, TensorRecord] = {}
        self.classes: set[str] = set()
        self._arrays: dict[ArrayRecord, TensorRecord | None] = {}
        self._characters = 0

    def noted(self, note: str | None) -> ModelState:
        """Itself, with what a reader should know of it."""
        self.note = note or self.note
        return self

    def joined(self, prefix: str, key: str) -> str:
        """The name of a module's part; RefusedError where its names have no end."""
        self._characters += len(prefix) + len(key)
        if len(prefix) + len(key) > LONGEST_NAME or self._characters > CHARACTERS:
            raise RefusedError("the names of its tensors are without end")
        return prefix + key

    def add(self, name: str, value: Any) -> bool:
        """One tensor; False if it is none."""
        if isinstance(value, ArrayRecord):
            if value not in self._arrays:
                self._arrays[value] = as_tensor(value)
            value = self._arrays[value]
        if not isinstance(value, TensorRecord):
            return False
        if name in self.tensors:
            raise RefusedError(f"two of its tensors are called {spoken(name)}")
        if len(self.tensors) >= MOST:
            raise RefusedError(f"it has more than {MOST:,} tensors")
        self.tensors[name] = value
        return True

    def unwrap(self) -> None:
        """Without what averaging puts around a model's names: "module." before all of them."""
        inner = [name for name in self.tensors if name != AVERAGES_OWN]
        if inner and all(name.startswith("module.") for name in inner):
            self.tensors = {name.removeprefix("module."): self.tensors[name] for name in inner}


def collect(held: Any, weights: str | None = None) -> ModelState:
    """The tensors of what a file holds; RefusedError where that is no model.

    `weights` "model" takes the raw ones where their average is beside them.
    """
    note: str | None = None
    for _ in range(DEEPEST):
        if _is_module(held):
            return _of_module(held).noted(note)
        entries = _entries_of(held)
        if entries is None:
            raise RefusedError(f"it holds {_spoken(held)}, not a state dictionary or a module")
        inner = [value for value in map(entries.get, WRAPPERS) if _holds_names(value)]
        if inner and _holds_names(entries.get(RAW)):
            return _lightning(entries[RAW], inner[0], weights)
        key, value = next(_averages(entries), ("", None))
        if key and weights == MODEL:
            note = _raw_alone(key, inner)
        elif key:
            return _average(key, value, inner[0] if inner else None)
        if not inner:
            return _of_state(entries, "a state dictionary").noted(note)
        held = inner[0]
    raise RefusedError("it is wrapped too often")


def _holds_names(value: Any) -> bool:
    return _is_module(value) or _entries_of(value) is not None


def _beside(key: str, taken: str) -> str:
    return f"it holds averaged weights ({key}) beside the raw ones: the {taken} are taken"


def _lightning(raw: Any, average: Any, weights: str | None) -> ModelState:
    """What Lightning's WeightAveraging saves: both, the average where the model is else."""
    model = collect(raw if weights == MODEL else average)
    model.averaged = weights != MODEL
    return model.noted(_beside("state_dict", "averaged" if model.averaged else "raw"))


def _raw_alone(key: str, inner: Sequence[Any]) -> str:
    """What to say of the choice of the raw weights; RefusedError where there are none."""
    if not inner:
        raise RefusedError(
            f"it holds averaged weights ({key}) alone, and the raw ones are asked for",
            "drop --weights model (weights=), or name the models that have them: "
            "--weights NAME=model",
        )
    return _beside(key, "raw")


def _average(key: str, value: Any, raw: Any) -> ModelState:
    """The averaged weights beside the raw ones, or alone.

    RefusedError where they are not read: the raw ones are not the model to use.
    """
    shadow = (_entries_of(value) or {}).get(SHADOW)
    try:
        model = collect(shadow if _holds_names(shadow) else value)
    except RefusedError as error:
        raise _unread(key, error.problem) from error
    beside = None if raw is None else set(collect(raw).tensors)
    if set(model.tensors) != beside:
        model.unwrap()
    if beside is not None and set(model.tensors) != beside:
        raise _unread(key, "they are not those of the model beside it")
    model.averaged = True
    model.holds = f"{model.holds}, the average under {spoken(key)}"
    return model if raw is None else model.noted(_beside(key, "averaged"))


def _averages(entries: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    """What is called an average and holds tensors, also in the state of a trainer's callbacks."""
    callbacks = (_entries_of(entries.get(CALLBACKS)) or {}).values()
    for part in (entries, *(_entries_of(callback) or {} for callback in callbacks)):
        for key, value in part.items():
            words = re.split(r"[^a-z]+", key.lower()) if isinstance(key, str) else ()
            lone = isinstance(value, TensorRecord | ArrayRecord)
            if AVERAGED.intersection(words) and not lone and _holds_tensors(value):
                yield key, value


def _unread(key: str, why: str) -> RefusedError:
    return RefusedError(
        f"it holds averaged weights ({key}), which are the model to use, and they are not read: "
        f"{why}",
        "take the raw ones with --weights model (weights=), or save the state_dict() that you want "
        "alone, as safetensors or with torch.save",
    )


def _holds_tensors(value: Any, depth: int = 3) -> bool:
    """Whether there are tensors in it, and not just settings."""
    if isinstance(value, TensorRecord | ArrayRecord) or _is_module(value):
        return True
    entries = _entries_of(value)
    inner = list(entries.values()) if entries is not None else value
    if depth == 0 or not isinstance(inner, list | tuple):
        return False
    return any(_holds_tensors(entry, depth - 1) for entry in inner[:MOST])


def _of_state(entries: Mapping[Any, Any], holds: str) -> ModelState:
    model = ModelState(holds)
    odd = {}
    for key, value in entries.items():
        name = _name(key)
        if not model.add(name, value):
            odd[name] = value
    if not entries:
        raise EmptyError("it is empty")
    if odd:
        lines = [f"{spoken(name)} ({_spoken(odd[name])})" for name in list(odd)[:LISTED]]
        more = [f"{len(odd) - LISTED} more"] if len(odd) > LISTED else []
        raise RefusedError(f"these keys hold no tensor: {', '.join([*lines, *more])}")
    return model


def _of_module(root: Record) -> ModelState:
    model = ModelState(root.name)
    seen = entries = 0
    waiting: list[tuple[str, Any, int]] = [("", root, 0)]
    while waiting:
        prefix, module, depth = waiting.pop()
        seen += 1
        if depth > DEEPEST or seen > MOST:
            raise RefusedError(ENDLESS)
        if not _is_module(module):
            raise RefusedError(f"its module {spoken(prefix[:-1])} is {_spoken(module)}")
        model.classes.add(module.name)
        entries += sum(len(module.state[part]) for part in PARTS)
        if entries > LOOKED_AT:
            raise RefusedError(ENDLESS)
        _add_own(model, module, prefix)
        inner = [
            (model.joined(prefix, f"{_name(key)}."), value, depth + 1)
            for key, value in module.state["_modules"].items()
            if value is not None
        ]
        # A stack gives back the last one first.
        waiting += reversed(inner)
    if not model.tensors:
        raise RefusedError(f"the {spoken(root.name)} in it has no tensors")
    return model


def _add_own(model: ModelState, module: Record, prefix: str) -> None:
    """A module's own parameters, then those of its buffers that are stored."""
    passing = module.state.get("_non_persistent_buffers_set") or ()
    if not isinstance(passing, set | frozenset):
        passing = ()
    for part in ("_parameters", "_buffers"):
        for key, value in module.state[part].items():
            if value is None or (part == "_buffers" and _name(key) in passing):
                continue
            name = model.joined(prefix, _name(key))
            if not model.add(name, value):
                raise RefusedError(f"its {spoken(name)} is {_spoken(value)}")


def _is_module(value: Any) -> bool:
    return (
        isinstance(value, Record)
        and isinstance(value.state, dict)
        and all(isinstance(value.state.get(part), dict) for part in PARTS)
    )


def _entries_of(value: Any) -> dict[Any, Any] | None:
    """The entries of a mapping, also of one of a class of its own."""
    if isinstance(value, dict):
        return value
    return value.entries if isinstance(value, Record) and value.entries else None


def _name(key: Any) -> str:
    """A key as text. What is no plain value is not written out: that could take for ever."""
    if isinstance(key, OddKey):
        return f"a {type(key.value).__name__}"
    return key if isinstance(key, str) else spoken(key)


def _spoken(value: Any) -> str:
    """What a value is, in words."""
    if isinstance(value, Record):
        if value.name == OF_DTYPE and len(value.args) > 6 and isinstance(value.args[6], Global):
            return f"a tensor of {spoken(value.args[6].name)}, which is not read"
        return KINDS.get(value.name, f"a {spoken(value.name)}")
    if isinstance(value, Global):
        return f"the name {spoken(value.name)}"
    plain = {TensorRecord: "a lone tensor", ArrayRecord: "a numpy array of other things"}
    return plain.get(type(value), f"a {type(value).__name__}")
