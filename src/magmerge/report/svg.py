"""matplotlib's figures as SVG inside a page: colours of the page, no ids that clash, tooltips."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from threading import Lock
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from magmerge.errors import MissingExtraError, printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.figure import Figure

NAMES = (
    "ink",
    "muted",
    "rule",
    "band",
    "series-1",
    "series-2",
    "series-3",
    "series-4",
    "paper",
    "whisker",
)
COLOURS = {name: f"#01020{place}" for place, name in enumerate(NAMES)}
"""What a figure is drawn with in place of the page's colours, which it takes in the end."""
PAGE_COLOURS = {code: f"var(--{name})" for name, code in COLOURS.items()}
CODE = re.compile("#01020[0-9]")
REFERENCE = re.compile(r"#([\w-]+)")
FAMILY = re.compile(r"font-family:[^;]*;?")
FONT = re.compile(r"font: (?:(\S+) )?([\d.]+px)[^;]*")
SPACES = re.compile(r"\s+")
LONG = re.compile(r"-?\d+\.\d{3,}")
DOTS = 72
"""Units to an inch: one unit of the SVG is one pixel of a page that shows it at its own size."""
SETTINGS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "magmerge",
    "path.simplify": False,
    "text.parse_math": False,
    "font.family": ["DejaVu Sans"],
    "font.size": 12,
    "text.color": COLOURS["ink"],
    "axes.edgecolor": COLOURS["rule"],
    "axes.labelcolor": COLOURS["ink"],
    "axes.unicode_minus": False,
    "xtick.color": COLOURS["muted"],
    "ytick.color": COLOURS["muted"],
    "grid.color": COLOURS["rule"],
}
_drawing = Lock()


@contextmanager
def drawing() -> Iterator[None]:
    """The report's own settings of matplotlib, whatever the caller's are; his come back after.

    One thread at a time, since matplotlib's settings are global.
    """
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise MissingExtraError(
            "the report needs matplotlib", remedy="pip install 'magmerge[report]'"
        ) from error
    with _drawing, mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(SETTINGS)
        yield


def inline(figure: Figure, name: str, label: str, tips: Mapping[str, Sequence[str]]) -> str:
    """The figure as an <svg> element.

    `name` keeps its ids apart from those of other figures in the page; `label` says in words what
    it shows; `tips` has a tooltip for each mark of the artist of that gid.
    """
    raw = BytesIO()
    figure.savefig(raw, format="svg", dpi=DOTS, metadata={"Date": None, "Creator": None})
    root = ElementTree.fromstring(raw.getvalue())
    for child in list(root):
        if _plain(child.tag) == "metadata" or child.find(".//{*}style") is not None:
            root.remove(child)
    _add_tips(root, tips)
    kept = {name for one in root.iter() for name in _references(one)}
    for element in root.iter():
        _adapt(element, name, kept)
    view = root.attrib["viewBox"]
    root.attrib = {"viewBox": view, "role": "img", "aria-label": printable(label)}
    return ElementTree.tostring(root, encoding="unicode")


def _add_tips(root: ElementTree.Element, tips: Mapping[str, Sequence[str]]) -> None:
    for group in root.iter():
        texts = tips.get(group.attrib.get("id", ""), ())
        marks = group.findall(".//{*}use") if texts else []
        # matplotlib leaves out what lies outside the picture: then no mark is known by its place.
        if len(marks) == len(texts):
            for mark, text in zip(marks, texts, strict=True):
                ElementTree.SubElement(mark, "title").text = printable(text)


def _references(element: ElementTree.Element) -> set[str]:
    return {
        name
        for key, value in element.attrib.items()
        if _plain(key) in ("href", "clip-path")
        for name in REFERENCE.findall(value)
    }


def _adapt(element: ElementTree.Element, name: str, kept: set[str]) -> None:
    """Plain names without namespaces, ids of this figure only, the page's colours and font."""
    element.tag = _plain(element.tag)
    element.tail = None
    if not (element.text or "").strip():
        element.text = None
    given = {_plain(key): value for key, value in element.attrib.items()}
    if given.pop("id", None) in kept:
        given["id"] = f"{name}-{element.attrib['id']}"
    if given.get("transform", "").startswith("rotate(-0 "):
        del given["transform"]
    for key in {"href", "clip-path"} & given.keys():
        given[key] = REFERENCE.sub(rf"#{name}-\1", given[key])
    for key in {"d", "x", "y"} & given.keys():
        given[key] = LONG.sub(_rounded, SPACES.sub(" ", given[key]).strip())
    if "style" in given:
        given["style"] = _paint(given["style"])
    element.attrib = given
    styles = {mark.attrib.get("style") for mark in element if _plain(mark.tag) == "use"}
    if len(styles) == 1 and (style := styles.pop()):
        element.attrib["style"] = _paint(style)
        for mark in element:
            del mark.attrib["style"]


def _paint(style: str) -> str:
    """The style with the page's colours, and without a font family of its own."""
    style = FAMILY.sub("", FONT.sub(_sized, style))
    return CODE.sub(lambda found: PAGE_COLOURS[found[0]], style)


def _rounded(found: re.Match[str]) -> str:
    """A coordinate to a hundredth of a pixel."""
    return f"{float(found[0]):.2f}"


def _sized(found: re.Match[str]) -> str:
    weight = f"font-weight: {found[1]}; " if found[1] else ""
    return f"{weight}font-size: {found[2]}"


def _plain(name: object) -> str:
    """An XML name without its namespace."""
    return str(name).rpartition("}")[2]
