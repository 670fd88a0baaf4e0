"""The seven hardest that the one path carries: each through the front door."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import magmerge
from magmerge.checkpoints.memory_checkpoint import MemoryCheckpoint
from magmerge.checkpoints.tokens.rows import ABSENT
from magmerge.core import registry
from magmerge.core.parameters import Supplied
from magmerge.core.recipe import AdapterOutput
from tests.checkpoints.adapters.files import write_adapter
from tests.conftest import CommandLine, State, random_state, tuned
from tests.golden.cases import DTYPES, MODULES, digest, models
from tests.token_models import gather_rows

pytestmark = pytest.mark.filterwarnings("ignore::magmerge.core.errors.MagmergeWarning")


def written(folder: Path, states: dict[str, State]) -> dict[str, str]:
    """Each model as a folder; their paths by name."""
    paths = {}
    for name, state in states.items():
        place = folder / name
        place.mkdir(parents=True)
        save_file(state, place / "model.safetensors")
        (place / "config.json").write_text('{"model_type": "tiny"}')
        paths[name] = str(place)
    return paths


def test_ties_looks_at_the_whole_model_also_by_its_recipe(tmp_path: Path) -> None:
    base, experts = models(DTYPES["float32"], 3)
    paths = written(tmp_path, {"base": base, **experts})
    recipe = magmerge.Recipe(
        base=paths.pop("base"), experts=paths, method="ties", params={"scope": "model"}
    )
    direct = magmerge.merge(base=base, experts=experts, method="ties")
    assert digest(magmerge.run(recipe).state_dict()) == digest(direct.state_dict())
    alone = magmerge.merge(base=base, experts=experts, method="ties", params={"scope": "tensor"})
    assert digest(alone.state_dict()) != digest(direct.state_dict())


def test_adapters_get_the_ranks_that_a_pass_found(tmp_path: Path) -> None:
    paths = {}
    for k in range(2):
        paths[f"a{k}"] = str(write_adapter(tmp_path / f"a{k}.safetensors", MODULES, seed=k))
    result = magmerge.merge(experts=paths, method="ties", rank="auto", energy=0.9)
    ranks = {module.rank for module in result.modules}
    assert len(ranks) > 1
    output = AdapterOutput(rank="auto", energy=0.9)
    recipe = magmerge.Recipe(experts=paths, method="ties", output=output)
    again = magmerge.run(recipe, tmp_path / "merged.safetensors")
    assert digest(load_file(tmp_path / "merged.safetensors")) == digest(result.state_dict())
    assert again.recipe == result.recipe


@pytest.mark.parametrize("method", ["ties", "average", "tsv_m"])
def test_a_merge_as_an_adapter_is_the_merge_of_the_models(method: str) -> None:
    base, experts = models(DTYPES["float32"], 3)
    whole = magmerge.merge(base=base, experts=experts, method=method).state_dict()
    adapter = magmerge.merge(base=base, experts=experts, method=method, rank="auto", energy=1.0)
    factors = adapter.state_dict()
    assert {tensor.name for tensor in adapter.lost} >= {"layers.0.mlp.bias", "lm_head.weight"}
    for module in adapter.modules:
        up, down = (factors[f"base_model.model.{module.name}.lora_{part}.weight"] for part in "BA")
        weight = base[f"{module.name}.weight"]
        product = (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
        torch.testing.assert_close(weight + product, whole[f"{module.name}.weight"],
                                   rtol=1e-3, atol=1e-4)  # fmt: skip


class Net(nn.Module):
    """Two layers, whose second is fed what the first gives."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 16, bias=False), nn.Linear(16, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(torch.tanh(self.first(x)))
        return out


def nets(count: int) -> tuple[Net, list[Net], list[Tensor]]:
    """A base, experts near it, and samples of each one's task, of its own part of the inputs."""
    torch.manual_seed(0)
    base = Net()
    experts, samples = [], []
    for k in range(count):
        expert = Net()
        expert.load_state_dict(base.state_dict())
        with torch.no_grad():
            for parameter in expert.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        mask = torch.zeros(12)
        mask[4 * k : 4 * k + 6] = 1
        experts.append(expert)
        samples.append(torch.randn(64, 12) * mask)
    return base, experts, samples


def test_wsc_then_fsc_is_dsc() -> None:
    base, experts, samples = nets(2)
    data = {f"expert-{k + 1}": one for k, one in enumerate(samples)}
    both = magmerge.merge(base=base, experts=experts, method="average", calibrate=["wsc", "fsc"],
                          data=data)  # fmt: skip
    composed = magmerge.merge(base=base, experts=experts, method="average", calibrate="dsc",
                              data=data)  # fmt: skip
    assert digest(both.state_dict()) == digest(composed.state_dict())
    assert all(len(record.factors) == 2 for record in both.records)


def gram(inputs: Tensor) -> Tensor:
    """x^T x of the inputs that a layer is fed."""
    rows = inputs.double()
    return rows.T @ rows


def regression(
    deltas: Tensor,
    merged: Tensor,
    *,
    sums: Annotated[Tensor | None, Supplied()] = None,
    ridge: float = 1e-6,
) -> Tensor:
    """Least squares: the one task vector whose output is nearest the experts' on their inputs."""
    assert sums is not None
    scale = ridge * sums.diagonal(dim1=1, dim2=2).mean()
    left = sums.sum(0) + scale * torch.eye(sums.shape[-1], dtype=sums.dtype)
    right = (sums @ deltas.double().transpose(1, 2)).sum(0) + scale * merged.double().T
    return torch.linalg.solve(left, right).T.to(merged)


@pytest.fixture
def plain_regression() -> Iterator[str]:
    name = "plain_regression"
    magmerge.register_calibrator(
        name, source="a test", acts_on=frozenset({"matrix"}), needs="inputs",
        returns="delta", order="forward", gather=gram, gated=False,
    )(regression)  # fmt: skip
    yield name
    del registry.calibrators._items[name]


def misfit(model: State, experts: Sequence[Net], samples: Sequence[Tensor]) -> float:
    """How far a model's outputs are from the experts' on their own samples."""
    net, total = Net(), 0.0
    net.load_state_dict(model)
    for expert, inputs in zip(experts, samples, strict=True):
        total += float((net(inputs) - expert(inputs)).square().mean())
    return total


def test_a_regression_returns_new_deltas_in_forward_order(plain_regression: str) -> None:
    base, experts, samples = nets(2)
    data = {f"expert-{k + 1}": one for k, one in enumerate(samples)}
    plain = magmerge.merge(base=base, experts=experts, method="average").state_dict()
    result = magmerge.merge(base=base, experts=experts, method="average",
                            calibrate=plain_regression, data=data, order="forward")  # fmt: skip
    solved = result.state_dict()
    assert misfit(solved, experts, samples) < 0.5 * misfit(plain, experts, samples)
    # The second layer was solved for what the first, already solved, feeds it.
    own = base.state_dict()
    deltas = [expert.state_dict() for expert in experts]
    for name, feed in (
        ("first.weight", lambda x: x),
        ("second.weight", lambda x: torch.tanh(x @ solved["first.weight"].T)),
    ):
        sums = torch.stack([gram(feed(inputs)) for inputs in samples])
        change = torch.stack([expert[name] - own[name] for expert in deltas])
        expected = own[name] + regression(change, change.mean(0), sums=sums)
        torch.testing.assert_close(solved[name], expected, rtol=1e-4, atol=1e-5)


def test_a_document_feeds_the_next_one(tmp_path: Path, magmerge_cli: CommandLine) -> None:
    base, experts = models(DTYPES["float32"], 3)
    paths = written(tmp_path, {"base": base, **experts})
    (tmp_path / "two.yaml").write_text(
        f"""
name: pair
base: {paths["base"]}
experts: {{e0: {paths["e0"]}, e1: {paths["e1"]}}}
method: average
---
base: {paths["base"]}
experts: {{both: pair, third: {paths["e2"]}}}
method: ties
"""
    )
    outcome = magmerge_cli("merge", tmp_path / "two.yaml", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    pair = magmerge.merge(base=base, experts=[experts["e0"], experts["e1"]], method="average")
    expected = magmerge.merge(
        base=base, experts={"both": pair.state_dict(), "third": experts["e2"]}, method="ties"
    )
    state = load_file(tmp_path / "out" / "model.safetensors")
    assert digest(state) == digest(expected.state_dict())
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "base", "e0", "e1", "e2", "out", "two.yaml",
    ]  # fmt: skip
    # The recipe beside the result is both documents, and gives the same bytes.
    again = magmerge_cli("merge", tmp_path / "out" / "magmerge.yaml", tmp_path / "again")
    assert again.code == 0, again.err
    for file in (tmp_path / "out").iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes(), file.name


@pytest.mark.parametrize("method", ["average", "task_arithmetic", "sce", "model_stock", "karcher"])
def test_rows_that_some_experts_lack_are_merged_by_those_who_have_them(method: str) -> None:
    shapes = {"embed_tokens.weight": (10, 8), "layer.weight": (8, 8)}
    base = random_state(0, shapes)
    experts = [tuned(base, k, size=0.1) for k in range(2)]
    rows = {"embed_tokens.weight": [0, 1, 2, 3, 4, 5, 6, 7, ABSENT, ABSENT]}
    lacking = gather_rows(MemoryCheckpoint(experts[1]), rows)
    merged = magmerge.merge(base=base, experts=[experts[0], lacking], method=method)
    embedding = merged.state_dict()["embed_tokens.weight"]
    name = "embed_tokens.weight"
    for part, voters in ((slice(0, 8), experts), (slice(8, 10), experts[:1])):
        # A part of the rows is a layer of its own to what looks at all its experts together.
        if len(voters) < registry.methods.get(method).experts[0]:
            continue
        alone = magmerge.merge(
            base={name: base[name][part]},
            experts=[{name: one[name][part]} for one in voters],
            method=method,
        ).state_dict()[name]
        assert torch.equal(embedding[part], alone)
    if method == "average":
        # No vote is not a zero.
        assert torch.equal(embedding[8:], experts[0][name][8:])


@pytest.mark.parametrize("scope", ["tensor", "model"])
def test_a_threshold_is_that_of_all_the_rows_that_an_expert_has(scope: str) -> None:
    """An expert's largest entries are told from all its rows, whoever else has them."""
    shapes = {"embed_tokens.weight": (10, 8), "layer.weight": (8, 8)}
    base = random_state(0, shapes)
    experts = [tuned(base, k, size=0.1) for k in range(2)]
    name, rows = "embed_tokens.weight", [9, 1, 2, ABSENT, 4, 5, 6, ABSENT, 8, ABSENT]
    lacking = gather_rows(MemoryCheckpoint(experts[1]), {name: rows})
    merged = magmerge.merge(
        base=base,
        experts=[experts[0], lacking],
        method="ties",
        params={"scope": scope, "density": 0.3},
    ).state_dict()[name]
    has = torch.tensor([row != ABSENT for row in rows])
    deltas = [
        (experts[0][name] - base[name]).double(),
        (experts[1][name][rows] - base[name]).double() * has[:, None],
    ]
    kept = []
    for k, delta in enumerate(deltas):
        entries = delta[has] if k else delta
        entries = entries.reshape(-1).abs()
        if scope == "model":
            layer = experts[k]["layer.weight"] - base["layer.weight"]
            entries = torch.cat([entries, layer.double().reshape(-1).abs()])
        least = entries.sort(descending=True).values[math.ceil(0.3 * len(entries)) - 1]
        kept.append(torch.where(delta.abs() >= least, delta, 0.0))
    sign = (kept[0] + kept[1]).sign()
    agree = [(part.sign() == sign) & (part != 0) for part in kept]
    total = sum(part * mark for part, mark in zip(kept, agree, strict=True))
    count = sum(mark.double() for mark in agree).clamp(min=1)
    torch.testing.assert_close(merged.double(), base[name] + total / count)


def test_rows_that_the_base_lacks_are_the_mean_of_those_who_have_them() -> None:
    shapes = {"embed_tokens.weight": (6, 8), "layer.weight": (8, 8)}
    experts = [random_state(k, shapes) for k in range(2)]
    own = {"embed_tokens.weight": (4, 8), "layer.weight": (8, 8)}
    small = MemoryCheckpoint(random_state(7, own))
    base = gather_rows(small, {"embed_tokens.weight": [0, 1, 2, 3, ABSENT, ABSENT]})
    merged = magmerge.merge(base=base, experts=experts, method="task_arithmetic").state_dict()
    expected = (experts[0]["embed_tokens.weight"] + experts[1]["embed_tokens.weight"])[4:] / 2
    torch.testing.assert_close(merged["embed_tokens.weight"][4:], expected)
