"""What weights alone tell `auto`, against plain numpy, whatever the threads."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch

from magmerge.core.machine import Machine
from magmerge.core.recipe import Recipe
from magmerge.engine.evidence import ENTRIES, FEWEST, ROWS, evidence_of, of_rows, row_runs
from magmerge.engine.plan import make_plan
from magmerge.engine.resolve import open_job

NAMES = ("a", "b", "c")


def states(rank: int | None) -> tuple[dict[str, torch.Tensor], list[dict[str, torch.Tensor]]]:
    draw = torch.Generator().manual_seed(1)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw)

    shapes = {"one.weight": (600, 32), "two.weight": (24, 40), "small.weight": (4, 40)}
    base = {name: noise(*shape) for name, shape in shapes.items()}
    experts = []
    for _ in NAMES:
        own = {}
        for name, (rows, columns) in shapes.items():
            full = noise(rows, columns)
            low = noise(rows, rank or 1) @ noise(rank or 1, columns)
            own[name] = base[name] + 0.01 * (full if rank is None else low)
        experts.append(own)
    return base, experts


@pytest.mark.parametrize(("rank", "least", "most"), [(2, 0.05, 0.09), (None, 0.8, 1.0)])
def test_the_same_as_in_plain_numpy_whatever_the_threads(
    rank: int | None, least: float, most: float
) -> None:
    base, experts = states(rank)
    models = {"base": base, **dict(zip(NAMES, experts, strict=True))}
    recipe = Recipe(
        base="x in memory", experts=dict.fromkeys(NAMES, "y in memory"), method="average"
    )
    found = []
    for threads in (1, 3):
        job = open_job(recipe, models, machine=Machine(threads))
        plan = make_plan(job, None)
        found.append(evidence_of(job, plan.steps, plan.room))
    assert found[0] == found[1]
    shares, cosines, distances = [], [], []
    for name in ("one.weight", "two.weight"):
        rows = len(base[name])
        kept = [i for a, b in row_runs(rows, base[name].shape[1] * 3) for i in range(a, b)]
        origin = base[name].numpy().astype(np.float64)[kept]
        deltas = [(e[name] - base[name]).numpy().astype(np.float64)[kept] for e in experts]
        for delta in deltas:
            squares = np.linalg.svd(delta, compute_uv=False) ** 2
            held = np.cumsum(squares) / squares.sum()
            shares.append((int((held < 0.99).sum()) + 1) / len(squares))
        cosines += [
            float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))
            for a, b in combinations(deltas, 2)
        ]
        norms = [np.linalg.norm(delta) for delta in deltas]
        distances.append(float(np.mean(norms) / np.linalg.norm(origin)))
    evidence = found[0]
    assert (evidence.experts, evidence.layers) == (3, 2)
    assert evidence.directions == pytest.approx(np.mean(shares))
    assert least < evidence.directions < most
    assert evidence.cosine == pytest.approx(np.mean(cosines), abs=1e-9)
    assert evidence.distance == pytest.approx(np.median(distances))


@pytest.mark.parametrize(
    ("rows", "width"), [(5, 10), (256, 10), (257, 10), (4096, 4 * 4096), (100, ENTRIES)]
)
def test_few_rows_are_read_from_the_first_to_the_last(rows: int, width: int) -> None:
    runs = row_runs(rows, width)
    places = [row for first, last in runs for row in range(first, last)]
    assert places == sorted(set(places))
    assert (places[0], places[-1]) == (0, rows - 1)
    assert len(places) <= ROWS
    assert len(places) * width <= max(ENTRIES, FEWEST * width)


def test_what_is_not_finite_or_not_changed_tells_nothing() -> None:
    rows = torch.randn(3, 20, 20, dtype=torch.float64)
    assert of_rows(rows) is not None
    for place, value in ((0, float("nan")), (1, float("inf"))):
        broken = rows.clone()
        broken[place, 0, 0] = value
        assert of_rows(broken) is None
    same = rows.clone()
    same[2] = 0
    assert of_rows(same) is None
