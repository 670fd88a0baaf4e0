"""Sensitivity: both modes against a plain re-run with changed weights, and against each other."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import magmerge
from magmerge.core.errors import MagmergeError, MagmergeWarning, OutputError, ParameterError
from magmerge.core.validation import read_sensitive
from tests.live.test_compound import family
from tests.live.test_running import bert, llama

IDS = torch.randint(1, 40, (12, 7), generator=torch.Generator().manual_seed(3))


def ranked(**arguments: Any) -> magmerge.Sensitivity:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MagmergeWarning)
        return magmerge.sensitivity(**arguments)


def average(base: nn.Module, experts: dict[str, nn.Module], layer: str = "", factor: float = 1.1):
    """The mean of the experts, with one layer's task vector enlarged."""
    model = copy.deepcopy(base)
    state = base.state_dict()
    merged = {
        name: state[name]
        + sum(expert.state_dict()[name] - state[name] for expert in experts.values()) / len(experts)
        for name in state
        if state[name].is_floating_point()
    }
    for name, tensor in merged.items():
        if layer and name.rpartition(".")[0] == layer:
            merged[name] = state[name] + factor * (tensor - state[name])
    model.load_state_dict({**state, **merged})
    return model.eval()


def next_token_loss(model: nn.Module, ids: torch.Tensor) -> float:
    with torch.no_grad():
        logits = model(input_ids=ids).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    return float(losses.mean(1).double().mean())


def test_exact_is_what_running_with_changed_weights_gives() -> None:
    base = llama()
    experts = family(base, size=0.05)
    found = ranked(base=base, experts=experts, data=[{"input_ids": IDS}], score="loss")
    before = next_token_loss(average(base, experts), IDS)
    assert len(found.layers) == 3 * 7
    for layer, worse in found.layers.items():
        changed = next_token_loss(average(base, experts, layer), IDS)
        assert worse == pytest.approx(changed - before, abs=2e-6), layer


def test_drift_is_how_far_the_last_features_move() -> None:
    base = bert()
    experts = family(base, size=0.05)
    found = ranked(base=base, experts=experts, data=[{"input_ids": IDS}])
    with torch.no_grad():
        plain = average(base, experts)(input_ids=IDS).last_hidden_state
        for layer in ("encoder.layer.0.output.dense", "encoder.layer.1.attention.self.key"):
            moved = average(base, experts, layer)(input_ids=IDS).last_hidden_state
            shares = (moved - plain).flatten(1).norm(dim=1) / plain.flatten(1).norm(dim=1)
            wanted = float(shares.double().square().mean().sqrt())
            assert found.layers[layer] == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize("score", ["drift", "loss"])
def test_fast_ranks_as_exact_does(score: str) -> None:
    base = llama()
    experts = family(base, size=0.05)
    ids = torch.randint(1, 40, (256, 7), generator=torch.Generator().manual_seed(4))
    common = {"base": base, "experts": experts, "data": [{"input_ids": ids}], "score": score}
    exact, fast = (ranked(mode=mode, **common).layers for mode in ("exact", "fast"))
    a, b = (torch.tensor([found[name] for name in exact]) for found in (exact, fast))
    ranks = torch.stack([one.argsort().argsort().double() for one in (a, b)])
    assert float(torch.corrcoef(ranks)[0, 1]) > 0.85
    if score == "drift":
        assert torch.allclose(a, b, rtol=0.35)


def test_the_second_order_of_the_loss_is_its_curvature(tmp_path: Path) -> None:
    """At the model's own optimum the first order is zero, and what is left is the curvature."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(6, 5)).eval()
    experts = family(base, 1, size=0.5)
    x = torch.randn(4000, 6)
    model = average(base, experts)
    labels = torch.distributions.Categorical(logits=model(x)).sample()
    common = {"base": base, "experts": experts, "score": "loss", "samples": 4000}
    rows = tmp_path / "rows.safetensors"
    save_file({"inputs": x, "labels": labels}, rows)
    found = {
        mode: ranked(data=rows, label_field="labels", mode=mode, **common).layers["0"]
        for mode in ("exact", "fast")
    }
    assert found["fast"] == pytest.approx(found["exact"], rel=0.15, abs=2e-4)


def test_accuracy_counts_errors(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8)).eval()
    experts = family(base, size=0.5)
    head = {"weight": torch.randn(3, 8), "bias": torch.randn(3)}
    save_file(head, tmp_path / "head.safetensors")
    x = torch.randn(300, 6)
    plain = average(base, experts)
    labels = (plain(x) @ head["weight"].T + head["bias"]).argmax(1).detach()
    save_file({"inputs": x, "labels": labels}, tmp_path / "rows.safetensors")
    found = ranked(
        base=base, experts=experts, data=tmp_path / "rows.safetensors", samples=300,
        label_field="labels", head=tmp_path / "head.safetensors", score="accuracy",
    )  # fmt: skip
    for layer in ("0", "2"):
        logits = average(base, experts, layer)(x) @ head["weight"].T + head["bias"]
        wrong = float((logits.argmax(1) != labels).double().mean())
        assert found.layers[layer] == pytest.approx(wrong, abs=1e-6)


def test_what_is_written_is_what_sensitive_takes(tmp_path: Path) -> None:
    base = bert()
    experts = family(base)
    out = tmp_path / "s.json"
    found = ranked(base=base, experts=experts, data=[{"input_ids": IDS}], alpha=4, out=out)
    assert read_sensitive(out) == found.sensitive
    assert len(found.sensitive) == 4
    worst = sorted(found.layers.values(), reverse=True)[:4]
    assert [found.layers[name] for name in found.sensitive] == worst
    assert json.loads(out.read_text())["alpha"] == 4
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MagmergeWarning)
        result = magmerge.merge(
            base=base, experts=experts, calibrate="fsc", sensitive=out,
            data={key: [{"input_ids": IDS}] for key in experts}, method="average",
        )  # fmt: skip
    marked = {record.name for record in result.records if record.sensitive}
    assert marked == {f"{name}.{kind}" for name in found.sensitive for kind in ("weight", "bias")}
    assert all(record.xi <= 1 for record in result.records if record.sensitive)
    with pytest.raises(OutputError, match="exists already"):
        ranked(base=base, experts=experts, data=[{"input_ids": IDS}], out=out)


def test_nothing_is_left_changed() -> None:
    base = bert()
    experts = family(base)
    before = copy.deepcopy(base.state_dict())
    for mode in ("exact", "fast"):
        ranked(base=base, experts=experts, data=[{"input_ids": IDS}], mode=mode)
    assert all(torch.equal(before[name], tensor) for name, tensor in base.state_dict().items())
    assert all(parameter.grad is None for parameter in base.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"score": "accuracy"}, "needs labels"),
        ({"score": "f1"}, "drift, loss or accuracy"),
        ({"mode": "quick"}, "exact or fast"),
        ({"score": "accuracy", "mode": "fast", "label_field": "y"}, "no derivative"),
        ({"label_field": "y"}, "looks at no labels"),
        ({"alpha": 0}, "one layer or more"),
        ({"score": "loss"}, "no language model"),
    ],
)
def test_mistakes_are_told(arguments: dict[str, Any], message: str) -> None:
    base = bert()
    experts = family(base)
    with pytest.raises((ParameterError, MagmergeError), match=message):
        ranked(base=base, experts=experts, data=[{"input_ids": IDS}], **arguments)
