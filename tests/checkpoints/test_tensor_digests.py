from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from magmerge.checkpoints import tensor_digests
from magmerge.checkpoints.digests import DigestMemory, stamp
from magmerge.checkpoints.input_digests import is_as_recorded, what_is_left
from magmerge.checkpoints.safetensors import SafetensorsCheckpoint
from magmerge.checkpoints.tensor_digests import LEAF, TensorTree, TornLeaves, tensor_digest, watched
from tests.reference_digest import reference_digest

SIZE = 2 * LEAF + 12_345


def noise(size: int) -> memoryview:
    return memoryview(np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    tensors = {
        "b": torch.randn(300, 517).bfloat16(),
        "a": torch.randn(LEAF // 4),
        "none": torch.zeros(0, 3),
        "one": torch.ones(()),
        "bits": torch.tensor([True, False, True]),
    }
    save_file(tensors, tmp_path / "m.safetensors", metadata={"format": "pt"})
    return tmp_path / "m.safetensors"


def digest_of(file: Path, read: list[tuple[str, int, int]]) -> tuple[str, int]:
    """The digest after these reads, and how many tensors had to be read for it."""
    checkpoint = SafetensorsCheckpoint([file], str(file))
    known = watched({file: stamp(file)})[file]
    for name, start, stop in read:
        checkpoint.read_part(name, start, stop)
    calls = list(what_is_left(file, known))
    for call in calls:
        call()
    return known.digest(), len(calls)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)), max_size=12),
    st.sampled_from([1 << 24, 2 * LEAF, 1000]),
)
def test_any_reads_in_any_order_give_the_digest_of_the_bytes(
    cuts: list[tuple[int, int]], room: int
) -> None:
    data, tree, torn = noise(SIZE), TensorTree(SIZE), TornLeaves(room)
    for one, other in cuts:
        start, stop = min(one, other), max(one, other)
        tree.add(start, data[start:stop], torn)
    for leaf in tree.left():
        begin, end = tree.span(leaf)
        tree.add(begin, data[begin:end], torn)
    assert tree.digest() == tensor_digest(data)


@given(st.permutations(range(0, SIZE, 50_000)))
@settings(deadline=None, max_examples=20)
def test_pieces_in_any_order_leave_nothing_to_be_read(starts: list[int]) -> None:
    data, tree, torn = noise(SIZE), TensorTree(SIZE), TornLeaves()
    for start in starts:
        tree.add(start, data[start : start + 50_000], torn)
    assert tree.left() == []
    assert not torn.parts
    assert tree.digest() == tensor_digest(data)


def test_parts_of_leaves_are_kept_in_bounded_memory() -> None:
    torn, data = TornLeaves(10_000), noise(1000)
    for leaf in range(100):
        torn.join(tensor_digests.Torn(TensorTree(LEAF), leaf), 0, data, LEAF)
    assert sum(len(part) for parts in torn.parts.values() for _, part in parts) <= 10_000


def test_threads_may_read_the_same_at_the_same_time() -> None:
    data, tree, torn = noise(40 * LEAF + 7), TensorTree(40 * LEAF + 7), TornLeaves()

    def read(step: int) -> None:
        for start in range(0, len(data), step):
            tree.add(start, data[start : start + step], torn)

    threads = [threading.Thread(target=read, args=(LEAF + 1000 * i,)) for i in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert tree.digest() == tensor_digest(data)


def test_a_files_digest_is_that_of_its_list_of_tensors(file: Path) -> None:
    expected = reference_digest(file)
    assert digest_of(file, []) == (expected, 4)
    entries = [("b", i, min(i + 9999, 300 * 517)) for i in range(0, 300 * 517, 9999)]
    rest = [("a", 0, LEAF // 4), ("one", 0, 1), ("bits", 0, 3)]
    assert digest_of(file, [*reversed(entries), *rest]) == (expected, 0)
    assert is_as_recorded(file, expected, DigestMemory())


def test_the_order_of_tensors_does_not_matter_but_names_shapes_and_formats_do(
    tmp_path: Path,
) -> None:
    one, two = torch.arange(6.0), torch.arange(6.0).flip(0)
    variants = [
        {"x": one, "y": two},
        {"x": two, "y": one},
        {"x": one, "z": two},
        {"x": one.view(2, 3), "y": two},
        {"x": one.view(torch.int32), "y": two},
    ]
    digests = []
    for number, tensors in enumerate(variants):
        save_file(tensors, tmp_path / f"{number}.safetensors")
        digests.append(digest_of(tmp_path / f"{number}.safetensors", [])[0])
    assert len(set(digests)) == len(variants)


def test_entries_of_a_header_that_may_decide_a_result_count(tmp_path: Path) -> None:
    file = tmp_path / "lora.safetensors"
    seen = set()
    for entries in ({"format": "pt"}, {"format": "np"}, {"rank": "4"}, {"rank": "8"}):
        save_file({"a": torch.ones(2)}, file, metadata=entries)
        assert digest_of(file, [])[0] == reference_digest(file)
        seen.add(reference_digest(file))
    assert len(seen) == 3


def test_nothing_is_digested_that_is_not_watched(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_digests, "blake3", lambda *_: pytest.fail("it was digested"))
    checkpoint = SafetensorsCheckpoint([file], str(file))
    for name in checkpoint.specs:
        checkpoint.read(name)


def test_a_file_that_is_opened_twice_is_digested_once(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (SafetensorsCheckpoint([file], str(file)) for _ in range(2))
    known = watched({file: stamp(file)})[file]
    for name in first.specs:
        first.read(name)
    assert not list(what_is_left(file, known))
    monkeypatch.setattr(tensor_digests, "blake3", lambda *_: pytest.fail("it was digested again"))
    for name in second.specs:
        second.read(name)
