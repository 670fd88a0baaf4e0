"""What the vision suites have in common: images, heads that are never trained, one recipe.

The networks have no batch norms: running statistics are no task vectors, and a mean of theirs
destroys a network before any weight is merged.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import normalize

from .classifying import Assignment, Kind, make_experts
from .finetune import Recipe
from .image_tasks import IMAGE_TASKS
from .imaging import make_splits
from .probe import class_means
from .storing import Layout, save_tensors

SIZE = 64
RECIPE = Recipe(learning_rate=3e-4, epochs=8, steps=120, batch=32, head_learning_rate=0.0)


@dataclass(frozen=True)
class Network:
    """A pretrained network of which a suite is made."""

    layout: Layout
    build: Callable[[], nn.Module]
    """Without its weights; its forward gives features of length 1. At the top of its module."""
    pretrained: Callable[[], nn.Module]
    sha256: str
    """Of the file or package that its weights are from."""


class UnitLength(nn.Module):
    """The last step of a network, in place of its classifier: features of length 1."""

    def forward(self, features: Tensor) -> Tensor:
        """Features [n, features] over their lengths."""
        return normalize(features, dim=1)


def make_suite(network: Network) -> None:
    """Make base and experts of all tasks of labelled images."""
    layout = network.layout
    if not (layout.base / "model.safetensors").exists():
        save(network.pretrained(), layout.base)
    assignments = {
        name: Assignment(
            task.title, task.package, task.classes, RECIPE,
            partial(make_splits, layout, name, task, SIZE),
        )
        for name, task in IMAGE_TASKS.items()
    }  # fmt: skip
    make_experts(layout, kind_of(network), assignments)


def kind_of(network: Network) -> Kind:
    """How the models of a network are made, fed and written."""

    def load(folder: Path) -> nn.Module:
        model = network.build()
        model.load_state_dict(load_file(folder / "model.safetensors"))
        return model

    return Kind(
        model={"build": f"{network.build.__module__}:build", "features": "output"},
        features=nn.Module.__call__,
        head=class_means,
        load=load,
        save=save,
        suffix="safetensors",
        fields={"label_field": "labels"},
        extra={},
        base_sha256=network.sha256,
    )


def save(model: nn.Module, folder: Path) -> None:
    """Write all weights."""
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_tensors(state, folder / "model.safetensors")
