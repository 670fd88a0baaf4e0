"""Data sets as their authors publish them: idx files, lists, names with a split, pairs."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from magmerge.core.errors import MagmergeError, UnknownNameError
from magmerge.data.idx import MOST, read_idx
from magmerge.data.inputs import prepare
from magmerge.data.rows import DataError, Preparation, SampleDraw
from magmerge.data.sources import has_splits, read_samples
from tests.data.models import save_tokenizer
from tests.evaluation.suites.clips import idx_bytes, save_idx

PIXELS = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5)


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_hold_what_was_written(tmp_path: Path, packed: bool) -> None:
    path, _ = save_idx(tmp_path, "train", PIXELS, [7, 0, 9], packed=packed)
    rows = read_samples(path, SampleDraw(name="a", samples=None, label_field="label"))
    assert rows.labels == (7, 0, 9)
    assert all(
        np.array_equal(np.asarray(image), wanted)
        for image, wanted in zip(rows.content.values, PIXELS, strict=True)
    )
    assert read_samples(path, SampleDraw(name="a", samples=2)).labels is None
    assert not has_splits(path)
    options = Preparation(image_size=4, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert prepare(rows, None, options)[0].args[0].shape == (3, 3, 4, 4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no idx file of bytes in 3 dimensions"),
        (b"\0\0\x08\x01" + bytes(8), "no idx file of bytes in 3 dimensions"),
        (b"\0\0\x0d\x03" + bytes(12), "no idx file of bytes in 3 dimensions"),
        (b"\0\0\x08\x03\0\0", "its header is cut off"),
        (b"\0\0\x08\x03" + bytes(12), r"claims the shape \[0, 0, 0\]"),
        (b"\0\0\x08\x03" + b"\xff" * 12, r"claims the shape \[4294967295"),
        (idx_bytes(PIXELS)[:-1], "claims 60 bytes, and 59 are there"),
        (idx_bytes(PIXELS) + b"x", "claims 60 bytes, and more are there"),
    ],
    ids=["empty", "labels", "floats", "cut", "zero", "huge", "short", "long"],
)
def test_broken_idx_files(tmp_path: Path, content: bytes, message: str) -> None:
    for name, written in (("train", content), ("train", gzip.compress(content))):
        path = tmp_path / f"{name}-images-idx3-ubyte{'.gz' if written is not content else ''}"
        path.write_bytes(written)
        with pytest.raises(DataError, match=message):
            read_samples(path, SampleDraw(name="a", samples=1))


def test_no_more_is_unpacked_than_the_header_claims(tmp_path: Path) -> None:
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(idx_bytes(PIXELS) + bytes(1 << 26)))
    assert path.stat().st_size < 1 << 17
    with pytest.raises(DataError, match="and more are there"):
        read_idx(path, 3)
    sizes = np.asarray([MOST, 1, 2], ">u4").tobytes()
    path.write_bytes(gzip.compress(b"\0\0\x08\x03" + sizes))
    with pytest.raises(DataError, match="claims the shape"):
        read_idx(path, 3)


def test_labels_must_be_there_and_fit(tmp_path: Path) -> None:
    images, labels = save_idx(tmp_path, "train", PIXELS, [1, 2])
    with pytest.raises(DataError, match=r"it has 2 labels, and .* has 3 images"):
        read_samples(images, SampleDraw(name="a", samples=None, label_field="label"))
    labels.unlink()
    assert len(read_samples(images, SampleDraw(name="a", samples=None))) == 3
    with pytest.raises(DataError, match="the file of its labels is not there"):
        read_samples(images, SampleDraw(name="a", samples=None, label_field="label"))


@given(
    content=st.binary(max_size=80)
    | st.builds(
        lambda head, sizes, rest: head + np.asarray(sizes, ">u4").tobytes() + rest,
        st.just(b"\0\0\x08\x03"),
        st.tuples(*[st.integers(0, 2**32 - 1) | st.integers(0, 4)] * 3),
        st.binary(max_size=70),
    ),
    packed=st.booleans(),
    cut=st.integers(0, 40),
)
@example(content=idx_bytes(PIXELS), packed=True, cut=9)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_images_or_an_error(
    tmp_path: Path, content: bytes, packed: bool, cut: int
) -> None:
    path = tmp_path / f"train-images-idx3-ubyte{'.gz' if packed else ''}"
    written = gzip.compress(content) if packed else content
    path.write_bytes(written[: max(len(written) - cut, 0)] if packed else content)
    try:
        found = read_idx(path, 3)
    except MagmergeError as error:
        assert error.remedy
    else:
        assert found.tobytes() == content[16:]


def save_list(folder: Path, lines: list[Any]) -> Path:
    for number in range(3):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(folder / f"{number}.png")
    path = folder / "a.images"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def test_lists_of_images(tmp_path: Path) -> None:
    lines = [{"image": "2.png", "label": 5}, {"image": str(tmp_path / "0.png"), "label": 6}]
    path = save_list(tmp_path, lines)
    rows = read_samples(path, SampleDraw(name="a", samples=None, label_field="label"))
    assert rows.content.values == (tmp_path / "2.png", tmp_path / "0.png")
    assert rows.labels == (5, 6)
    assert not has_splits(path)
    for wrong in ({"label": 1}, {"image": ""}, {"image": 3}, {"image": "a\0b"}):
        with pytest.raises(DataError, match="line 1 names no image"):
            read_samples(save_list(tmp_path, [wrong]), SampleDraw(name="a"))
    options = Preparation(image_size=4, mean=(0.5,) * 3, std=(0.5,) * 3)
    absent = read_samples(
        save_list(tmp_path, [{"image": "9.png"}]), SampleDraw(name="a", samples=1)
    )
    with pytest.raises(DataError, match="no image that Pillow reads"):
        prepare(absent, None, options)


def test_broken_matrices(tmp_path: Path) -> None:
    scipy = pytest.importorskip("scipy.io")
    path = tmp_path / "train_32x32.mat"
    good = np.zeros((2, 2, 3, 4), np.uint8)
    for content in (
        {"X": good},
        {"X": good, "y": np.zeros(3)},
        {"X": good[:, :, :2], "y": np.zeros(4, int)},
        {"X": good.astype(float), "y": np.zeros(4, int)},
        {"X": good, "y": np.array([1, 2, 3, 11])},
    ):
        scipy.savemat(path, content)
        with pytest.raises(DataError, match=r"X is|no X and y|no digits"):
            read_samples(path, SampleDraw(name="a"))
    for broken in (b"", b"MATLAB 5.0 MAT-file" + bytes(200), b"\xff" * 300):
        path.write_bytes(broken)
        with pytest.raises(DataError, match="it holds no X and y"):
            read_samples(path, SampleDraw(name="a"))


def test_names_of_data_sets_say_configuration_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    asked = []

    def load(name: str, *config: str, split: str) -> Any:
        asked.append((name, *config, split))
        return datasets.Dataset.from_dict({"text": ["a", "b"]})

    monkeypatch.setattr(datasets, "load_dataset", load)
    for source in ("a/b", "a/b:c", "a/b:c:dev", "a/b::train[:80%]"):
        read_samples(source, SampleDraw(name="a", samples=1))
    assert asked == [
        ("a/b", "train"), ("a/b", "c", "train"), ("a/b", "c", "dev"), ("a/b", "train[:80%]"),
    ]  # fmt: skip
    assert has_splits("a/b:c")
    assert not has_splits("a/b:c:dev")
    for source in ("a/b:c:test", "a/b::test[:10]"):
        with pytest.raises(DataError, match="names the test split"):
            read_samples(source, SampleDraw(name="a", samples=1))
        read_samples(source, SampleDraw(name="a", samples=1, allow_test=True))
    with pytest.raises(DataError, match="it says the split 'dev', and 'train' is wanted"):
        read_samples("a/b:c:dev", SampleDraw(name="a", samples=1, split="train"))


def test_pairs_of_texts(tmp_path: Path) -> None:
    rows = [
        {"one": "a b", "two": "c", "label": 1},
        {"one": "good", "two": "", "label": 0},
        {"one": "", "two": "bad", "label": 0},
        {"one": "", "two": " ", "label": 1},
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    options = {"name": "a", "samples": None, "field": "one", "label_field": "label"}
    found = read_samples(path, SampleDraw(pair_field="two", **options))
    assert (found.content.values, found.content.pairs) == (("a b", "good", ""), ("c", "", "bad"))
    assert found.labels == (1, 0, 0)
    assert "1 rows without text" in found.notes[0]
    assert read_samples(path, SampleDraw(**options)).content.pairs is None
    (inputs,) = prepare(found, save_tokenizer(tmp_path / "model"))
    ids = inputs.kwargs["input_ids"].tolist()
    assert ids == [[2, 4, 5, 3, 6, 3], [2, 14, 3, 3, 0, 0], [2, 3, 15, 3, 0, 0]]
    assert inputs.rows == 3
    with pytest.raises(UnknownNameError, match="no column 'tow'"):
        read_samples(path, SampleDraw(pair_field="tow", **options))
    with pytest.raises(DataError, match="column 'label' holds no text"):
        read_samples(path, SampleDraw(pair_field="label", name="a", samples=None, field="one"))
