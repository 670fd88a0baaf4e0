"""Image data as its authors or torchvision lay it out: lists of images and labels by split."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeAlias

from magmerge.core.errors import printable
from magmerge.core.extras import needed
from magmerge.data.image_folder import images
from magmerge.data.rows import DataError

Listed: TypeAlias = tuple[Path, str | int]
"""An image, and its class as a folder's name or a number."""
Lists: TypeAlias = Mapping[str, Sequence[Listed]]
"""By the suite's splits; a layout that is not there has none."""
MOST = 1 << 24
"""Bytes of a list, at most."""


def _splits(prefix: str) -> dict[str, Sequence[str]]:
    names = {"train": "train", "validation": "val", "test": "test"}
    return {split: (f"{prefix}-{name}.txt",) for split, name in names.items()}


class Listing(NamedTuple):
    """Lists of images, a line each: by split the files, whose lines together are the split.

    `row` makes of a line the image's path in the first of the folders `places` that is there, and
    its class.
    """

    files: Mapping[str, Sequence[str]]
    row: Callable[[str], tuple[str, str]]
    places: Sequence[str] = ("",)


def _of_sun397(line: str) -> tuple[str, str]:
    name = line.lstrip("/")
    return name, name.rpartition("/")[0]


def _of_pets(line: str) -> tuple[str, str]:
    name = line.split(maxsplit=1)[0]
    return f"{name}.jpg", name.rpartition("_")[0]


def _by_name(line: str) -> tuple[str, str]:
    """A file's name, whose class is what comes before the last underscore."""
    kind = line.rpartition("_")[0]
    return f"{kind}/{line}", kind


LISTINGS: Mapping[str, Listing] = {
    # The official partition 1. Train and validation images together are the train split (3760),
    # as published runs have it; no image of the test list (1880) is among them.
    "dtd": Listing(
        {"train": ("labels/train1.txt", "labels/val1.txt"), "test": ("labels/test1.txt",)},
        lambda line: (line, line.partition("/")[0]),
        ("images",),
    ),
    # The official partition 1.
    "sun397": Listing({"train": ("Training_01.txt",), "test": ("Testing_01.txt",)}, _of_sun397),
    # The lists of arXiv:1911.06721.
    "resisc45": Listing(_splits("resisc45"), _by_name, ("NWPU-RESISC45", "")),
    # The same; the data has no official split: published runs drew one at random, not this.
    "eurosat": Listing(_splits("eurosat"), _by_name, ("2750", "EuroSAT/2750", "")),
    "food101": Listing(
        {"train": ("meta/train.txt",), "test": ("meta/test.txt",)},
        lambda line: (f"{line}.jpg", line.partition("/")[0]),
        ("images",),
    ),
    "pets": Listing(
        {"train": ("annotations/trainval.txt",), "test": ("annotations/test.txt",)},
        _of_pets,
        ("images",),
    ),
}


def _listed(layout: str, base: Path) -> Lists:
    """The rows of each split's lists; lines that begin with # are comments."""
    files, row, places = LISTINGS[layout]
    images = next((base / place for place in places if (base / place).is_dir()), base / places[0])
    lists: dict[str, list[Listed]] = {}
    for split, names in files.items():
        # Lists that mark no folder may be there for some splits alone.
        paths = [base / name for name in names if LAYOUTS[layout][0] or (base / name).is_file()]
        lines = [line for path in paths for line in _lines(path) if not line.startswith("#")]
        if paths:
            lists[split] = [(_inside(images, name), kind) for name, kind in map(row, lines)]
    train, test = ({path for path, _ in lists.get(split, ())} for split in ("train", "test"))
    if layout == "dtd" and train & test:
        raise DataError(
            f"{len(train & test)} images of the test list are in a training list too",
            source=base / "labels",
            remedy="get the lists of DTD anew (dtd-r1.0.1.tar.gz)",
        )
    return lists


def gtsrb(base: Path) -> Lists:
    """GTSRB/Training/00000/*.ppm and GTSRB/Final_Test/Images with GT-final_test.csv."""
    train = _first([base / "Training", base / "Final_Training" / "Images"])
    places = (base, base / "Final_Test" / "Images", base.parent)
    truth = _first([place / "GT-final_test.csv" for place in places])
    if train is None or truth is None:
        raise DataError(
            f"there is no {'Training' if train is None else 'GT-final_test.csv'}",
            source=base,
            remedy="put the training images and the truth of the final test there, as torchvision "
            "does",
        )
    rows = csv.DictReader(_lines(truth), delimiter=";")
    test = [_signed(base / "Final_Test" / "Images", row, truth) for row in rows]
    folders = sorted(path for path in train.iterdir() if path.is_dir())
    listed = [(image, inner.name) for inner in folders for image in images(inner)]
    return {"train": listed, "test": test}


def _signed(base: Path, row: Mapping[str, Any], source: Path) -> Listed:
    name, number = row.get("Filename"), row.get("ClassId")
    if not name or not number:
        raise _unfit(source, "a line has no Filename or ClassId")
    return _inside(base, str(name)), str(number)


def cars(base: Path) -> Lists:
    """cars_train, cars_test, devkit/cars_train_annos.mat and cars_test_annos_withlabels.mat."""
    files = {
        "train": base / "devkit" / "cars_train_annos.mat",
        "test": base / "cars_test_annos_withlabels.mat",
    }
    return {split: _annotations(path, base / f"cars_{split}") for split, path in files.items()}


def _annotations(path: Path, images: Path) -> list[Listed]:
    reader = needed("scipy.io", "the annotations of Stanford Cars")
    try:
        rows = reader.loadmat(path, squeeze_me=True, variable_names=["annotations"])["annotations"]
        named = [(str(row["fname"]), int(row["class"])) for row in rows.reshape(-1)]
    # scipy's reader raises errors of many kinds on broken files.
    except Exception as error:
        raise _unfit(path, f"it holds no annotations with fname and class: {error}") from error
    return [(_inside(images, name), number - 1) for name, number in named]


LAYOUTS: Mapping[str, tuple[str, str]] = {
    "cars": ("devkit", "stanford_cars"),
    "dtd": ("images", "dtd"),
    "eurosat": ("", ""),
    "food101": ("meta", "food-101"),
    "gtsrb": ("Final_Test", "GTSRB"),
    "pets": ("annotations", "oxford-iiit-pet"),
    "resisc45": ("", ""),
    "sun397": ("Training_01.txt", "SUN397"),
}
"""What marks the folder of each, and the name that it may have in the task's."""


def lists_of(layout: str, folder: Path) -> Lists:
    """The lists of a layout in a task's folder or in the one that it brings; none if not there."""
    mark, inner = LAYOUTS[layout]
    base = next((place for place in (folder, folder / inner) if (place / mark).exists()), None)
    if base is None:
        return {}
    own = {"cars": cars, "gtsrb": gtsrb}.get(layout)
    return _listed(layout, base) if own is None else own(base)


def _first(places: Iterable[Path]) -> Path | None:
    return next((place for place in places if place.exists()), None)


def _lines(path: Path) -> list[str]:
    """The lines of a list that are not blank; DataError where it cannot be read."""
    try:
        if path.stat().st_size > MOST:
            raise _unfit(path, "it is too long for a list")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _unfit(path, f"the list cannot be read: {error}") from error
    lines = [line.strip() for line in text.splitlines()]
    if not any(lines) or "\0" in text:
        raise _unfit(path, "the list holds a NUL byte" if any(lines) else "the list is empty")
    return [line for line in lines if line]


def _inside(base: Path, name: str) -> Path:
    """A file that a list names; DataError where the name leads out of the folder."""
    parts = PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts or not parts.parts:
        raise _unfit(base, f"a list names {printable(name)!r}, which is not in this folder")
    return base / parts


def _unfit(source: Path, problem: str) -> DataError:
    return DataError(problem, source=source, remedy="get the data anew, as its authors publish it")
