"""llama.cpp's converter, where the user has it: found, asked what it takes, and run."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from magmerge.core.errors import MissingExtraError, ParameterError, printable

NAMES = ("convert_hf_to_gguf.py", "convert-hf-to-gguf.py")
"""What it is called, and was."""
VARIABLE = "LLAMA_CPP"
OPTIONS = ("--outfile", "--outtype")
REPOSITORY = "https://github.com/ggml-org/llama.cpp"
REQUIREMENTS = "requirements/requirements-convert_hf_to_gguf.txt"
TYPES = {"auto": None, "f32": 0, "f16": 1, "bf16": 32, "q8_0": 7, "tq1_0": 36, "tq2_0": 37}
"""The formats that it writes, with the number that a file tells as its own (general.file_type)."""
PATIENCE = 600
"""Seconds until it must have told its options: it loads torch for that."""
TAIL = 8
"""Lines of its log that an error shows."""


class Run(NamedTuple):
    """How a run ended, and the last of what was written."""

    code: int
    log: str


def check_type(outtype: str) -> None:
    """ParameterError for a format that the converter does not write."""
    if outtype in TYPES:
        return
    remedy = f"choose one of {', '.join(TYPES)}"
    if outtype.lower().startswith(("q", "iq")):
        remedy += (
            f"; {outtype.upper()} is made of f16 by llama.cpp's own tool: llama-quantize F16.gguf "
            f"OUT.gguf {outtype.upper()}"
        )
    raise ParameterError(f"the converter writes no {outtype!r}", remedy=remedy)


def converter_at(place: Path | None, commands: str) -> Path:
    """The converter: at `place` (its file, or llama.cpp's folder), at the variable LLAMA_CPP, or on
    the PATH. MissingExtraError, with `commands` to get and run it, where it is nowhere.
    """
    for path in _places(place):
        if path.is_file():
            return path.resolve()
    if place is not None:
        raise ParameterError(
            "llama.cpp's converter is not there",
            source=place,
            remedy=f"name {NAMES[0]}, or the folder of llama.cpp that it is in",
        )
    raise MissingExtraError(
        f"llama.cpp's converter ({NAMES[0]}) is not at --converter, {VARIABLE} or on the PATH, so "
        "nothing was written",
        remedy=commands,
    )


def _places(place: Path | None) -> Iterator[Path]:
    given = place or (Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None)
    if given is not None:
        yield given
        yield from (given / name for name in NAMES)
    if place is None:
        yield from (Path(path) for name in NAMES if (path := shutil.which(name)))


def command_for(converter: Path, model: Path, out: Path, outtype: str) -> list[str]:
    """What is run: the model's folder, the file to write, and its format."""
    return [*_program(converter), str(model), "--outfile", str(out), "--outtype", outtype]


def commands_to_get(model: Path, out: Path, outtype: str) -> str:
    """The lines that fetch the converter and write the file with it."""
    words = ["magmerge", "export", "gguf", str(model), str(out), "--outtype", outtype]
    by_hand = ["python", f"llama.cpp/{NAMES[0]}", str(model), "--outfile", str(out)]
    return "\n".join(
        (
            "fetch llama.cpp, then say where it is:",
            f"  git clone --depth 1 {REPOSITORY}",
            f"  pip install -r llama.cpp/{REQUIREMENTS}",
            f"  {shlex.join([*words, '--converter', 'llama.cpp'])}",
            "or without magmerge's checks:",
            f"  {shlex.join([*by_hand, '--outtype', outtype])}",
        )
    )


def check_takes(converter: Path, outtype: str) -> None:
    """ParameterError where the program does not tell that it takes the options and the format."""
    try:
        done = _run([*_program(converter), "--help"], PATIENCE)
    except subprocess.TimeoutExpired:
        raise ParameterError(
            f"it tells nothing of its options within {PATIENCE} s",
            source=converter,
            remedy=f"run it with --help, or name llama.cpp's own {NAMES[0]}",
        ) from None
    if done.code:
        raise ParameterError(
            f"it does not run: {done.log}",
            source=converter,
            remedy=f"install what it needs into this Python ({sys.executable}): pip install -r "
            f"{converter.parent / REQUIREMENTS}",
        )
    lacks = [option for option in OPTIONS if option not in done.log]
    lacks += [] if outtype in done.log else [f"--outtype {outtype}"]
    if lacks:
        raise ParameterError(
            f"it takes no {' and no '.join(lacks)}, as its --help tells",
            source=converter,
            remedy=f"name llama.cpp's {NAMES[0]} of today with --converter, or another --outtype",
        )


def convert(command: list[str]) -> Run:
    """Run the converter; nothing is fetched by it."""
    return _run(command)


def _program(converter: Path) -> list[str]:
    return [sys.executable, str(converter)] if converter.suffix == ".py" else [str(converter)]


def _run(command: list[str], patience: float | None = None) -> Run:
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            timeout=patience,
            check=False,
        )
    except OSError as error:
        return Run(1, f"{error.strerror}: {command[0]}")
    text = done.stdout.decode(errors="replace")
    if done.returncode:
        text = "; ".join(printable(line) for line in text.strip().splitlines()[-TAIL:])
    return Run(done.returncode, text or f"exit code {done.returncode}")
