from __future__ import annotations

import numpy as np
import pytest
import torch

from magmerge.core import dtypes
from magmerge.core.errors import ParameterError


@pytest.mark.parametrize(
    ("text", "size"),
    [("5GB", 5 * 10**9), ("5GiB", 5 * 2**30), ("1.5 MB", 1_500_000), ("700", 700), ("2k", 2000)],
)
def test_sizes_have_the_units_they_say(text: str, size: int) -> None:
    assert dtypes.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "five", "5 potatoes", "-3GB", "0", "1e9x"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ParameterError):
        dtypes.parse_size(text)


@pytest.mark.parametrize(
    ("text", "code"),
    [("float32", "F32"), ("bf16", "BF16"), ("torch.float16", "F16"), ("BFLOAT16", "BF16")],
)
def test_formats_by_all_their_names(text: str, code: str) -> None:
    assert dtypes.parse_float_dtype(text) == code


def test_an_unknown_format_gets_a_suggestion() -> None:
    with pytest.raises(ParameterError, match="bfloat16"):
        dtypes.parse_float_dtype("bfloat61")


def test_codes_and_torch_agree() -> None:
    for code in ("BOOL", "U8", "I64", "F16", "BF16", "F32", "F64", "F8_E4M3"):
        assert dtypes.code_of(dtypes.torch_dtype(code)) == code
    assert dtypes.code_of(torch.complex128) is None


def test_sizes_are_spoken_in_three_digits() -> None:
    assert [dtypes.spoken_size(n) for n in (12, 90_900_000, 4.5e9, 7e12)] == [
        "12 B", "90.9 MB", "4.5 GB", "7 TB",
    ]  # fmt: skip


@pytest.mark.parametrize("code", sorted(dtypes.NUMPY))
def test_stored_bytes_are_the_same_numbers_in_numpy(code: str) -> None:
    tensor = torch.tensor([0, 1, 3, 7, 1]).to(dtypes.torch_dtype(code))
    found = dtypes.numpy_values(tensor.view(torch.uint8).numpy(), code)
    assert found.tolist() == tensor.tolist()


@pytest.mark.parametrize("code", sorted(dtypes.FLOATS))
def test_numbers_are_rounded_as_torch_rounds_them(code: str) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(4096, generator=generator).double()
    # Halves between neighbours of bfloat16, which go to the even one.
    ties = (1 + torch.arange(64, dtype=torch.float64) / 256) * 3
    values = torch.cat([values, ties, -ties, values * 1e-6, values * 1e3])
    expected = values.to(dtypes.torch_dtype(code)).double().numpy()
    assert np.array_equal(dtypes.rounded(values.numpy(), code), expected)
