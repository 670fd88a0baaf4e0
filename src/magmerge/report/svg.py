"""matplotlib for reports and figures: its settings, the page's colours, and SVG with tooltips."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from io import StringIO
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from magmerge.core.errors import printable
from magmerge.core.extras import needed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE_STYLE = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
COLOURS: dict[str, str] = dict(
    re.findall(r"--([\w-]+): (#[0-9a-f]{6});", PAGE_STYLE.partition("@media")[0])
)
"""The page's colours by name where it is light; where it is dark the same names have others."""
NAMES = {colour: name for name, colour in COLOURS.items()}
PAINT = re.compile(r"\b(fill|stroke): (#[0-9a-f]{6})")
SPACES = re.compile(r' xmlns(?::xlink)?="[^"]*"')
"""Names of XML's that a page does without."""
REFERENCE = re.compile(r'(\bid="|href="#|url\(#)')
TIP = "tip: "
TIPPED = re.compile(rf"""<g id=(["']){TIP}(.*?)\1>""")
DOTS = 72
"""Units to an inch: one unit of the SVG is one pixel of a page that shows it at its own size."""
SETTINGS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "magmerge",
    "pdf.fonttype": 42,
    "path.simplify": False,
    "text.parse_math": False,
    "font.family": ["DejaVu Sans"],
    "font.size": 12,
    "text.color": COLOURS["ink"],
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "axes.labelcolor": COLOURS["ink"],
    "axes.unicode_minus": False,
    "xtick.color": COLOURS["muted"],
    "ytick.color": COLOURS["muted"],
    "grid.color": COLOURS["rule"],
}
_drawing = Lock()


@contextmanager
def drawing(**settings: Any) -> Iterator[None]:
    """magmerge's own settings of matplotlib, whatever the caller's are; his come back after.

    One thread at a time, since matplotlib's settings are global. MissingExtraError without it.
    """
    mpl = needed("matplotlib", "drawing reports and figures")
    with _drawing, mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(SETTINGS)
        mpl.rcParams.update(settings)
        yield


def tip(text: str) -> str:
    """The gid of an artist whose tooltip is `text`."""
    return f"{TIP}{printable(text)}"


def svg_text(figure: Figure, label: str) -> str:
    """The figure as an <svg> element with tooltips; `label` says in words what it shows."""
    raw = StringIO()
    undated = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(raw, format="svg", dpi=DOTS, metadata=undated)
    text = TIPPED.sub(r"<g><title>\2</title>", raw.getvalue())
    head = f'<svg role="img" aria-label="{escape(printable(label))}" '
    return head + text[text.index("<svg ") + len("<svg ") :]


def inline(figure: Figure, name: str, label: str) -> str:
    """The same for a page: in its colours, with ids that begin with `name`."""
    text = SPACES.sub("", re.sub(r"\s*\n\s*", " ", svg_text(figure, label)), count=2)
    text = REFERENCE.sub(rf"\1{name}-", text)
    return PAINT.sub(
        lambda paint: f"{paint[1]}: var(--{NAMES[paint[2]]})" if paint[2] in NAMES else paint[0],
        text,
    )
