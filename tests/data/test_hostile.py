"""Broken and hostile files: one clear error each, and no other exception whatever the bytes."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from magmerge.core.errors import MagmergeError
from magmerge.data.inputs import prepare
from magmerge.data.rows import DataError, Preparation, SampleDraw
from magmerge.data.sources import read_samples

PLAIN = Preparation(image_size=4, mean=(0.5,) * 3, std=(0.5,) * 3)
GOOD = b'{"text": "a"}\n'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", GOOD + b"{oops\n", "line 2 is not JSON"),
        ("a.jsonl", GOOD + b"[1]\n", "line 2 holds a list"),
        ("a.jsonl", b"[\n" + GOOD, "line 1 is not JSON"),
        ("a.jsonl", GOOD + b'{"text": "\xff"}\n', "line 2 is not UTF-8"),
        ("a.jsonl", GOOD + b'{"text": "\0"}\n', "line 2 holds a NUL"),
        ("a.jsonl", GOOD + b'{"text": "\\ud800"}\n', "line 2.* surrogate"),
        ("a.jsonl", GOOD + b'{"n": ' + b"[" * 99999 + b"\n", "line 2 is not JSON"),
        ("a.jsonl", GOOD + b'{"n": ' + b"1" * 9999 + b"}\n", "line 2 is not JSON"),
        ("a.jsonl", '{"text": "a"}\n'.encode("utf-16"), "line 1 is not UTF-8"),
        ("a.jsonl", b"", "there are 0 rows"),
        ("a.csv", b"", "there are 0 rows"),
        ("a.txt", b"", "there are 0 rows"),
        ("a.csv", b"text\n", "there are 0 rows"),
        ("a.csv", b"text,b\na\n", "line 2 has 1 fields, the header 2"),
        ("a.csv", b"text,text\na,b\n", "two columns are named 'text'"),
        ("a.csv", b'text\n"' + b"a" * 200_000 + b'"\n', "line 2 is not CSV: field larger"),
        ("a.csv", b'text\n"a', "line 2 is not CSV"),
        ("a.tsv", b"text\n\xe4\n", "line 2 is not UTF-8"),
        ("a.txt", b"a\n\0\n", "line 2 holds a NUL"),
        ("a.npy", b"", "refused"),
        ("a.npy", b"\x93NUMPY\x01\x00\xff\xff", "refused"),
        ("a.safetensors", b"", "no safetensors file"),
        ("a.safetensors", b"\xff" * 64, "no safetensors file"),
    ],
)  # fmt: skip
def test_broken_files_name_the_place(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_samples(tmp_path / name, SampleDraw(name="a", samples=2))
    assert caught.value.remedy


def test_a_line_without_end_is_not_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from magmerge.data import text_tables

    monkeypatch.setattr(text_tables, "LIMIT", 1 << 20)
    for name in ("a.jsonl", "a.csv", "a.txt"):
        (tmp_path / name).write_bytes(b"text\n" + b"a" * (1 << 21))
        with pytest.raises(DataError, match="line 2 is longer than 1 MiB"):
            read_samples(tmp_path / name, SampleDraw(name="a"))


@pytest.mark.parametrize(
    "array",
    [np.array([{}], dtype=object), np.array(["a"]), np.array(3.0), np.zeros(2, dtype="f4,i4"),
     np.array(["2020-01-01"], dtype="datetime64[D]"), np.ones(2, dtype=complex)],
    ids=lambda array: str(array.dtype),
)  # fmt: skip
def test_arrays_that_are_no_numbers_are_refused(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(DataError, match="refused"):
        read_samples(tmp_path / "a.npy", SampleDraw(name="a", samples=1))


def test_images_that_are_bombs_or_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "pets"
    folder.mkdir()
    Image.new("RGB", (40, 40)).save(folder / "a.png")
    rows = read_samples(folder, SampleDraw(name="a", samples=1))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DataError, match=r"refused.*decompression bomb"):
        prepare(rows, None, PLAIN)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match=r"refused.*decompression bomb"):
        prepare(rows, None, PLAIN)
    Image.new("L", (1, 90)).save(folder / "a.png")
    with pytest.raises(DataError, match=r"refused: 1 by 90 pixels would become 4 by 360"):
        prepare(rows, None, PLAIN)
    (folder / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(DataError, match="no image"):
        prepare(rows, None, PLAIN)


LINES = st.lists(
    st.one_of(
        st.binary(max_size=40),
        st.text(max_size=20).map(lambda text: json.dumps({"text": text}).encode()),
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.text(max_size=5),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=4), inner),
            max_leaves=5,
        ).map(lambda value: json.dumps(value).encode()),
    ),
    max_size=6,
).map(b"\n".join)
QUOTED = st.text(alphabet='a,;"\t\n\r\0é1', max_size=60).map(str.encode)


def survives(path: Path, content: bytes) -> None:
    """Reads and prepares what can be; nothing but MagmergeError may be raised."""
    path.write_bytes(content)
    for samples, label in ((1, None), (None, "label"), (3, None)):
        try:
            rows = read_samples(path, SampleDraw(name="a", samples=samples, label_field=label))
            assert len(rows) == (samples or len(rows))
        except MagmergeError as error:
            assert str(error)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(["a.jsonl", "a.csv", "a.tsv", "a.txt"]), content=LINES | QUOTED)
def test_any_text_file(tmp_path: Path, name: str, content: bytes) -> None:
    survives(tmp_path / name, content)


def npy(header: str, rest: bytes) -> bytes:
    encoded = header.encode("latin1", "replace") + b"\n"
    return b"\x93NUMPY\x01\x00" + len(encoded).to_bytes(2, "little") + encoded + rest


HEADERS = st.builds(
    "{{'descr': {!r}, 'fortran_order': {}, 'shape': {}, }}".format,
    st.sampled_from(["<f4", "|O", ">i8", "<U3", "|b1", "<m8", "f99", "<f2", "|V0"]),
    st.sampled_from([True, False, 3]),
    st.sampled_from(["()", "(2,)", "(0,)", "(-1,)", "(1, 2)", "(10**20,)", "'x'", f"({2**62},)"]),
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.one_of(st.binary(max_size=200), st.builds(npy, HEADERS, st.binary(max_size=32))))
def test_any_array_file(tmp_path: Path, content: bytes) -> None:
    survives(tmp_path / "a.npy", content)


def tensors(header: object, rest: bytes) -> bytes:
    encoded = json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + rest


ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "I64", "BF16", "F8_E4M3", "BOOL", "X"]),
        "shape": st.lists(st.integers(-1, 3), max_size=3),
        "data_offsets": st.tuples(st.integers(0, 24), st.integers(0, 24)),
    }
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.binary(max_size=100)
    | st.builds(
        tensors,
        st.dictionaries(st.sampled_from(["inputs", "labels", "x"]), ENTRY),
        st.binary(max_size=24),
    )
)
def test_any_tensor_file(tmp_path: Path, content: bytes) -> None:
    survives(tmp_path / "a.safetensors", content)


def picture(kind: str) -> bytes:
    from io import BytesIO

    stream = BytesIO()
    Image.effect_noise((16, 16), 50).convert("RGB").save(stream, kind)
    return stream.getvalue()


PICTURES = {kind: picture(kind) for kind in ("png", "jpeg", "webp")}


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(sorted(PICTURES)),
    cut=st.integers(0, 400),
    place=st.integers(0, 399),
    byte=st.integers(0, 255),
)
def test_any_image_file(tmp_path: Path, kind: str, cut: int, place: int, byte: int) -> None:
    content = bytearray(PICTURES[kind][: cut or None])
    content[place % len(content)] = byte
    folder = tmp_path / "pets"
    folder.mkdir(exist_ok=True)
    (folder / "a.png").write_bytes(bytes(content))
    rows = read_samples(folder, SampleDraw(name="a", samples=1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            assert prepare(rows, None, PLAIN)[0].args[0].shape == (1, 3, 4, 4)
        except MagmergeError as error:
            assert str(error)
