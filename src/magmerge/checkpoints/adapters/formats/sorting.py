"""The keys of one file, sorted by module: what the file is, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from magmerge.checkpoints.adapters.formats.keys import Key, Refusal, Role, Style, read_key
from magmerge.core.errors import AdapterError, printable
from magmerge.core.models import Checkpoint

LISTED = 8
"""How many keys a message lists."""
STYLES: Mapping[Style, str] = {
    "peft": "PEFT",
    "kohya": "kohya",
    "comfy": "ComfyUI",
    "diffusers_old": "old diffusers",
    "diffusers": "diffusers",
}
AGAIN = "fetch the adapter once more"

Roles: TypeAlias = dict[Role, str]
"""A module's keys by what they are to it."""


def is_adapter_file(checkpoint: Checkpoint) -> bool:
    """Whether any key is one that only adapters have, of a format that is read or refused."""
    return any(_is_evidence(read_key(key)) for key in checkpoint.specs)


def style_of(checkpoint: Checkpoint) -> Style:
    """In whose manner the file names its modules; AdapterError where it is no sound adapter."""
    if not checkpoint.specs:
        raise AdapterError("it holds no tensors", source=checkpoint.source, remedy=AGAIN)
    read = {key: read_key(key) for key in checkpoint.specs}
    if not any(_is_evidence(found) for found in read.values()):
        raise AdapterError(
            f"it is no adapter: none of its keys is one's ({listing(list(read))})",
            source=checkpoint.source,
            remedy="name a LoRA file, or merge whole models with their base",
        )
    _check_known(checkpoint, read)
    styles: dict[Style, str] = {}
    for key, found in read.items():
        if isinstance(found, Key) and found.style is not None:
            styles.setdefault(found.style, key)
    if len(styles) > 1:
        told = " and ".join(f"{STYLES[style]} ({printable(key)})" for style, key in styles.items())
        raise AdapterError(
            f"it mixes keys of several formats: {told}",
            source=checkpoint.source,
            remedy="split the file by format: only the adapter's author knows which part counts",
        )
    return next(iter(styles))


def _is_evidence(found: Key | Refusal | None) -> bool:
    return isinstance(found, Refusal) or (found is not None and found.style is not None)


def _check_known(checkpoint: Checkpoint, read: Mapping[str, Key | Refusal | None]) -> None:
    for key, found in read.items():
        if isinstance(found, Refusal):
            raise AdapterError(
                f"refused: {found.reason}",
                source=checkpoint.source,
                tensor=key,
                remedy="merge it into its base with the program that made it, and give the whole "
                "models",
            )
    unknown = [key for key, found in read.items() if found is None]
    if unknown:
        raise AdapterError(
            f"{len(unknown)} of its keys are no adapter's: {listing(unknown)}",
            source=checkpoint.source,
            remedy="give a file that holds an adapter and nothing else",
        )


def by_module(checkpoint: Checkpoint, named: Callable[[str], str]) -> dict[str, Roles]:
    """Each module's keys, in the order of the file; `named` gives a module's canonical name."""
    modules: dict[str, Roles] = {}
    for key in checkpoint.specs:
        found = read_key(key)
        assert isinstance(found, Key)
        roles = modules.setdefault(named(found.module), {})
        if found.role in roles:
            raise AdapterError(
                f"it is the same factor of the same module as {printable(roles[found.role])}",
                source=checkpoint.source,
                tensor=key,
                remedy="remove the one that does not belong to this adapter",
            )
        roles[found.role] = key
    return modules


def listing(keys: Sequence[str]) -> str:
    """The first keys, and how many more there are."""
    shown = ", ".join(printable(key) for key in keys[:LISTED])
    return f"{shown} and {len(keys) - LISTED} more" if len(keys) > LISTED else shown
