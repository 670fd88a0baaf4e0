"""Many models at once leave no trace in each other: built anew, and with their own parts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from magmerge.core.errors import MagmergeError
from magmerge.evaluation import open_suite
from tests.conftest import tuned
from tests.evaluation.models import bert_suite
from tests.evaluation.test_many import values


class Tower(torch.nn.Module):
    """A small model whose forward may be a closure."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = torch.nn.Linear(6, 8), torch.nn.Linear(8, 3)

    def encode(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.body(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.encode(x)


def with_closure() -> Tower:
    model = Tower()

    def call(x: Tensor) -> Tensor:
        return model.encode(x)

    model.forward = call  # type: ignore[method-assign]
    return model


def with_weight_norm() -> Tower:
    model = Tower()
    torch.nn.utils.weight_norm(model.head)
    return model


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("build", [with_closure, with_weight_norm])
def test_models_of_the_users_own_are_built_anew(tmp_path: Path, build: Callable[[], Tower]) -> None:
    """A copy of a module would call the first one's forward, or cannot be made at all."""
    torch.manual_seed(0)
    rows = {"inputs": torch.randn(60, 6), "labels": torch.arange(60) % 3}
    save_file(rows, tmp_path / "x.safetensors")
    content = {
        "suite": "own",
        "model": {"build": f"{__name__}:{build.__name__}"},
        "tasks": {"x": {"data": "x.safetensors"}},
    }
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(content))
    first = {name: tensor.clone() for name, tensor in build().state_dict().items()}
    models = {"first": first} | {f"v{seed}": tuned(first, seed, 1.0) for seed in range(3)}
    alone = {
        name: values(open_suite(tmp_path / "suite.yaml", allow_code=True).evaluate(model))
        for name, model in models.items()
    }
    assert len({str(scores) for scores in alone.values()}) > 1
    found = open_suite(tmp_path / "suite.yaml", allow_code=True).evaluate_all(models)
    assert {name: values(scores) for name, scores in found.items()} == alone


def test_a_model_without_a_pooler_leaves_no_trace(tmp_path: Path) -> None:
    suite = bert_suite(tmp_path)
    base = load_file(suite.parent / "base" / "model.safetensors")
    bare = {name: tensor for name, tensor in base.items() if "pooler" not in name}
    content = yaml.safe_load(suite.read_text())
    (task, entry), *_ = content["tasks"].items()
    content["model"] = {"class": "AutoModel", "features": "pooler"}
    content["tasks"] = {task: {k: v for k, v in entry.items() if "expert" not in k}}
    suite.write_text(yaml.safe_dump(content))
    alone = values(open_suite(suite).evaluate(base))
    opened = open_suite(suite)
    with pytest.raises(MagmergeError, match="pooler"):
        opened.evaluate(bare)
    assert values(opened.evaluate(base)) == alone
