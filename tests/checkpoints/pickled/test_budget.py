"""A few bytes that ask for any amount: refused soon, and with little memory."""

from __future__ import annotations

import io
import pickle
import struct
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from magmerge.checkpoints.pickled.budget import Budget
from magmerge.checkpoints.pickled.machine import Machine
from magmerge.checkpoints.pickled.refusals import RefusedError
from magmerge.checkpoints.torch_pickle import load_tensors
from magmerge.errors import CheckpointError

PROTO = b"\x80\x04"
HUNDRED_GB = 100 * 10**9
ENCODE = b"c_codecs\nencode\n"


def text(value: bytes) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value


def nested(depth: int) -> bytes:
    """Tuples in each other, each holding the one before twice: 2^depth leaves."""
    return b"K\x01" + b"q\x01h\x01\x86" * depth


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
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_at_once(tmp_path: Path, name: str) -> None:
    file = tmp_path / "m.pt"
    file.write_bytes(BOMBS[name])
    before, start = _peak(), time.perf_counter()
    with pytest.raises(CheckpointError, match="refused") as caught:
        load_tensors(file)
    assert time.perf_counter() - start < 8
    assert _peak() - before < 700e6
    assert len(str(caught.value)) < 2000


def _peak() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_pickles_within_pickles_end_somewhere(tmp_path: Path) -> None:
    stream = io.BytesIO()
    torch.save(torch.ones(2).untyped_storage(), stream, _use_new_zipfile_serialization=False)
    content = stream.getvalue()
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({}, 2)
    for _ in range(5):
        inner = b"\x8e" + struct.pack("<Q", len(content)) + content
        content = magic + PROTO + b"ctorch.storage\n_load_from_bytes\n" + inner + b"\x85R."
        content += pickle.dumps([], 2)
    (tmp_path / "m.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match="pickles within pickles"):
        load_tensors(tmp_path / "m.pt")


def test_modules_in_themselves_are_refused(tmp_path: Path) -> None:
    module = nn.Linear(2, 2)
    module._modules["again"] = module
    torch.save(module, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="without end"):
        load_tensors(tmp_path / "m.pt")


def test_modules_with_2_to_the_80_names_are_refused(tmp_path: Path) -> None:
    module: nn.Module = nn.Identity()
    for _ in range(80):
        outer = nn.Module()
        outer._modules = {"a": module, "b": module}
        module = outer
    torch.save(module, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="without end"):
        load_tensors(tmp_path / "m.pt")


def test_what_is_left_is_counted() -> None:
    budget = Budget(10)
    budget.make(entries=10)
    with pytest.raises(RefusedError, match="more than 1,000,000 objects"):
        budget.make(entries=10**8)
    with pytest.raises(RefusedError, match="more than 10,000,000 opcodes"):
        budget.step()
    with pytest.raises(RefusedError, match="grows without limit"):
        budget.convert(10**6)


def test_atoms_and_containers_come_out_as_pickle_makes_them() -> None:
    held = [1, -1, 2**40, True, None, 1.5, "ä", b"\x00\xff", (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4),
            {"a": [1, {2: ()}]}, {1, "b"}, frozenset({3})]  # fmt: skip
    held.append(held[-3])
    for protocol in range(6):
        content = pickle.dumps(held, protocol=protocol)
        found = Machine(io.BytesIO(content), Budget(len(content)), lambda _: None).load()
        assert found[:13] == held[:13]
        assert set(found[13]) == held[13]
        assert set(found[14]) == held[14]
        assert found[15] is found[12 if held[-1] is held[12] else 13]
