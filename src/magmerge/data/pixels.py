"""Images to pixel tensors, by the model's own image processor or by size, mean and deviation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from magmerge.core.errors import ParameterError
from magmerge.core.extras import needed
from magmerge.data.library import StoredPicture
from magmerge.data.rows import DataError, Picture, Preparation

PROCESSOR = "preprocessor_config.json"
FORMATS = ("PNG", "JPEG", "WEBP", "PPM", "BMP", "TIFF")
"""Formats that are decoded, whatever a file is called. Others start programs: EPS, Ghostscript."""
PROGRAMS = ("EPS", "WMF")
"""Formats of an image of the user's own that would start one when its pixels are read."""
CHANNELS = 3
INSTEAD = "say --image-size, --mean and --std (image_size=, mean=, std=) instead"

Pixels = Callable[[Sequence[Picture]], tuple[tuple[Tensor, ...], Mapping[str, Tensor]]]
"""Images to the model's positional and keyword inputs."""


def open_processor(folder: Path | None, options: Preparation, source: str) -> Pixels:
    """What makes pixels: the options if they are given, else the processor in the model's folder,
    whose results are keywords of the forward. DataError where there is neither.
    """
    if (options.image_size, options.mean, options.std) != (None, None, None):
        return _Plain(options)
    if folder is None or not (folder / PROCESSOR).is_file():
        raise DataError(
            f"these are images, and there is no {PROCESSOR} in {folder or 'the model'}",
            source=source,
            remedy="name a model folder that has it, or say --image-size, --mean and --std "
            "(image_size=, mean=, std=) as the model was trained with",
        )
    processor = from_folder("AutoImageProcessor", folder, "image processor", INSTEAD)

    def pixels(images: Sequence[Picture]) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        pictures = [decode(image) for image in images]
        try:
            return (), dict(processor(pictures, return_tensors="pt"))
        except Exception as error:
            problem = f"the model's image processor fails: {error}"
            raise DataError(problem, source=images[0], remedy=INSTEAD) from error

    return pixels


def from_folder(kind: str, folder: Path, what: str, remedy: str) -> Any:
    """What the class `kind` of transformers loads from a model's folder, none of its code run."""
    transformers = needed("transformers", f"the model's {what}")
    try:
        return getattr(transformers, kind).from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    except Exception as error:
        text = str(error).partition("\n")[0]
        problem = f"its {what} cannot be loaded: {text}"
        raise DataError(problem, source=folder, remedy=remedy) from error


class _Plain:
    """Shorter side to the size (bicubic), the middle cut out, colours normalised, in float32."""

    def __init__(self, options: Preparation) -> None:
        size, mean, std = options.image_size, options.mean, options.std
        if size is None or mean is None or std is None:
            raise ParameterError(
                "image size, mean and deviation belong together",
                remedy="give all of --image-size, --mean and --std (image_size=, mean=, std=)",
            )
        self._height, self._width = (size, size) if isinstance(size, int) else size
        if min(self._height, self._width) < 1:
            raise ParameterError(f"an image of size {size}", remedy="give a size in pixels")
        self._mean, self._std = _colours("mean", mean), _colours("std", std)
        if not (self._std > 0).all():
            raise ParameterError(f"std is {list(std)}", remedy="give deviations above 0")

    def __call__(self, images: Sequence[Picture]) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        return (torch.stack([self._pixels(decode(image)) for image in images]),), {}

    def _pixels(self, image: Any) -> Tensor:
        scale = max(self._height / image.height, self._width / image.width)
        width = max(self._width, round(image.width * scale))
        height = max(self._height, round(image.height * scale))
        library = needed("PIL.Image", "reading images")
        most = library.MAX_IMAGE_PIXELS
        if most is not None and width * height > most:
            raise DataError(
                f"refused: {image.width} by {image.height} pixels would become {width} by {height}",
                source="an image",
                remedy="cut it to a shape that is nearer to the wanted one",
            )
        image = image.resize((width, height), library.Resampling.BICUBIC)
        left, top = (width - self._width) // 2, (height - self._height) // 2
        image = image.crop((left, top, left + self._width, top + self._height))
        values = np.asarray(image, dtype=np.float32) / np.float32(255)
        return torch.from_numpy((values - self._mean) / self._std).permute(2, 0, 1).contiguous()


def decode(image: Picture) -> Any:
    """The image in RGB, turned as its file says; DataError if it is broken or far too large."""
    library = needed("PIL.Image", "reading images")
    turned = needed("PIL.ImageOps", "reading images").exif_transpose
    # Warnings are not caught here: their filters are the whole process's, and several threads
    # decode at once. So what Pillow only warns of is refused by its size.
    with ExitStack() as stack:
        try:
            picture = image.content() if isinstance(image, StoredPicture) else image
            if isinstance(picture, Path | BytesIO):
                picture = stack.enter_context(library.open(picture, formats=FORMATS))
            if picture.format in PROGRAMS:
                raise ValueError(f"it is {picture.format}, which starts another program")
            most = library.MAX_IMAGE_PIXELS
            if most is not None and picture.width * picture.height > most:
                raise library.DecompressionBombError(
                    f"{picture.width} by {picture.height} pixels could be a decompression bomb"
                )
            return turned(picture).convert("RGB")
        except library.DecompressionBombError as error:
            raise DataError(
                f"refused: {error}", source=image, remedy="make the image smaller"
            ) from error
        # Pillow's decoders raise errors of many kinds on broken files.
        except Exception as error:
            raise DataError(
                f"no image that Pillow reads: {error}", source=image, remedy="save it anew as PNG"
            ) from error


def _colours(name: str, values: Sequence[float]) -> Any:
    if len(values) != CHANNELS:
        raise ParameterError(
            f"{name} has {len(values)} values", remedy=f"give one for each of {CHANNELS} colours"
        )
    return np.asarray(values, dtype=np.float32)
