"""The factors of a calibration as one small SVG, for model cards: it needs no other library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from magmerge.core.errors import printable
from magmerge.report.account import LayerModule
from magmerge.report.sentences import count_text, drawable, factor_text, list_text, name_of, short

WIDTH, HEIGHT = 720, 200
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 12, 26
CLOSEST = 18
"""Pixels between two ticks."""
TICKS = (1, 2, 0.5, 1.5, 1.2, 1.1, 1.05, 0.9, 0.8, 0.7, 3, 5, 0.3, 0.2, 10, 0.1, 30, 100, 0.01, 1e3)
"""Marks of the axis, those first that matter most."""
STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#5a6470}path{fill:none;stroke-linecap:round}"
    ".rule{stroke:#8a94a0;stroke-opacity:.35}.one{stroke:#8a94a0}"
    ".plain{stroke:#2a78c2}.sensitive{stroke:#d0622a}"
    "@media(prefers-color-scheme:dark){text{fill:#a9b3bd}.plain{stroke:#62a8ea}"
    ".sensitive{stroke:#ee8f5c}}"
)


def factors_picture(modules: Sequence[LayerModule]) -> str | None:
    """A dot for the factor of each layer, in model order, on a logarithmic axis; None where no
    layer has a factor that can be drawn. It is legible on light and on dark pages.
    """
    drawn = [module for module in modules if drawable(module.lead)]
    if not drawn:
        return None
    values = [module.lead.xi or 1.0 for module in drawn]
    room = max(0.06 * math.log(max(*values, 1.0) / min(*values, 1.0)), 0.02)
    low, high = math.log(min(*values, 1.0)) - room, math.log(max(*values, 1.0)) + room
    inner = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def up(value: float) -> float:
        return TOP + inner[1] * (high - math.log(value)) / (high - low)

    spots: dict[bool, list[str]] = {False: [], True: []}
    for place, (module, value) in enumerate(zip(drawn, values, strict=True)):
        across = LEFT + inner[0] * (place + 0.5) / len(drawn)
        spots[module.lead.sensitive].append(f"M{across:.1f} {up(value):.1f}h0")
    size = min(7.0, max(2.2, 0.6 * inner[0] / len(drawn)))
    parts = [f"<title>{_text(factors_text(modules))}</title><style>{STYLE}</style>"]
    ticks: list[float] = []
    for tick in TICKS:
        inside = low <= math.log(tick) <= high
        if inside and all(abs(up(tick) - up(other)) >= CLOSEST for other in ticks):
            ticks.append(tick)
            parts.append(_rule(up(tick), f"{tick:g}", "one" if tick == 1 else "rule"))
    for sensitive, name in ((False, "plain"), (True, "sensitive")):
        if spots[sensitive]:
            path = "".join(spots[sensitive])
            parts.append(f'<path class="{name}" stroke-width="{size:.1f}" d="{path}"/>')
    ends = (("start", LEFT, drawn[0]), ("end", WIDTH - RIGHT, drawn[-1]))
    for anchor, across, module in ends[: len(drawn)]:
        name = _text(short(module.name, 44))
        at = f'x="{across}" y="{HEIGHT - 8}" text-anchor="{anchor}"'
        parts.append(f"<text {at}>{name}</text>")
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
    return f'{head} width="{WIDTH}" height="{HEIGHT}">{"".join(parts)}</svg>\n'


def factors_text(modules: Sequence[LayerModule]) -> str:
    """What the picture shows, in a sentence."""
    drawn = [module.lead for module in modules if drawable(module.lead)]
    values = [lead.xi or 1.0 for lead in drawn]
    names = list(dict.fromkeys(name for lead in drawn for name in lead.calibrated_by))
    grown = sum(value > 1.0005 for value in values)
    shrunk = sum(value < 0.9995 for value in values)
    same = len(values) - grown - shrunk
    counts = {"grew": grown, "shrank": shrunk, "stayed as merged": same}
    told = list_text([f"{count:,} {what}" for what, count in counts.items() if count])
    text = (
        f"The factor by which {list_text([name_of(name) for name in names])} multiplied what the "
        f"merge changed, for {count_text(len(values), 'layer')} in model order: on average "
        f"{factor_text(math.fsum(values) / len(values))}, from {factor_text(min(values))} to "
        f"{factor_text(max(values))}; {told}"
    )
    sensitive = any(lead.sensitive for lead in drawn)
    return text + ("; sensitive layers in orange." if sensitive else ".")


def _rule(at: float, text: str, kind: str) -> str:
    line = f'<path class="{kind}" d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}"/>'
    return f'{line}<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{text}</text>'


def _text(text: str) -> str:
    """Text in XML, which has no control characters and no halves of pairs."""
    return escape(printable(text).encode("utf-8", "replace").decode())
