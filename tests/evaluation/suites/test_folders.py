"""Local data: each layout that is read, and what is wrong with others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from magmerge.core.errors import MagmergeError
from magmerge.data.rows import DataError, SampleDraw
from magmerge.data.sources import read_samples
from magmerge.evaluation.suites.definitions import task
from magmerge.evaluation.suites.folders import Local, local_data
from magmerge.evaluation.suites.layouts import LAYOUTS
from tests.evaluation.suites.clips import save_idx, save_images, save_task
from tests.quick import examples


def found(name: str, root: Path, kind: str = "vision") -> Local:
    return local_data(name, task(kind, name), root)  # type: ignore[arg-type]


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def labels(local: Local, split: str) -> list[tuple[str, int]]:
    return [(path.name, label) for path, label in local.lists[split]]


def dtd_folder(root: Path, **lists: str) -> Path:
    """DTD as torchvision unpacks it, with two images of two classes."""
    base = root / "dtd" / "dtd"
    for name in ("banded", "zigzagged"):
        save_images(base / "images" / name, 3, ending="jpg")
    lines = {
        "train1": "banded/banded_0.jpg\nzigzagged/zigzagged_0.jpg\n",
        "val1": "zigzagged/zigzagged_1.jpg\n",
        "test1": "zigzagged/zigzagged_2.jpg\nbanded/banded_1.jpg\n",
    }
    for name, text in {**lines, **lists}.items():
        written(base / "labels" / f"{name}.txt", text)
    return root


def test_image_folders_are_matched_by_name(tmp_path: Path) -> None:
    save_task(tmp_path, "EuroSAT_splits", ["SeaLake", "Forest"], each=1)
    save_images(tmp_path / "EuroSAT_splits" / "val" / "River", 1)
    local = found("eurosat", tmp_path)
    assert set(local.sources) == {"train", "validation", "test"}
    assert (local.classes[1], local.classes[8], local.classes[9]) == ("Forest", "River", "SeaLake")
    assert local.classes[0] == "annual crop land"


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["train/River", "test/Rivers"], "'Rivers' is none of the 10 classes"),
        (["train/River", "test/river"], "both the class 'river'"),
        (["train/River", "val/River"], "it has train and val, and no test"),
        (["test/River"], "no data of its train split"),
        (["train/River"], "no data of its test split"),
        (["River"], "no data for the task eurosat that is read here"),
    ],
)
def test_image_folders_that_do_not_fit(tmp_path: Path, folders: list[str], message: str) -> None:
    for name in folders:
        save_images(tmp_path / "eurosat" / name, 1)
    with pytest.raises(DataError, match=message) as caught:
        found("eurosat", tmp_path)
    assert caught.value.remedy


def test_the_folder_of_a_task(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder for the task mnist"):
        found("mnist", tmp_path)
    with pytest.raises(DataError, match="it is no folder"):
        found("mnist", tmp_path / "nowhere")
    save_task(tmp_path, "stanford_cars", ["Acura RL Sedan 2012"], each=1)
    (tmp_path / "Cars").mkdir()
    with pytest.raises(DataError, match="the task cars has 2 folders: Cars, stanford_cars"):
        found("cars", tmp_path)


def test_dtd_has_the_official_split(tmp_path: Path) -> None:
    local = found("dtd", dtd_folder(tmp_path))
    assert labels(local, "train") == [
        ("banded_0.jpg", 0), ("zigzagged_0.jpg", 46), ("zigzagged_1.jpg", 46),
    ]  # fmt: skip
    assert labels(local, "test") == [("zigzagged_2.jpg", 46), ("banded_1.jpg", 0)]


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"val1": "banded/banded_1.jpg\n"}, "1 images of the test list are in a training list too"),
        ({"test1": "../../../secret.jpg\n"}, "a list names '../../../secret.jpg'"),
        ({"test1": "/etc/passwd\n"}, "a list names '/etc/passwd'"),
        ({"test1": "banded/nowhere.jpg\n"}, "1 of 1 images of its lists are not there"),
        ({"test1": "stripy/a.jpg\n"}, "'stripy' is none of the 47 classes"),
        ({"test1": "\n"}, "the list is empty"),
    ],
)
def test_lists_of_dtd_that_do_not_fit(tmp_path: Path, lists: dict[str, str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        found("dtd", dtd_folder(tmp_path, **lists))


def test_sun397_has_initials_and_inner_folders(tmp_path: Path) -> None:
    base = tmp_path / "SUN397"
    names = {"a/abbey": 0, "a/apartment_building/outdoor": 8, "y/youth_hostel": 396}
    for name in names:
        save_images(base / name, 2, ending="jpg")
    lines = [f"/{name}/{name.rpartition('/')[2]}" for name in names]
    written(base / "Training_01.txt", "".join(f"{line}_0.jpg\n" for line in lines))
    written(base / "Testing_01.txt", "".join(f"{line}_1.jpg\n" for line in lines))
    local = found("sun397", tmp_path)
    assert [label for _, label in local.lists["test"]] == list(names.values())
    assert all(path.is_file() for path, _ in local.lists["train"])


@pytest.mark.parametrize(
    ("name", "inner", "kind", "number"),
    [("resisc45", "NWPU-RESISC45", "sea_ice", 35), ("eurosat", "2750", "AnnualCrop", 0)],
)
def test_lists_of_file_names(tmp_path: Path, name: str, inner: str, kind: str, number: int) -> None:
    save_images(tmp_path / name / inner / kind, 3, ending="jpg")
    for place, split in enumerate(("train", "val", "test")):
        written(tmp_path / name / f"{name}-{split}.txt", f"{kind}_{place}.jpg\n")
    local = found(name, tmp_path)
    assert labels(local, "test") == [(f"{kind}_2.jpg", number)]
    assert labels(local, "validation") == [(f"{kind}_1.jpg", number)]


def test_gtsrb_as_torchvision_has_it(tmp_path: Path) -> None:
    base = tmp_path / "gtsrb" / "GTSRB"
    save_images(base / "Training" / "00014", 1, ending="ppm")
    save_images(base / "Final_Test" / "Images", 1, ending="ppm")
    truth = "Filename;Width;ClassId\nImages_0.ppm;9;42\n"
    written(tmp_path / "gtsrb" / "GT-final_test.csv", truth)
    local = found("gtsrb", tmp_path)
    assert labels(local, "train") == [("00014_0.ppm", 14)]
    assert labels(local, "test") == [("Images_0.ppm", 42)]
    written(tmp_path / "gtsrb" / "GT-final_test.csv", "Filename;Width\nImages_0.ppm;9\n")
    with pytest.raises(DataError, match="no Filename or ClassId"):
        found("gtsrb", tmp_path)


def test_food_and_pets(tmp_path: Path) -> None:
    for name in ("apple_pie", "waffles"):
        save_images(tmp_path / "food-101" / "images" / name, 1, ending="jpg")
    for split in ("train", "test"):
        lines = "apple_pie/apple_pie_0\nwaffles/waffles_0\n"
        written(tmp_path / "food-101" / "meta" / f"{split}.txt", lines)
    assert [label for _, label in found("food101", tmp_path).lists["test"]] == [0, 100]
    base = tmp_path / "oxford-iiit-pet"
    save_images(base / "images", 2, ending="jpg")
    for number in range(2):
        source = base / "images" / f"images_{number}.jpg"
        source.rename(base / "images" / f"Yorkshire_Terrier_{number}.jpg")
    written(base / "annotations" / "trainval.txt", "Yorkshire_Terrier_0 37 2 25\n")
    written(base / "annotations" / "test.txt", "# a remark\nYorkshire_Terrier_1 37 2 25\n")
    local = found("pets", tmp_path)
    assert labels(local, "test") == [("Yorkshire_Terrier_1.jpg", 36)]


def test_cars_and_house_numbers_in_matlabs_format(tmp_path: Path) -> None:
    scipy = pytest.importorskip("scipy.io")
    base = tmp_path / "stanford_cars"
    for split, path in (
        ("train", base / "devkit" / "cars_train_annos.mat"),
        ("test", base / "cars_test_annos_withlabels.mat"),
    ):
        save_images(base / f"cars_{split}", 1, ending="jpg")
        rows = np.array([(f"cars_{split}_0.jpg", 196)], dtype=[("fname", "O"), ("class", "O")])
        path.parent.mkdir(exist_ok=True)
        scipy.savemat(path, {"annotations": rows})
    assert labels(found("cars", tmp_path), "test") == [("cars_test_0.jpg", 195)]
    images = np.arange(2 * 2 * 3 * 4, dtype=np.uint8).reshape(2, 2, 3, 4)
    for split in ("train", "test"):
        (tmp_path / "SVHN").mkdir(exist_ok=True)
        content = {"X": images, "y": np.array([[1], [10], [3], [9]])}
        scipy.savemat(tmp_path / "SVHN" / f"{split}_32x32.mat", content)
    local = found("svhn", tmp_path)
    rows: Any = read_samples(
        local.sources["test"],
        SampleDraw(name="a", samples=None, label_field="label", allow_test=True),
    )
    assert rows.labels == (1, 0, 3, 9)
    assert np.array_equal(np.asarray(rows.content.values[2]), images[..., 2])


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("name", "folder", "train", "test"), [
    ("mnist", "MNIST/raw", "train", "t10k"),
    ("kmnist", "KMNIST/raw", "train", "t10k"),
    ("emnist", "EMNIST/raw/gzip", "emnist-letters-train", "emnist-letters-test"),
])  # fmt: skip
def test_idx_files(
    tmp_path: Path, name: str, folder: str, train: str, test: str, packed: bool
) -> None:
    images = np.zeros((3, 4, 5))
    for part in (train, test):
        save_idx(tmp_path / folder, part, images, [1, 2, 3], packed=packed)
    local = found(name, tmp_path)
    source = local.sources["test"]
    rows = read_samples(
        source, SampleDraw(name="a", samples=None, label_field="label", allow_test=True)
    )
    assert rows.labels == ((0, 1, 2) if name == "emnist" else (1, 2, 3))
    with pytest.raises(DataError, match="names the test split"):
        read_samples(source, SampleDraw(name="a"))
    (tmp_path / folder / f"{test}-labels-idx1-ubyte{'.gz' if packed else ''}").unlink()
    with pytest.raises(DataError, match="the file of its labels is not there"):
        found(name, tmp_path)


def test_pickles_are_refused(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"\x80\x04.")
    with pytest.raises(DataError, match="refused: CIFAR's python files are pickles") as caught:
        found("cifar10", tmp_path)
    assert "cifar10/train/CLASS" in caught.value.remedy


def test_saved_data_sets_must_have_the_tasks_order(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    names = list(task("text", "rotten_tomatoes").classes)

    def save(folder: str, labels: list[str]) -> None:
        features = datasets.Features(
            {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=labels)}
        )
        data = datasets.Dataset.from_dict({"text": ["a"], "label": [1]}, features=features)
        parts = {"train": data, "validation": data, "test": data}
        datasets.DatasetDict(parts).save_to_disk(tmp_path / folder / "rotten_tomatoes")

    save("right", names)
    local = found("rotten_tomatoes", tmp_path / "right", "text")
    assert set(local.sources) == {"train", "validation", "test"}
    source = local.sources["test"]
    rows = read_samples(
        source, SampleDraw(name="a", samples=None, label_field="label", allow_test=True)
    )
    assert rows.labels == (1,)
    save("wrong", names[::-1])
    with pytest.raises(DataError, match="numbered in another order"):
        found("rotten_tomatoes", tmp_path / "wrong", "text")


def test_files_of_rows_for_text(tmp_path: Path) -> None:
    for name in ("train.jsonl", "validation.jsonl"):
        written(tmp_path / "cola" / name, '{"sentence": "a", "label": 1}\n')
    local = found("cola", tmp_path, "text")
    assert {split: path.name for split, path in local.sources.items()} == {
        "train": "train.jsonl",
        "test": "validation.jsonl",
    }
    written(tmp_path / "ag_news" / "train.csv", "text,label\na,1\n")
    with pytest.raises(DataError, match="no data of its test split"):
        found("ag_news", tmp_path, "text")


@given(name=st.sampled_from(sorted(LAYOUTS)), content=st.binary(max_size=60))
@settings(
    deadline=None,
    max_examples=examples(60),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_broken_lists_make_no_other_error(tmp_path: Path, name: str, content: bytes) -> None:
    root = tmp_path / name
    files = [
        "labels/train1.txt", "labels/val1.txt", "labels/test1.txt", "Training_01.txt",
        "Testing_01.txt", "resisc45-train.txt", "resisc45-test.txt", "eurosat-test.txt",
        "eurosat-train.txt", "GT-final_test.csv", "meta/train.txt", "meta/test.txt",
        "annotations/trainval.txt", "annotations/test.txt", "devkit/cars_train_annos.mat",
        "cars_test_annos_withlabels.mat",
    ]  # fmt: skip
    for folder in ("images", "Training", "Final_Test/Images"):
        (root / name / folder).mkdir(parents=True, exist_ok=True)
    for file in files:
        path = root / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    try:
        found(name, root)
    except MagmergeError as error:
        assert error.remedy
