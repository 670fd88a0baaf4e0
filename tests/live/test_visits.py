"""A layer is visited once for all runs: what is read, what waits for what, and the same gains."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from magmerge.checkpoints.safetensors import SafetensorsCheckpoint
from magmerge.live import gains, measurement
from tests.live.test_compound import family, ratio, records_of
from tests.live.test_exactness import loaded, merged_by
from tests.live.test_running import folders, llama, texts


def batches(experts: dict[str, Any], count: int = 3) -> dict[str, list[Any]]:
    """Several batches of each expert, all different."""
    one = texts(experts)
    return {
        name: [{"input_ids": (ids + 5 * n) % 40} for n in range(count) for ids in own[0].values()]
        for name, own in one.items()
    }


def test_base_and_experts_are_read_once_while_layers_are_measured(
    tmp_path: Path, monkeypatch: Any
) -> None:
    base, experts = folders(tmp_path, llama(), family(llama(), 3))
    reads: Counter[tuple[str, str]] = Counter()
    measuring, fill = False, SafetensorsCheckpoint._fill

    def counted(self: Any, view: memoryview, file: Path, offset: int, name: str) -> None:
        if measuring:
            reads[self.source, name] += 1
        fill(self, view, file, offset, name)

    measure = measurement.measure_once

    def measured(*arguments: Any) -> Any:
        nonlocal measuring
        measuring = True
        sums = measure(*arguments)
        measuring = False
        return sums

    monkeypatch.setattr(SafetensorsCheckpoint, "_fill", counted)
    monkeypatch.setattr(measurement, "measure_once", measured)
    merged_by(base, experts, data=batches(experts), threads=2)
    tied = "model.embed_tokens.weight"
    assert len({source for source, _ in reads}) == 4
    assert {count for (_, name), count in reads.items() if name != tied} == {1}
    # As the embedding and as the head.
    assert {count for (_, name), count in reads.items() if name == tied} == {2}


def test_how_many_runs_go_side_by_side_changes_no_bit(monkeypatch: Any) -> None:
    base = llama()
    experts = family(base, 3)
    together = merged_by(base, experts, data=batches(experts)).state_dict()
    monkeypatch.setattr(gains, "HELD", 1 << 60)
    apart = merged_by(base, experts, data=batches(experts)).state_dict()
    assert all(torch.equal(together[name], apart[name]) for name in together)


class Keeping(nn.Module):
    """A model that keeps what its second layer is fed in itself, as some do, or hands it on."""

    def __init__(self, keeps: bool) -> None:
        super().__init__()
        self.a, self.b, self.keeps = nn.Linear(6, 6), nn.Linear(6, 4), keeps

    def forward(self, x: Tensor) -> Tensor:
        first = torch.tanh(x)
        if self.keeps:
            self.first = first
        return self.b(self.a(x) + (self.first if self.keeps else first))


@pytest.mark.parametrize("threads", [1, 2])
def test_models_that_keep_something_are_run_one_after_the_other(threads: int) -> None:
    results = []
    for keeps in (True, False):
        torch.manual_seed(0)
        base = Keeping(keeps).eval()
        experts = family(base)
        data = {name: [torch.randn(3, 6) + k] for k, name in enumerate(experts)}
        results.append(merged_by(base, experts, data=data, threads=threads).state_dict())
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[1])


class Centred(nn.Module):
    """Its samples depend on each other, and it writes into what it is fed."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        return x.sub_(x.mean(0)).mul_(2) * self.weight


def test_layers_that_write_into_their_inputs_are_measured() -> None:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Identity(), Centred()).eval()
    experts = family(base)
    x = torch.randn(5, 6)
    result = merged_by(base, experts, data={name: [x.clone()] for name in experts})
    plain = loaded(base, merged_by(base, experts, calibrate=None, gate="on"))
    y0, ym, *own = (model(x.clone()).detach() for model in (base, plain, *experts.values()))
    expected = sum(ratio(y - y0, ym - y0) for y in own) / len(own)
    assert records_of(result)["1.weight"].xi == pytest.approx(expected, rel=1e-4)
