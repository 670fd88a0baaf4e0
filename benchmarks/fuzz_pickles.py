"""Mutated torch files, read one after the other: nothing may run, hang, crash or fill the memory.

    python -m benchmarks.fuzz_pickles --files 100000 --seed 0

Honest and hostile files (zip, legacy and plain pickles) are damaged: bytes flipped, cut off,
doubled and spliced, opcodes, globals and huge numbers put in, mostly between two opcodes; of zip
files also the pickle within. Each is opened and its tensors are read. An audit hook sees every
import, exec, file, process and socket.
"""

from __future__ import annotations

import argparse
import codecs
import io
import json
import pickle
import pickletools
import random
import resource
import signal
import sys
import tempfile
import time
import zipfile
from collections import Counter, OrderedDict
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from magmerge.checkpoints.pickles.torch_pickle import open_torch
from magmerge.core.errors import MagmergeError

RESULTS = Path(__file__).parent / "results" / "fuzz_pickles.jsonl"
LONGEST = 60
"""Seconds after which a file counts as a hang."""
WATCHED = (
    "import", "exec", "compile", "open", "os.", "subprocess.", "socket.", "ctypes.", "shutil.",
    "pickle.find_class", "marshal.", "code.__new__", "function.__new__", "pty.", "urllib.",
    "webbrowser.", "tempfile.", "sys._getframe", "builtins.input", "builtins.breakpoint",
)  # fmt: skip
GLOBALS = (
    b"cos\nsystem\n", b"cposix\nsystem\n", b"cbuiltins\neval\n", b"cbuiltins\nexec\n",
    b"cbuiltins\ngetattr\n", b"csubprocess\nPopen\n", b"c__builtin__\n__import__\n",
    b"coperator\nattrgetter\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n",
    b"ccollections\nOrderedDict\n", b"cbuiltins\nset\n", b"cbuiltins\nbytearray\n",
    b"c_codecs\nencode\n", b"cnumpy.core.multiarray\n_reconstruct\n", b"cnumpy\ndtype\n",
    b"ctorch.storage\n_load_from_bytes\n", b"ctorch._tensor\n_rebuild_from_type_v2\n",
    b"ccopyreg\n_reconstructor\n", b"ctorch.nn.modules.linear\nLinear\n",
)  # fmt: skip
HUGE = (
    b"\x8a\x08" + b"\xff" * 7 + b"\x7f", b"J\xff\xff\xff\x7f", b"r\xff\xff\xff\xff",
    b"\x8e" + b"\xff" * 7 + b"\x7f", b"\x8b\xff\xff\xff\x7f", b"j\xff\xff\xff\xff",
    b"B\xff\xff\xff\x7f", b"\x8d" + b"\xff" * 7 + b"\x00", b"X\xff\xff\xff\xff",
)  # fmt: skip
DAG = b"M\x00\x03" + b"2\x86" * 60  # Tuples in each other: 2^60 leaves.
DAGS = (
    DAG, b"}" + DAG + b"K\x01s", b"\x8f(" + DAG + b"\x90", DAG + DAG + b"\x86",
    b"c_codecs\nencode\nX\x01\0\0\0x" + DAG + b"\x86R", b"cnumpy\ndtype\n" + DAG + b"R",
    b"ctorch\nSize\n" + DAG + b"\x85R", b"ccollections\nOrderedDict\n" + DAG + b"\x85R",
    b"(X\x07\0\0\0storage" + DAG + b"tQ", DAG + b".",
)  # fmt: skip
OPCODES = [one.code.encode("latin-1") for one in pickletools.opcodes if one.arg is None] + [
    b"h\x01", b"h\x05", b"q\x01", b"q\x05", b"K\x07", b"U\x01a", b"X\x01\0\0\0a", b"I1\n", b"i\n",
]  # fmt: skip
PUT_IN = (*OPCODES, *DAGS)
PICKLE = "archive/data.pkl"


class Command:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return (os.system, ("exit 77",))


class Evaluated:
    """Evaluates text when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (eval, ("__import__('os').abort()",))


def corpus() -> list[bytes]:
    """Honest files of all formats, and a few hostile ones."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)).half()
    shared = torch.randn(4, 6)
    state = OrderedDict(a=shared, b=shared.t(), c=shared[1:, 2:], d=torch.ones(2).bfloat16())
    arrays = {"a": np.ones((2, 3), np.float32), "f": np.asfortranarray(np.eye(3)), "n": np.int64(3)}
    held = [module, state, {"model": module, "epoch": 3, "names": {"x", "y"}}, arrays,
            {"state_dict": state, "args": Command()}, {"a": shared, "b": Evaluated()}]  # fmt: skip
    files = []
    for one in held:
        for zipped in (True, False):
            stream = io.BytesIO()
            torch.save(one, stream, _use_new_zipfile_serialization=zipped)
            files.append(stream.getvalue())
        files += [pickle.dumps(one, protocol=number) for number in range(6)]
    return files


def mutated(files: list[bytes], draw: random.Random) -> bytes:
    """One file with one to four damages; half of the zip files have them in their pickle."""
    content = draw.choice(files)
    if content.startswith(b"PK") and draw.random() < 0.6:
        return _in_zip(content, files, draw)
    return _damaged(content, files, draw)


def _in_zip(content: bytes, files: list[bytes], draw: random.Random) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(stream, "w") as new:
        for entry in old.infolist():
            data = old.read(entry)
            new.writestr(entry.filename, _damaged(data, files, draw) if entry.filename == PICKLE
                         else data)  # fmt: skip
    return stream.getvalue()


def _damaged(content: bytes, files: list[bytes], draw: random.Random) -> bytes:
    """One, two or four damages; 70 % of them keep to whole opcodes."""
    for _ in range(draw.choice((1, 1, 2, 4))):
        between = _between(content)
        whole = len(between) > 2 and draw.random() < 0.7
        at = draw.choice(between) if whole else draw.randrange(len(content) + 1)
        before, after = content[:at], content[at:]
        kind = draw.randrange(7)
        if kind == 0:
            new = draw.choice(OPCODES)[:1] if whole else bytes([draw.randrange(256)])
            content = before + new + after[1:]
        elif kind == 1:
            content = before + b"".join(draw.choices(PUT_IN, k=draw.choice((1, 1, 2)))) + after
        elif kind == 2:
            content = before + draw.choice(GLOBALS) + draw.choice((b"", b"0", b")R")) + after
        elif kind == 3:
            content = before + draw.choice(HUGE) + draw.choice((b"", b"0")) + after
        elif kind == 4:
            content = before + _cut(draw.choice(files), draw, whole) + after
        elif kind == 5:
            content = before + after[draw.choice((1, 2, len(after))) :]
            if whole:
                content = before + content[max(at, draw.choice(between)) :]
        else:
            content = before + _cut(content, draw, whole) * draw.choice((1, 2, 100)) + after
    return content


def _cut(content: bytes, draw: random.Random, whole: bool) -> bytes:
    """Some bytes of it: opcodes that follow each other, or any."""
    between = _between(content)
    if whole and len(between) > 9:
        first = draw.randrange(len(between) - 8)
        return content[between[first] : between[first + draw.randint(1, 8)]]
    start = draw.randrange(len(content) + 1)
    return content[start : start + draw.randint(1, 200)]


@lru_cache(256)
def _between(content: bytes) -> tuple[int, ...]:
    """Where opcodes begin, as far as the content is a pickle."""
    found: list[int] = []
    stream = io.BytesIO(content)
    with suppress(Exception):
        # A legacy file has several pickles.
        while stream.tell() < len(content):
            found += [position for _, _, position in pickletools.genops(stream) if position]
    return tuple(found)


@dataclass
class Sentinel:
    """Sees what Python is asked to do while `watching`; `file` may be opened."""

    file: str = ""
    watching: bool = False
    seen: list[str] = field(default_factory=list)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.watching or not event.startswith(WATCHED):
            return
        if event == "open" and str(arguments[0]) == self.file:
            return
        self.seen.append(f"{event} {str(arguments)[:100]}")


@dataclass
class Tally:
    """What became of the files."""

    read: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    slowest: float = 0.0
    slowest_bytes: int = 0


def _alarm(*_: object) -> None:
    raise KeyboardInterrupt


def read_one(file: Path, content: bytes, sentinel: Sentinel, tally: Tally) -> None:
    """Open one file and read its tensors, with the sentinel watching."""
    file.write_bytes(content)
    start = time.perf_counter()
    signal.alarm(LONGEST)
    sentinel.watching = True
    try:
        checkpoint = open_torch([file], str(file))
        for name in checkpoint.specs:
            checkpoint.read(name)
        tally.read += 1
    except MagmergeError as error:
        tally.reasons[_reason(error)] += 1
    except KeyboardInterrupt:
        tally.failures.append(f"hang: {content[:80]!r}")
    except BaseException as error:
        tally.failures.append(f"{type(error).__name__}: {error}: {content[:80]!r}")
    finally:
        sentinel.watching = False
        signal.alarm(0)
    spent = time.perf_counter() - start
    if spent > tally.slowest:
        tally.slowest, tally.slowest_bytes = spent, len(content)


def _reason(error: MagmergeError) -> str:
    """The problem without the file's own names and numbers."""
    text = error.problem.removeprefix("refused: ")
    if text.startswith("reading it would run code"):
        return "reading it would run code"
    parts = text.split(": ")
    if parts[0] == "it cannot be read":
        return ": ".join(parts[:2])
    words = [word if word.isalpha() else "*" for word in parts[0].split()]
    return " ".join(words[:4])


def fuzz(count: int, seed: int, folder: Path) -> tuple[Tally, Sentinel, int]:
    """Read `count` mutated files; the tally, what was seen, and the growth of memory in bytes."""
    draw, files, tally, sentinel = random.Random(seed), corpus(), Tally(), Sentinel()
    file = folder / "mutated.pt"
    sentinel.file = str(file)
    sys.addaudithook(sentinel)
    signal.signal(signal.SIGALRM, _alarm)
    # What is imported at first use is imported now: zipfile has its own old alphabet.
    codecs.lookup("cp437")
    for content in (*files, b"", b"\xff"):
        read_one(file, content, sentinel, Tally())
    sentinel.seen.clear()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for done in range(1, count + 1):
        read_one(file, mutated(files, draw), sentinel, tally)
        if done % 10_000 == 0:
            print(f"{done}/{count}", file=sys.stderr, flush=True)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return tally, sentinel, grown * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        tally, sentinel, grown = fuzz(given.files, given.seed, Path(folder))
    document = {
        "files": given.files,
        "seed": given.seed,
        "seconds": round(time.perf_counter() - start, 1),
        "read": tally.read,
        "refused": sum(tally.reasons.values()),
        "reasons": dict(tally.reasons.most_common()),
        "failures": len(tally.failures),
        "executed": len(sentinel.seen),
        "slowest_seconds": round(tally.slowest, 4),
        "slowest_bytes": tally.slowest_bytes,
        "memory_grown_bytes": grown,
        "torch": torch.__version__,
        "python": sys.version.split()[0],
    }
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(document) + "\n")
    print(json.dumps(document, indent=1))
    for one in (*sentinel.seen[:10], *tally.failures[:10]):
        print(one)
    sys.exit(bool(sentinel.seen or tally.failures))


if __name__ == "__main__":
    main()
