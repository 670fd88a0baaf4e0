"""Image data as its authors or torchvision lay it out: lists of images and labels by split."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

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


def dtd(base: Path) -> Lists:
    """images/CLASS/*.jpg with labels/{train,val,test}1.txt, the official partition 1.

    Train and validation images together are the train split (3760), as published runs have it; no
    image of the test list (1880) is among them.
    """
    lists = {split: _lines(base / "labels" / f"{split}1.txt") for split in ("train", "val", "test")}
    rows = {
        split: [(_inside(base / "images", line), line.partition("/")[0]) for line in lines]
        for split, lines in lists.items()
    }
    splits = {"train": rows["train"] + rows["val"], "test": rows["test"]}
    seen = {path for path, _ in splits["train"]} & {path for path, _ in splits["test"]}
    if seen:
        raise DataError(
            f"{len(seen)} images of the test list are in a training list too",
            source=base / "labels",
            remedy="get the lists of DTD anew (dtd-r1.0.1.tar.gz)",
        )
    return splits


def sun397(base: Path) -> Lists:
    """a/abbey/*.jpg with Training_01.txt and Testing_01.txt, the official partition 1."""
    return _listed(
        {"train": base / "Training_01.txt", "test": base / "Testing_01.txt"},
        lambda line: (_inside(base, line.lstrip("/")), line.lstrip("/").rpartition("/")[0]),
    )


def resisc45(folder: Path) -> Lists:
    """NWPU-RESISC45/CLASS/CLASS_001.jpg with resisc45-{train,val,test}.txt of arXiv:1911.06721."""
    base = folder / "NWPU-RESISC45"
    return _by_name(folder, "resisc45", base if base.is_dir() else folder)


def eurosat(folder: Path) -> Lists:
    """2750/CLASS/CLASS_1.jpg with eurosat-{train,val,test}.txt of arXiv:1911.06721.

    The data has no official split; published runs drew one at random, which is not this.
    """
    places = [folder / "2750", folder / "EuroSAT" / "2750", folder]
    return _by_name(folder, "eurosat", next(place for place in places if place.is_dir()))


def _by_name(folder: Path, prefix: str, base: Path) -> Lists:
    """Lists of file names whose class is what comes before the last underscore."""
    files = {
        split: folder / f"{prefix}-{name}.txt"
        for split, name in (("train", "train"), ("validation", "val"), ("test", "test"))
    }

    def row(line: str) -> Listed:
        kind = line.rpartition("_")[0]
        return _inside(base, f"{kind}/{line}"), kind

    return _listed({split: file for split, file in files.items() if file.is_file()}, row)


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
    return {"train": list(_of_folders(train)), "test": test}


def _signed(base: Path, row: Mapping[str, Any], source: Path) -> Listed:
    name, number = row.get("Filename"), row.get("ClassId")
    if not name or not number:
        raise _unfit(source, "a line has no Filename or ClassId")
    return _inside(base, str(name)), str(number)


def food101(base: Path) -> Lists:
    """images/CLASS/NUMBER.jpg with meta/train.txt and meta/test.txt."""
    return _listed(
        {split: base / "meta" / f"{split}.txt" for split in ("train", "test")},
        lambda line: (_inside(base / "images", f"{line}.jpg"), line.partition("/")[0]),
    )


def pets(base: Path) -> Lists:
    """images/Breed_1.jpg with annotations/trainval.txt and annotations/test.txt."""

    def row(line: str) -> Listed | None:
        name = line.split(maxsplit=1)[0]
        listed = _inside(base / "images", f"{name}.jpg"), name.rpartition("_")[0]
        return None if line.startswith("#") else listed

    names = (("train", "trainval"), ("test", "test"))
    return _listed({split: base / "annotations" / f"{name}.txt" for split, name in names}, row)


def cars(base: Path) -> Lists:
    """cars_train, cars_test, devkit/cars_train_annos.mat and cars_test_annos_withlabels.mat."""
    files = {
        "train": base / "devkit" / "cars_train_annos.mat",
        "test": base / "cars_test_annos_withlabels.mat",
    }
    return {
        split: list(_annotations(path, base / f"cars_{split}")) for split, path in files.items()
    }


def _annotations(path: Path, images: Path) -> Iterator[Listed]:
    reader = needed("scipy.io", "the annotations of Stanford Cars")
    try:
        rows = reader.loadmat(path, squeeze_me=True, variable_names=["annotations"])["annotations"]
        splits = [(str(row["fname"]), int(row["class"])) for row in rows.reshape(-1)]
    # scipy's reader raises errors of many kinds on broken files.
    except Exception as error:
        raise _unfit(path, f"it holds no annotations with fname and class: {error}") from error
    for name, number in splits:
        yield _inside(images, name), number - 1


LAYOUTS: Mapping[str, tuple[Callable[[Path], Lists], str, str]] = {
    "cars": (cars, "devkit", "stanford_cars"),
    "dtd": (dtd, "images", "dtd"),
    "eurosat": (eurosat, "", ""),
    "food101": (food101, "meta", "food-101"),
    "gtsrb": (gtsrb, "Final_Test", "GTSRB"),
    "pets": (pets, "annotations", "oxford-iiit-pet"),
    "resisc45": (resisc45, "", ""),
    "sun397": (sun397, "Training_01.txt", "SUN397"),
}
"""How each is read, what marks its folder, and the name that the folder may have in the task's."""


def lists_of(layout: str, folder: Path) -> Lists:
    """The lists of a layout in a task's folder or in the one that it brings; none if not there."""
    reader, mark, inner = LAYOUTS[layout]
    base = next((place for place in (folder, folder / inner) if (place / mark).exists()), None)
    return {} if base is None else reader(base)


def _listed(files: Mapping[str, Path], row: Callable[[str], Listed | None]) -> Lists:
    """The rows of each split's list, a line each; lines of which `row` makes None are left out."""
    rows = {split: map(row, _lines(file)) for split, file in files.items()}
    return {
        split: [image for image in images if image is not None] for split, images in rows.items()
    }


def _of_folders(folder: Path) -> Iterator[Listed]:
    for inner in sorted(path for path in folder.iterdir() if path.is_dir()):
        for image in images(inner):
            yield image, inner.name


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
    splits = [line for line in lines if line]
    if not splits or "\0" in text:
        raise _unfit(path, "the list is empty" if not splits else "the list holds a NUL byte")
    return splits


def _inside(base: Path, name: str) -> Path:
    """A file that a list names; DataError where the name leads out of the folder."""
    parts = PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts or not parts.parts:
        raise _unfit(base, f"a list names {printable(name)!r}, which is not in this folder")
    return base / parts


def missing(listed: Iterable[Listed]) -> list[Path]:
    """The images of a list that are not there."""
    return [path for path, _ in listed if not path.is_file()]


def _unfit(source: Path, problem: str) -> DataError:
    return DataError(problem, source=source, remedy="get the data anew, as its authors publish it")
