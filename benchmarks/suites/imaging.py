"""Split the images of a task, store what the benchmarks read, and keep training data at hand."""

from collections import Counter

import torch
from torch import Tensor

from .image_tasks import Images, ImageTask
from .probe import Labelled
from .storing import STORED_SPLITS, Layout, write_images

SIZES = {"test": 500, "validation": 200, "calibration": 256, "train": 2000}


def make_splits(layout: Layout, name: str, task: ImageTask, size: int) -> dict[str, Labelled]:
    """Draw a task's images at random by class, and store all but those of training."""
    most = -(-sum(SIZES.values()) // task.classes)
    found = without_doubles(task.read(size, most))
    order, start = stratified(found.labels.tolist()), 0
    splits = {}
    for part, count in SIZES.items():
        rows = order[start : start + count]
        start += count
        splits[part] = Labelled(scaled(found.pixels[rows]), found.labels[rows])
        if part in STORED_SPLITS:
            path = layout.data(name, part, "safetensors")
            write_images(path, splits[part], labelled=part != "calibration")
    return splits


def without_doubles(images: Images) -> Images:
    """Keep the first of identical images."""
    first: dict[bytes, int] = {}
    for index, image in enumerate(images.pixels):
        first.setdefault(image.numpy().tobytes(), index)
    kept = list(first.values())
    return Images(images.pixels[kept], images.labels[kept])


def stratified(labels: list[int]) -> list[int]:
    """An order of rows in which every stretch has the classes in nearly equal proportions."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(len(labels), generator=generator).tolist()
    counts, seen = Counter(labels), Counter[int]()
    places = []
    for index, label in enumerate(labels):
        places.append(((seen[label] + noise[index]) / counts[label], index))
        seen[label] += 1
    return [index for _, index in sorted(places)]


def scaled(pixels: Tensor) -> Tensor:
    """Pixels 0 to 255 as the networks take them: (pixel - 127) / 128, about -1 to 1."""
    return (pixels.float() - 127) / 128
