"""Numbers at the edges: each row of the table in docs/numbers.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import magmerge
from magmerge.checkpoints import open_checkpoint
from magmerge.core.errors import MagmergeWarning, NonFiniteError, ParameterError
from tests.conftest import CommandLine

ONES = torch.ones(4, 4)
NAME = "a.weight"
pytestmark = pytest.mark.filterwarnings("ignore::magmerge.core.errors.MagmergeWarning")


def merged(base: Tensor, *experts: Tensor, **more: Any) -> magmerge.Result:
    """The merge of one tensor, beside one that is plain."""
    states = [
        {NAME: one, "b.weight": ONES * (1 + 0.1 * k)} for k, one in enumerate((base, *experts))
    ]
    return magmerge.merge(base=states[0], experts=states[1:], **{"method": "average", **more})


def value(result: magmerge.Result) -> Tensor:
    return result.state_dict()[NAME]


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("role", ["base", "expert"])
def test_what_is_not_finite_is_refused_by_name(odd: float, role: str) -> None:
    bad = ONES.clone()
    bad[0, 0] = odd
    states = (bad, ONES, ONES) if role == "base" else (ONES, bad, ONES)
    with pytest.raises(NonFiniteError, match=r"a\.weight.*of 16 values"):
        merged(*states)


def test_overflow_on_casting_is_refused() -> None:
    with pytest.raises(NonFiniteError, match="too large for float16"):
        merged(ONES * 6e4, ONES * 9e4, ONES * 9e4, dtype="float16")


def test_a_difference_that_overflows_is_refused() -> None:
    with pytest.raises(NonFiniteError, match="difference from the base is too large"):
        merged(ONES * -3e38, ONES * 3e38)


@pytest.mark.parametrize("method", ["average", "task_arithmetic"])
def test_subnormal_numbers_are_numbers(method: str) -> None:
    params = {"lambda": 0.5} if method == "task_arithmetic" else {}
    tiny = ONES * 1e-40
    told = value(merged(tiny, tiny * 2, tiny * 4, method=method, params=params))
    torch.testing.assert_close(told.double(), tiny.double() * 3, rtol=1e-4, atol=0)


def test_rows_that_are_subnormal_have_a_factor() -> None:
    tiny = 1e-40 * torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    told = merged(torch.zeros(4, 64), tiny, tiny.flip(1), calibrate="wsc")
    assert all(0.5 < record.xi < 3 for record in told.records if record.calibrated_by)


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_eight_bits_are_read_as_their_values_and_written_as_bfloat16(kind: torch.dtype) -> None:
    told = value(merged(ONES.to(kind), (ONES * 2).to(kind), (ONES * 4).to(kind)))
    assert told.dtype == torch.bfloat16
    assert told.eq(3).all()


@pytest.mark.parametrize(
    ("base", "changed"),
    [
        (ONES + 1j, ONES + 2j),
        (torch.full((4, 4), 2**60 + 1), torch.full((4, 4), 2**60 + 3)),
        (ONES > 0, ONES < 0),
    ],
)
def test_other_kinds_are_carried_over_and_changes_are_told(base: Tensor, changed: Tensor) -> None:
    same = merged(base, base, base)
    assert value(same).equal(base)
    assert not any(NAME in warning for warning in same.warnings)
    with pytest.warns(MagmergeWarning, match=r"carried over: a\.weight"):
        assert value(merged(base, changed, changed)).equal(base)


def test_empty_tensors_stay_empty_and_single_numbers_are_merged() -> None:
    assert value(merged(torch.ones(0, 4), torch.ones(0, 4))).shape == (0, 4)
    single = value(merged(torch.tensor(1.0), torch.tensor(2.0), torch.tensor(4.0), calibrate="wsc"))
    assert single.shape == ()
    assert single == 3


def test_entries_above_two_to_the_31_are_found(tmp_path: Path) -> None:
    """In a file that is all holes but for its end."""
    file, count = tmp_path / "large.safetensors", 2**31 + 8
    entry = {"dtype": "BF16", "shape": [count], "data_offsets": [0, 2 * count]}
    header = json.dumps({"large": entry}).encode()
    header += b" " * (-len(header) % 8)
    ending = torch.arange(8).bfloat16()
    with file.open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        stream.seek(8 + len(header) + 2 * (count - 8))
        stream.write(ending.view(torch.uint8).numpy().tobytes())
    part = open_checkpoint(file).read_part("large", 2**31 - 2, count)
    assert part[:2].eq(0).all()
    assert part[2:].equal(ending)


@pytest.fixture
def cancelling(tmp_path: Path) -> dict[str, Any]:
    """A merge of experts whose changes cancel in half of the rows of one layer."""
    generator = torch.Generator().manual_seed(0)
    change, noise, other = (torch.randn(8, 8, generator=generator) for _ in range(3))
    opposite = torch.where(torch.arange(8).unsqueeze(1) < 4, 1e-4 * noise - change, other)
    states = [{NAME: torch.zeros(8, 8)}, {NAME: change}, {NAME: opposite}]
    paths = [tmp_path / f"{name}.safetensors" for name in ("base", "one", "two")]
    for path, state in zip(paths, states, strict=True):
        save_file(state, path)
    return {"base": paths[0], "experts": paths[1:], "method": "average", "calibrate": "wsc"}


def test_a_large_factor_is_bounded_and_named(cancelling: dict[str, Any], tmp_path: Path) -> None:
    words = r"a factor above 10 was found in 1 layers \(a\.weight: \d+.*so 10 was taken"
    with pytest.warns(MagmergeWarning, match=words):
        result = magmerge.merge(**cancelling, out=tmp_path / "out")
    plain = magmerge.merge(**{**cancelling, "calibrate": []})
    free = magmerge.merge(**cancelling, bound="off")
    asked = torch.tensor([r.norm() for r in free.state_dict()[NAME]]) / torch.tensor(
        [r.norm() for r in plain.state_dict()[NAME]]
    )
    assert (asked > 10).tolist() == [True] * 4 + [False] * 4
    written = open_checkpoint(tmp_path / "out").read(NAME)
    assert torch.allclose(written, asked.clamp(max=10).unsqueeze(1) * value(plain), rtol=1e-5)
    assert torch.equal(written[4:], value(free)[4:])
    (record,) = result.records
    assert (record.xi_max, record.rows_bounded) == (10, 4)
    assert record.xi_asked == pytest.approx(float(asked.max()), rel=1e-5)
    assert (free.records[0].rows_bounded, free.records[0].xi_asked) == (0, None)
    told = json.loads((tmp_path / "out" / "magmerge.json").read_text())["layers"][0]
    assert (told["rows_bounded"], told["xi_asked"]) == (4, record.xi_asked)
    assert "were bounded to 10 in 4 rows" in (tmp_path / "out" / "report.html").read_text()
    assert not any("factor above" in warning for warning in plain.warnings)
    assert any("drop --no-bound" in warning for warning in free.warnings)


def test_calibrators_in_turn_have_one_bound(cancelling: dict[str, Any]) -> None:
    twice = magmerge.merge(**{**cancelling, "calibrate": ["wsc", "wsc"]})
    assert twice.records[0].xi_max == 10
    assert twice.records[0].rows_bounded == 4
    # A calibrator of new task vectors follows what was bounded.
    turned = magmerge.merge(**{**cancelling, "calibrate": ["wsc", "svc"]})
    assert turned.records[0].rows_bounded == 4
    assert turned.records[0].xi_asked > 10


def test_kernels_and_functions_have_one_bound(
    cancelling: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    by_kernels = magmerge.merge(**cancelling, bound=3)
    monkeypatch.setattr("magmerge.engine.kernel_steps.is_here", lambda: False)
    by_functions = magmerge.merge(**cancelling, bound=3)
    assert torch.equal(value(by_kernels), value(by_functions))
    assert by_kernels.records == by_functions.records


def test_the_bound_of_the_command_line_is_that_of_the_recipe(
    cancelling: dict[str, Any], tmp_path: Path, magmerge_cli: CommandLine
) -> None:
    base, experts = cancelling["base"], cancelling["experts"]
    models = ["--base", str(base), *(f"--expert={path}" for path in experts)]
    call = ["merge", *models, "--method", "average", "--calibrate", "wsc"]
    for name, options, text in (
        ("plain", [], None),
        ("wide", ["--bound", "20"], "bound: 20"),
        ("free", ["--no-bound"], "bound: 'off'"),
    ):
        assert magmerge_cli(*call, *options, str(tmp_path / name)).code == 0
        recipe = (tmp_path / name / "magmerge.yaml").read_text()
        assert ("\nbound:" in recipe) == (text is not None)
        assert text is None or text in recipe
        again = magmerge.run(tmp_path / name / "magmerge.yaml")
        assert torch.equal(value(again), open_checkpoint(tmp_path / name).read(NAME))
    both = magmerge_cli(*call, "--no-bound", "--bound", "5", str(tmp_path / "x"))
    assert both.code
    assert "drop one of them" in both.err
    low = magmerge_cli(*call, "--bound", "0.5", str(tmp_path / "x"))
    assert "bound is a number from 1 on, or off" in low.err
    none = magmerge_cli(*call, "--bound", "0", str(tmp_path / "x"))
    assert "bound is a number from 1 on, or off" in none.err


def test_a_bound_speaks_of_a_calibration() -> None:
    with pytest.raises(ParameterError, match="bound"):
        merged(ONES, 2 * ONES, 3 * ONES, bound=5)


def test_a_name_that_begins_with_a_dot_keeps_it(tmp_path: Path) -> None:
    states = [{".odd": ONES * k} for k in (1.0, 2.0)]
    out = tmp_path / "out.safetensors"
    magmerge.merge(base=states[0], experts=states[1:], method="average", out=out)
    assert list(open_checkpoint(out).specs) == [".odd"]
