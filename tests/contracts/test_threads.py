"""Every method and calibrator gives the same bits whatever the threads and the pieces."""

from __future__ import annotations

from itertools import product

import pytest
import torch

import magmerge
from magmerge.core.traits import Method
from magmerge.engine import memory
from tests.conftest import State, random_state, tuned
from tests.contracts.bank import inputs_for
from tests.contracts.laws import CALIBRATORS, METHODS
from tests.quick import quick_ones

LARGE = {
    "layers.0.mlp.weight": (330, 1000),
    "layers.1.mlp.weight": (150, 1501),
    "layers.0.conv.weight": (230, 45, 3, 5),
    "embed_tokens.weight": (2100, 64),
    "layers.0.norm.weight": (140_000,),
}
"""Layers of more than one piece, with rows of odd lengths."""
EVERY = (None, *(calibrator.name for calibrator in CALIBRATORS))
TURN = {(method.name, EVERY[place % len(EVERY)]) for place, method in enumerate(METHODS)}
"""Each method with one calibrator or none."""
OF_EACH_CUT = ("average", "ties", "tsv_m")
"""Merged entry by entry, after a survey of the model, and as whole layers."""
PAIRS = [
    (method, calibrator)
    for method, calibrator in product(METHODS, EVERY)
    if calibrator is None or method.name in OF_EACH_CUT or (method.name, calibrator) in TURN
]


def is_quick(pair: tuple[Method, str | None]) -> bool:
    return (pair[0].name, pair[1]) in TURN


every_pair = pytest.mark.parametrize(
    ("method", "calibrator"),
    quick_ones(PAIRS, is_quick),
    ids=lambda value: getattr(value, "name", str(value)),
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:the calibration was not checked"),
    pytest.mark.filterwarnings("ignore:.*scaled back|.*left out"),
]


def count(method: Method) -> int:
    return method.experts[1] or 3


@every_pair
def test_serial_equals_threaded(
    method: Method, calibrator: str | None, base: State, experts: list[State]
) -> None:
    def run(threads: int) -> State:
        return magmerge.merge(
            base=base,
            experts=experts[: count(method)],
            method=method.name,
            calibrate=calibrator,
            threads=threads,
            seed=7,
            **inputs_for(calibrator, base),
        ).state_dict()

    serial, threaded = run(1), run(4)
    assert list(serial) == list(base)
    for name, tensor in serial.items():
        assert torch.equal(tensor, threaded[name]), name


@pytest.fixture(scope="module")
def large() -> list[State]:
    base = random_state(3, LARGE, torch.bfloat16)
    return [base, *(tuned(base, seed) for seed in range(3))]


@pytest.mark.parametrize(
    ("method", "calibrator"),
    # WUDI takes long on large layers, and is never cut.
    quick_ones(PAIRS, lambda pair: is_quick(pair) and pair[0].name != "wudi"),
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_pieces_of_any_size_give_the_same(
    method: Method,
    calibrator: str | None,
    large: list[State],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(piece: int, threads: int) -> magmerge.Result:
        monkeypatch.setattr(memory, "PIECE", piece)
        return magmerge.merge(
            base=large[0],
            experts=large[1 : 1 + count(method)],
            method=method.name,
            calibrate=calibrator,
            threads=threads,
            memory="8GB",
            seed=7,
            **inputs_for(calibrator, large[0]),
        )

    whole, pieces = run(1 << 24, 1), run(1 << 16, 2)
    assert whole.plan.piece > 100 * pieces.plan.piece
    assert pieces.records == whole.records
    other = pieces.state_dict()
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, other[name]), name
