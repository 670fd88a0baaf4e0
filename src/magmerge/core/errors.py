"""Everything that can go wrong: each error names the tensor, the source and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OF_FILES = frozenset({".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".gguf", ".json"})
LISTED = 10
"""How many names one line of a message lists."""


class MagmergeError(Exception):
    """A user's mistake or a broken input.

    `problem` says what is wrong, `source` which file or object, `tensor` which tensor or key,
    `remedy` what to do about it.
    """

    def __init__(
        self,
        problem: str,
        *,
        source: object = None,
        tensor: str | None = None,
        remedy: str | None = None,
    ) -> None:
        self.problem = problem
        self.source = None if source is None else printable(str(source))
        self.tensor = None if tensor is None else printable(tensor)
        self.remedy = remedy
        super().__init__(problem)

    def __str__(self) -> str:
        where = []
        if self.tensor is not None:
            where.append(f"tensor {self.tensor}")
        if self.source is not None:
            where.append(f"in {self.source}" if where else self.source)
        text = f"{' '.join(where)}: {self.problem}" if where else self.problem
        return f"{text}\n  remedy: {self.remedy}" if self.remedy else text

    def as_dict(self) -> dict[str, Any]:
        """The same, for a program to read."""
        return {
            "kind": type(self).__name__,
            "problem": printable_lines(self.problem),
            "source": self.source,
            "tensor": self.tensor,
            "remedy": self.remedy,
        }


@contextmanager
def naming(tensor: str) -> Iterator[None]:
    """Errors within that name no tensor name this one."""
    try:
        yield
    except MagmergeError as error:
        if error.tensor is None:
            error.tensor = printable(tensor)
        raise


class CheckpointError(MagmergeError):
    """A checkpoint is missing, corrupt, unsafe or of an unknown layout."""


class EmptyCheckpointError(CheckpointError):
    """A checkpoint holds no tensors."""


class AdapterError(CheckpointError):
    """A LoRA adapter cannot be read or does not fit its base."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that does not fit, and what to do about it."""

    text: str
    remedy: str


class StructureError(MagmergeError):
    """Checkpoints that should be merged do not fit each other; `faults` lists every difference.

    A fault that is text has the remedy that is given for all of them.
    """

    def __init__(self, faults: Sequence[Fault | str], *, remedy: str = "") -> None:
        every = [f if isinstance(f, Fault) else Fault(f, remedy) for f in faults]
        self.remedies: dict[str, list[str]] = {}
        for fault in every:
            self.remedies.setdefault(fault.remedy, []).append(printable(fault.text))
        self.faults = tuple(text for texts in self.remedies.values() for text in texts)
        count = len(self.faults)
        self.summary = f"{count} fault{'s' if count > 1 else ''} found before any work"
        listing = "\n".join(f"  - {text}" for text in self.faults)
        super().__init__(f"{self.summary}\n{listing}", remedy="; ".join(self.remedies))

    def __str__(self) -> str:
        lines = [self.summary]
        for remedy, texts in self.remedies.items():
            lines += [f"  - {text}" for text in texts[:LISTED]]
            if len(texts) > LISTED:
                lines.append(f"  - and {len(texts) - LISTED} more of the kind")
            lines.append(f"  remedy: {remedy}")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        told = {"faults": list(self.faults), "remedies": self.remedies}
        return {**super().as_dict(), "problem": self.summary, **told}


class NonFiniteError(MagmergeError):
    """A tensor holds NaN or infinity."""


class UnknownNameError(MagmergeError):
    """No method, calibrator, parameter or layer has this name."""


class ParameterError(MagmergeError):
    """A parameter is out of range or of the wrong type."""


class UsageError(ParameterError):
    """A command line that leaves out what its verb cannot do without."""


class RecipeError(StructureError, ParameterError):
    """Several things are wrong with a file of recipes: `errors` are they, each with its line."""

    def __init__(self, errors: Sequence[MagmergeError]) -> None:
        self.errors = tuple(errors)
        super().__init__(
            [Fault(f"{one.source}: {one.problem}", one.remedy or "mend it") for one in errors]
        )


class MissingExtraError(MagmergeError):
    """A library that is not part of the core installation is needed, and is not there."""


class OutputError(MagmergeError):
    """The output cannot be written: it exists, is in use, or there is no space."""


class MagmergeWarning(UserWarning):
    """Something that does not stop the work but that its reader should know."""


KNOWN = 40
"""How many names a remedy lists that someone may choose of."""
FAR, COMPARED = 40, 10_000
"""How far from a name's length, and how many, the names are that it is compared with."""


def printable(text: str) -> str:
    """`text` with control characters spelled out: names inside files may be hostile."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def printable_lines(text: str) -> str:
    """The same line by line, for texts whose names are printable already."""
    return "\n".join(map(printable, text.split("\n")))


def shortened(names: Sequence[str], most: int = LISTED) -> str:
    """`names` as one line: the first ten, or `most`, and how many more there are."""
    more = [f"and {len(names) - most} more"] if len(names) > most else []
    return ", ".join([*map(printable, names[:most]), *more])


def suggestion(name: object, known: Iterable[str]) -> str:
    """The remedy for a misspelt `name`: the nearest of the `known` names, or all of them."""
    known, name = sorted({*known} - {name}), str(name)
    folded = {c.lower(): c for c in known if abs(len(c) - len(name)) <= FAR}
    if len(folded) > COMPARED:
        folded = {lower: c for lower, c in folded.items() if lower[:1] == name[:1].lower()}
    candidates = list(folded)[:COMPARED]
    close = difflib.get_close_matches(name.lower(), candidates, n=3, cutoff=0.6)
    if close:
        return f"did you mean {' or '.join(printable(folded[candidate]) for candidate in close)}?"
    return f"known: {shortened(known, KNOWN)}" if known else "none is known here"


def no_such_model(path: Path) -> CheckpointError:
    """That nothing is at a model's path, with what lies near it under such a name."""
    parent = path.parent
    near = [entry.name for entry in parent.iterdir()] if parent.is_dir() else []
    remedy = suggestion(path.name, near) if near else f"{parent} does not exist either"
    if not remedy.startswith("did you mean"):
        remedy = "check the path; a model of the Hugging Face hub is called org/name"
    return CheckpointError("no such file or folder", source=path, remedy=remedy)


def changed_meanwhile(file: Path) -> CheckpointError:
    """What is raised where an input is no longer the file that was opened."""
    return CheckpointError(
        "it was changed after it was opened",
        source=file,
        remedy="keep the inputs unchanged until the result is saved, and merge again",
    )
