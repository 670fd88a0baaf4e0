"""Folders to classes: by name and not by place."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from magmerge.core.errors import MagmergeError
from magmerge.data.rows import DataError
from magmerge.evaluation.suites.definitions import ClassNames, folded, order_of, task


@pytest.mark.parametrize(
    ("name", "folder", "wanted"),
    [
        ("eurosat", "SeaLake", 9),
        ("eurosat", "annual_crop_land", 0),
        ("gtsrb", "00014", 14),
        ("gtsrb", "14", 14),
        ("mnist", "7", 7),
        ("sun397", "a_abbey", 0),
        ("sun397", "a/apartment_building/outdoor", 8),
        ("sun397", "airplane_cabin", 1),
        ("dtd", "polka-dotted", 30),
        ("cifar100", "crab", 26),
        ("fer2013", "disgust", 1),
        ("flowers102", "1", 0),
        ("cars", "Ram C_V Cargo Van Minivan 2012", 173),
        ("kmnist", "tsu", 3),
    ],
)
def test_folders_are_known_by_their_names(name: str, folder: str, wanted: int) -> None:
    assert ClassNames(task("vision", name)).number(folder, "x") == wanted


def test_an_unknown_folder_gets_a_suggestion() -> None:
    with pytest.raises(DataError, match="'Rivers' is none of the 10 classes") as caught:
        ClassNames(task("vision", "eurosat")).number("Rivers", "x")
    assert caught.value.remedy == "did you mean river?"
    # A first letter is only part of a name where folders are sorted by it.
    with pytest.raises(DataError):
        ClassNames(task("vision", "fashion_mnist")).number("t_shirt", "x")


def test_a_subset_of_folders_keeps_the_numbers() -> None:
    names = ClassNames(task("vision", "eurosat")).listed(["River", "Forest", "River"], "x")
    assert (names[1], names[8], len(names)) == ("Forest", "River", 10)
    with pytest.raises(DataError, match="both the class 'river'"):
        ClassNames(task("vision", "eurosat")).listed(["River", "river"], "x")


def test_the_order_of_another_files_labels() -> None:
    found = task("text", "mnli")
    assert order_of(["neutral", "Contradiction", "ENTAILMENT"], found, "x") == (2, 0, 1)
    assert order_of(["negative", "positive"], task("text", "rotten_tomatoes"), "x") == (0, 1)
    for names in (["neutral", "entailment"], ["neutral"] * 3, ["a", "b", "c"]):
        with pytest.raises(DataError):
            order_of(names, found, "x")


@given(st.text(max_size=12))
@settings(deadline=None)
def test_any_folder_has_a_class_or_an_error(name: str) -> None:
    for one in ("sun397", "gtsrb"):
        try:
            number = ClassNames(task("vision", one)).number(name, "x")
        except MagmergeError:
            continue
        assert folded(task("vision", one).classes[number]) or folded(name)
