"""The league: its cells, its file of results, intervals, and the tables of its page."""

from pathlib import Path

import pytest
import torch
from benchmarks.league import figures, page
from benchmarks.league.cells import BUDGETS, LIMITS, METHODS, STAGES, Cell, cells
from benchmarks.league.results import Book

TASKS = {"a": 40, "b": 11}


def right(*shares: float, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        task: torch.rand(rows, generator=generator) < share
        for (task, rows), share in zip(TASKS.items(), shares, strict=True)
    }


@pytest.fixture
def book(tmp_path: Path) -> Book:
    made = Book("toy", tmp_path)
    for number, cell in enumerate(
        [*LIMITS, Cell("average"), figures.LEAST, *(Cell("average", "fsc", 8, s) for s in (0, 1))]
    ):
        made.keep(cell, right(0.3 + 0.1 * number, 0.5, seed=number), {"cpu_s": 1.0})
    return made


def test_every_cell_has_a_key_of_its_own_that_gives_it_back() -> None:
    keys = [cell.key for cell in cells()]
    assert len(set(keys)) == len(keys)
    assert [Cell.of(key) for key in keys] == list(cells())


def test_cells_are_the_whole_grid_limits_first() -> None:
    grid = set(cells())
    assert cells()[:2] == LIMITS
    drawn = ("fsc", "dsc", "regression_samples", "featcal", "regmean_plusplus")
    assert set(drawn) < set(STAGES)
    for merge in METHODS:
        assert {Cell(merge, name) for name in ("none", "tuned", "wsc", "regression")} <= grid
        for rows in BUDGETS[1:]:
            assert {Cell(merge, name, rows, s) for name in drawn for s in range(5)} <= grid


def test_a_book_gives_back_what_was_kept_and_goes_on(book: Book, tmp_path: Path) -> None:
    again = Book("toy", tmp_path)
    assert again.tasks == TASKS
    assert again.lines == book.lines
    expected = right(0.3, 0.5, seed=0)
    found = again.right(LIMITS[0])
    assert all(torch.equal(found[task].bool(), rows) for task, rows in expected.items())
    assert again.draws(Cell("average", "fsc", 8)) == [Cell("average", "fsc", 8, s) for s in (0, 1)]


def test_a_book_of_other_test_rows_is_refused(book: Book) -> None:
    with pytest.raises(ValueError, match="was measured on"):
        book.keep(Cell("ties"), {"a": torch.ones(3, dtype=torch.bool)}, {})


def test_the_interval_is_that_of_the_means_over_draws(book: Book) -> None:
    cell = Cell("average", "fsc", 8)
    own, plain = figures.known(book, cell), figures.known(book, Cell("average"))
    assert own is not None
    assert plain is not None
    gain = figures.difference(own, plain)
    draws = [book.right(one) for one in book.draws(cell)]
    parts = []
    for task in TASKS:
        mean = sum(one[task].double() for one in draws) / 2
        parts.append(mean - book.right(Cell("average"))[task].double())
    variance = sum(float(part.var()) / len(part) for part in parts) / 4
    assert gain.points == pytest.approx(50 * sum(float(part.mean()) for part in parts))
    assert gain.half == pytest.approx(196 * variance**0.5)


def test_shares_of_the_gap_go_from_the_tuned_average_to_the_experts(book: Book) -> None:
    assert figures.closed(book, figures.LEAST) == 0
    assert figures.closed(book, Cell("experts")) == 100
    assert figures.closed(book, Cell("ties")) is None


def test_rankings_leave_out_labels_controls_and_what_a_suite_lacks(book: Book) -> None:
    assert [entry.cell for entry in figures.ranking([book], 0)] == [Cell("average")]
    assert [entry.cell for entry in figures.ranking([book], 8)] == [Cell("average", "fsc", 8)]


def test_a_merge_is_lowered_where_it_loses_more_than_the_interval() -> None:
    cell = Cell("average", "fsc", 8)
    assert figures.Calibrated("toy", cell, figures.Gain(-2.0, 1.9), 1).lowered
    assert not figures.Calibrated("toy", cell, figures.Gain(-2.0, 2.1), 1).lowered


def test_the_page_shows_what_the_files_of_results_hold() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.filled(text, page.books()) == text
    for book in page.with_limits(page.books()):
        assert f"league-{book.suite}.png" in text
        assert (page.PICTURES / f"league-{book.suite}.png").is_file()
