"""A process that makes each call in a fork of its own, below a file system that can fail."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
import traceback
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

SOURCE = Path(__file__).with_name("faults.c")
ROOT = Path(__file__).parents[2]
KILLED = -9
LIBRARIES = ("torch", "magmerge.pipeline", "magmerge.engine.adapters.adapter_result")
LIVE = ("transformers", "optuna", "matplotlib", "magmerge.live", "magmerge.report")
"""What is imported once, before calls are made in forks; and for those that run models."""


class Ending(NamedTuple):
    """How a call ended: its exit code (negative: by that signal), the error's type and message, and
    how often the disk was changed, synced and read.
    """

    code: int
    error: str
    message: str
    changes: int
    syncs: int
    reads: int


def compiler() -> str | None:
    """A C compiler, if there is one, and a system that knows LD_PRELOAD."""
    return shutil.which("cc") if sys.platform.startswith("linux") else None


def built(folder: Path) -> Path:
    """The library of faults, compiled into a folder."""
    library = folder / "faults.so"
    command = [str(compiler()), "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE), "-ldl"]
    subprocess.run(command, check=True, capture_output=True)
    return library


class Program:
    """Calls of `magmerge.VERB(**arguments)`, each with one kind of fault below one folder."""

    def __init__(self, folder: Path, libraries: tuple[str, ...] = LIBRARIES) -> None:
        library = built(folder)
        environment = {
            **os.environ,
            "LD_PRELOAD": str(library),
            "FAULTS": str(library),
            "XDG_CACHE_HOME": str(folder / "cache"),
            "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
            "OMP_NUM_THREADS": "1",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.program", *libraries],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment,
        )

    def call(
        self,
        verb: str,
        arguments: dict[str, Any],
        *,
        below: Path,
        fault: str = "count",
        at: int = 0,
        log: Path | None = None,
    ) -> Ending:
        """The ending of a call under a fault, of `faults.c`, at its place `at`."""
        request = [verb, arguments, fault, at, str(below), str(log or "")]
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request, default=str) + "\n")
        self._process.stdin.flush()
        return Ending(*json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


def serve() -> None:
    """Make the calls that come in."""
    for name in sys.argv[1:]:
        import_module(name)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        read, write = os.pipe()
        child = os.fork()
        if not child:
            os.close(read)
            os._exit(_made(json.loads(line), write))
        os.close(write)
        with os.fdopen(read) as stream:
            told = stream.read()
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        ending = [code, *(json.loads(told) if told else ["", "", 0, 0, 0])]
        answers.write(json.dumps(ending) + "\n")
        answers.flush()


def _made(request: list[Any], answer: int) -> int:
    """Make a call, in the fork, and tell of it; its exit code."""
    import magmerge

    verb, arguments, fault, at, below, log = request
    library = ctypes.CDLL(os.environ["FAULTS"])
    machine = arguments.pop("machine", None)
    if machine is not None:
        arguments["machine"] = magmerge.Machine(**machine)
    code, error, message = 0, "", ""
    call = getattr(magmerge, verb)
    library.magmerge_faults_arm(fault.encode(), ctypes.c_long(at), below.encode(), log.encode())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call(**arguments)
    except magmerge.MagmergeError as caught:
        code, error, message = 2, type(caught).__name__, str(caught)
    except BaseException as caught:
        code, error, message = 1, type(caught).__name__, traceback.format_exc()
    counts = [
        getattr(library, f"magmerge_faults_{name}")() for name in ("changes", "syncs", "reads")
    ]
    library.magmerge_faults_arm(b"", 0, b"", b"")
    os.write(answer, json.dumps([error, message, *counts]).encode())
    return code


if __name__ == "__main__":
    serve()
