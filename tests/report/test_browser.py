"""The page in a real browser, where one is installed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from magmerge.report.page import render
from tests.report.browser import Browser, program
from tests.report.documents import document, evaluation

pytestmark = pytest.mark.skipif(program() is None, reason="no Chromium is installed")
WIDTHS = (390, 768, 1280)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("report") / "report.html"
    names = [f"/runs/a very long name of a model {i}" for i in range(8)]
    text = render(document(blocks=12), [evaluation(name) for name in names])
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_loads_nothing_complains_of_nothing_and_does_not_scroll_sideways(
    browser: Browser, page: Path, width: int, dark: bool
) -> None:
    browser.open(page, width, dark=dark)
    assert browser.requests() == [page.as_uri()]
    assert browser.complaints() == []
    assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
    paper = browser.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert paper == ("rgb(21, 23, 26)" if dark else "rgb(255, 255, 255)")


@pytest.mark.parametrize("width", WIDTHS)
def test_each_plot_is_seen_once_and_its_text_has_the_page_s_colour(
    browser: Browser, page: Path, width: int
) -> None:
    browser.open(page, width)
    shown = "[...document.querySelectorAll('svg[role=img]')].filter(s => s.checkVisibility())"
    assert browser.evaluate(f"{shown}.length") == 4
    assert browser.evaluate(f"{shown}.every(s => s.getBoundingClientRect().width > 300)")
    colours = (
        "new Set([...document.querySelectorAll('svg text')].map(t => getComputedStyle(t).fill))"
    )
    assert browser.evaluate(f"[...{colours}]") == ["rgb(93, 99, 108)"]


def test_no_label_of_a_plot_lies_upon_another_or_outside(browser: Browser, page: Path) -> None:
    for width in WIDTHS:
        browser.open(page, width)
        overlaps = browser.evaluate(
            """[...document.querySelectorAll('svg[role=img]')].filter(s => s.checkVisibility())
            .flatMap(svg => {
              const page = svg.getBoundingClientRect();
              const boxes = [...svg.querySelectorAll('text')].map(t => t.getBoundingClientRect());
              const meet = (a, b) => a.left < b.right && b.left < a.right
                && a.top < b.bottom && b.top < a.bottom;
              return boxes.filter((box, place) =>
                box.left < page.left - 1 || box.right > page.right + 1
                || boxes.slice(0, place).some(other => meet(box, other)));
            }).length"""
        )
        assert overlaps == 0


def test_a_script_in_a_name_does_not_run(browser: Browser, tmp_path: Path) -> None:
    content = document(blocks=1)
    for one in content["layers"]:
        one["name"] = "</title></svg><script>document.title='run'</script><img src=x onerror=1>"
    file = tmp_path / "hostile.html"
    file.write_text(render(content, title="safe"), encoding="utf-8")
    browser.open(file)
    assert browser.evaluate("document.title") == "safe"
    assert browser.evaluate("document.querySelectorAll('script, img').length") == 0
    assert browser.requests() == [file.as_uri()]
    assert browser.complaints() == []


def test_the_page_can_be_printed(browser: Browser, page: Path, tmp_path: Path) -> None:
    browser.open(page, dark=True)
    browser.print(tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
