"""Files of a few bytes that ask for any amount, and what reading each costs.

    python -m tests.checkpoints.pickles.bombs FOLDER NAME...

Each is read by a process of its own, forked from one that has read nothing: what one takes does not
hide in what another one took.
"""

from __future__ import annotations

import json
import os
import pickle
import resource
import signal
import struct
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from magmerge.core.errors import CheckpointError
from tests.checkpoints.pickles import load_tensors

SECONDS, MEMORY = 15, 6 << 30
PROTO = b"\x80\x04"
HUNDRED_GB = 100 * 10**9
ENCODE = b"c_codecs\nencode\n"
MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, 2)


def text(value: bytes) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value


def doubled(depth: int, inner: bytes = b"K\x01") -> bytes:
    """The same without a memo."""
    return inner + b"2\x86" * depth


def nested(depth: int) -> bytes:
    """Tuples in each other, each holding the one before twice: 2^depth leaves."""
    return b"K\x01" + b"q\x01h\x01\x86" * depth


def word(value: int) -> bytes:
    return struct.pack("<I", value)


def named(name: str) -> bytes:
    module, _, last = name.rpartition(".")
    return f"c{module}\n{last}\n".encode()


def module_of(parameters: bytes, modules: bytes = b"}") -> bytes:
    """A whole module with these opcodes for its parts."""
    parts = text(b"_parameters") + parameters + text(b"_buffers") + b"}"
    return named("a.M") + b")\x81}(" + parts + text(b"_modules") + modules + b"ub"


def modules_with(parameters: bytes, count: int) -> bytes:
    """One module under many names, so that all share their parameters; memo 5 is a number."""
    number = (named("numpy.core.multiarray.scalar") + named("numpy.dtype") + text(b"f4") + b"\x85R"
              + b"C\x04abcd\x86R")  # fmt: skip
    inner = b"}(" + b"".join(text(b"%d" % i) + b"h\x07" for i in range(count)) + b"u"
    return (PROTO + number + b"q\x050" + module_of(parameters) + b"q\x070"
            + module_of(b"}", inner) + b".")  # fmt: skip


def again(call: bytes, count: int) -> bytes:
    """One call, again and again, with all that it gives kept; memo 1 is a million times None."""
    return PROTO + b"(" + named("a.b") + b"N" * 1_000_000 + b"tq\x010" + b"(" + call * count + b"t."


def storage_of_bytes(size: int) -> bytes:
    return MAGIC + pickle.dumps(1001, 2) + pickle.dumps({}, 2) + (
        b"\x80\x03B" + word(size) + b"z" * size + b"."
    ) + pickle.dumps([], 2)  # fmt: skip


def loaded(content: bytes, count: int) -> bytes:
    kept = b"(" + b"B" + word(len(content)) + content + b"q\x000"
    return (
        b"\x80\x03"
        + kept
        + (named("torch.storage._load_from_bytes") + b"h\x00\x85R") * count
        + b"t."
    )


BOMBS = {
    "tuples that take for ever to hash, as a key": PROTO + b"}" + nested(80) + b"K\x01s.",
    "and in a set": PROTO + b"\x8f(" + nested(80) + b"\x90.",
    "lists in each other": PROTO + b"]" * 5000 + b"a" * 4999 + b".",
    "a list in itself": PROTO + b"]q\x01h\x01a.",
    "a mapping in itself": PROTO + b"}q\x01" + text(b"model") + b"h\x01s.",
    "100 GB of bytes": PROTO + b"\x8e" + struct.pack("<Q", HUNDRED_GB) + b"ab.",
    "100 GB of text": PROTO + b"\x8d" + struct.pack("<Q", HUNDRED_GB) + b"ab.",
    "100 GB of bytearray": PROTO + b"\x96" + struct.pack("<Q", HUNDRED_GB) + b"ab.",
    "an integer of 2 GB": PROTO + b"\x8b\xff\xff\xff\x7fab.",
    "an integer of 20 kB": PROTO + b"\x8b" + struct.pack("<i", 20_000) + b"\x01" * 20_000 + b".",
    "an integer of 20,000 digits": b"L" + b"9" * 20_000 + b"L\n.",
    "a memo index beyond 2^32": b"K\x01p4294967297\n0g4294967297\n.",
    "a memo index of 2^32 - 1": PROTO + b"}r\xff\xff\xff\xff0j\xff\xff\xff\xff.",
    "bytearray(10**11)": PROTO + b"cbuiltins\nbytearray\n\x8a\x05\x00\xe8vH\x17\x85R.",
    "range(10**11)": PROTO + b"]cbuiltins\nrange\n\x8a\x05\x00\xe8vH\x17\x85Ra.",
    "text encoded again and again": PROTO + text(b"x" * 100_000) + b"q\x01" + b"0" + ENCODE
    + b"q\x02" + b"0h\x02h\x01X\x06\x00\x00\x00latin1\x86R" * 3000 + b".",
    "sets made again and again": PROTO + b"(" + b"K\x01" * 100_000 + b"lq\x01"
    + b"cbuiltins\nset\nq\x02" + b"0h\x02h\x01\x85R" * 3000 + b".",
    "marks without end": PROTO + b"(" * 2_000_000,
    "mappings without end": PROTO + b"}" * 2_000_000 + b".",
    "calls in calls": PROTO + b"ctorch._tensor\n_rebuild_from_type_v2\nq\x01" + b"h\x01" * 3000
    + b"NN)Nt" + b"." ,
    "a pickle that never stops": PROTO + b"N0" * 1000,
    "nothing but a stop": b".",
    "an extension": PROTO + b"\x82\x01.",
    "a buffer outside": b"\x80\x05\x97.",
    "a persistent id": PROTO + b"K\x01Q.",
    "a persistent name": b"Pname\n.",
    "tuples in tuples as a codec": PROTO + ENCODE + text(b"x") + doubled(60) + b"\x86R.",
    "and one of bytes": PROTO + named("builtins.bytes") + text(b"x") + doubled(60) + b"\x86R.",
    "and as a version": MAGIC + PROTO + doubled(60) + b".",
    "and as a storage's key": MAGIC + pickle.dumps(1001, 2) + pickle.dumps({}, 2) * 2
    + PROTO + b"](" + doubled(60) + b"e." + b"\0" * 8,
    "and as axes": PROTO + named("numpy.core.numeric._frombuffer") + b"(C\x04abcd"
    + named("numpy.dtype") + text(b"f4") + b"\x85RK\x01K\x01\x86" + text(b"K")
    + doubled(60, b"M\x00\x03") + doubled(60, b"M\x00\x03") + b"\x86tR.",
    "arguments copied by keywords": again(named("a.b") + b"h\x01}\x92", 1000),
    "arguments copied by a reconstructor": again(named("copyreg._reconstructor") + b"h\x01R", 1000),
    "arguments copied by a class": again(named("copyreg.__newobj__") + b"h\x01R", 1000),
    "arguments looked through": again(named("collections.OrderedDict") + b"h\x01R", 10_000),
    "a codec of a million letters": PROTO + text(b"A" * 1_000_000) + b"q\x01" + b"("
    + (ENCODE + b"h\x01h\x01\x86R0") * 100_000 + b"t.",
    "a dtype of a million letters": PROTO + text(b"<" * 1_000_000 + b"f") + b"q\x01" + b"("
    + (named("numpy.dtype") + b"h\x01\x85R0") * 100_000 + b"t.",
    "a name of 300,000 parts": PROTO + b"ca" + b".a" * 300_000 + b"\nb\n.",
    "one storage's bytes again and again": loaded(storage_of_bytes(2_000_000), 1000),
    "parameters in many modules": modules_with(
        b"}(" + b"".join(text(b"p%d" % i) + b"h\x05" for i in range(1000)) + b"u", 20_000),
    "parameters that are none in many": modules_with(
        b"}(" + b"".join(text(b"p%d" % i) + b"N" for i in range(100_000)) + b"u", 20_000),
    "a long name in many modules": modules_with(b"}" + text(b"p" * 1_000_000) + b"h\x05s", 2000),
    "names that are long together": modules_with(b"}" + text(b"p" * 4000) + b"h\x05s", 190_000),
    "one tensor under many names": PROTO + named("torch.Size") + b")R0"
    + modules_with(b"}", 0)[2:-1] + b"0}("
    + b"".join(text(b"%d" % i) + b"h\x05" for i in range(300_000)) + b"u.",
    "numbers of objects without end": PROTO + b"N" + b"\x94" * 9_000_000 + b".",
}  # fmt: skip


def read(file: Path) -> dict[str, object]:
    """The message, the processor's seconds and the growth of memory in bytes of one file."""
    start, before = time.process_time(), peak()
    try:
        load_tensors(file)
        told = "read"
    except CheckpointError as error:
        told = str(error)
    return {"told": told, "seconds": time.process_time() - start, "grown": peak() - before}


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(folder: Path, names: Iterable[str]) -> None:
    import torch

    # What is made at first use is made now.
    torch.save({"a": torch.ones(2)}, folder / "m.pt")
    load_tensors(folder / "m.pt")
    for name in names:
        (folder / "m.pt").write_bytes(BOMBS[name])
        child = os.fork()
        if child == 0:
            # A hang, or memory without end, ends the process before it tells anything.
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            with suppress(MemoryError):
                (folder / f"{name}.json").write_text(json.dumps(read(folder / "m.pt")))
            os._exit(0)
        os.waitpid(child, 0)


if __name__ == "__main__":
    measure(Path(sys.argv[1]), sys.argv[2:])
