"""A page for each method and calibrator, and a table of each: from the registry and docstrings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from magmerge.core import registry
from magmerge.core.traits import Calibrator, Method, Parameter
from magmerge.core.validation import COMPOSED
from scripts.site import prose
from scripts.site.planned_memory import memory
from scripts.site.values import allowed

Stage = Method | Calibrator
MERGE = "magmerge merge --base B --expert E1 --expert E2"
DATA = " --data E1=texts1.jsonl --data E2=texts2.jsonl"


def pages() -> dict[str, str]:
    """Markdown by path: methods/NAME.md, calibrators/NAME.md, and an index.md of each."""
    made = {}
    for room, items in (("methods", registry.methods), ("calibrators", registry.calibrators)):
        rows = []
        for item in items:
            names = (item.name, *items.aliases(item.name))
            made[f"{room}/{item.name}.md"] = _page(item, names)
            rows.append((names, prose.cell(item.summary), item.source))
        if room == "calibrators":
            for name, parts in COMPOSED.items():
                made[f"{room}/{name}.md"] = _composed(name, parts)
                rows.append(((name,), ", then ".join(parts), _source_of(parts)))
        made[f"{room}/index.md"] = _table(room, rows)
    return made


def _table(room: str, rows: list[tuple[tuple[str, ...], str, str]]) -> str:
    lines = ["| name | what it does | source |", "|---|---|---|"]
    for (name, *aliases), summary, source in rows:
        also = "".join(f", `{alias}`" for alias in aliases)
        lines.append(f"| [`{name}`]({name}.md){also} | {summary} | {prose.source(source)} |")
    page = Path(__file__).with_name(f"{room}.md").read_text(encoding="utf-8")
    return page.replace("{table}", "\n".join(lines))


def _page(item: Stage, names: tuple[str, ...]) -> str:
    summary, formula, when = prose.paragraphs(item.fn)
    parts = [f"# {item.name}", prose.sentence(summary)]
    if names[1:]:
        parts.append("Also called " + ", ".join(f"`{name}`" for name in names[1:]) + ".")
    parts.append(f"**Source:** {prose.source(item.source)}")
    if when:
        parts += ["## When", prose.sentence(when)]
    parts += [
        "## Formula",
        *(map(prose.markdown, formula) if formula else [prose.sentence(summary)]),
    ]
    parts += ["## Parameters", _parameters(item.parameters)]
    parts += ["## What it takes", "\n".join(_takes(item))]
    parts += ["## Memory", memory(item), "## Use", _use(item)]
    return "\n\n".join(parts) + "\n"


def _parameters(parameters: tuple[Parameter, ...], prefix: str = "") -> str:
    if not parameters:
        return "None."
    lines = ["| name | default | values | meaning |", "|---|---|---|---|"]
    for own in parameters:
        default = "not given" if own.default is None else f"`{str(own.default).lower()}`"
        values, meaning = allowed(own.annotation), prose.cell(own.meaning)
        lines.append(f"| `{prefix}{own.name}` | {default} | {values} | {meaning} |")
    return "\n".join(lines)


def _takes(item: Stage) -> Iterator[str]:
    """What it needs, and what it acts on: a list."""
    if isinstance(item, Calibrator):
        samples = "unlabelled samples of each task" if item.needs == "inputs" else "weights alone"
        yield f"- Looks at {samples}."
        yield f"- Acts on layers of the kinds {', '.join(sorted(item.acts_on))}."
        made = "a factor" if item.returns == "factor" else "a new task vector"
        bound = (
            "the gate bounds it" if item.gated and item.returns == "factor" else "no gate bounds it"
        )
        yield f"- Gives {made}; {bound}."
        if item.order == "forward":
            yield "- Goes through the layers in the order of the forward pass."
        return
    least, most = item.experts
    count = (
        f"{least} or more"
        if most is None
        else str(least)
        if least == most
        else f"{least} to {most}"
    )
    base = "with or without a base" if item.base_free else "and a base"
    yield f"- Experts: {count}, {base}."
    if item.kinds is not None:
        kinds = ", ".join(sorted(item.kinds))
        yield f"- For layers of the kinds {kinds}; others get λ times the mean."
    if item.ordered:
        yield "- The order of the experts matters."
    if item.random:
        yield "- Draws at random: the same seed gives the same bits."


def _use(item: Stage) -> str:
    if isinstance(item, Calibrator):
        data = DATA if item.needs == "inputs" else ""
        return f"    {MERGE} --calibrate {item.name}{data} OUT"
    experts = " ".join(f"--expert E{number + 1}" for number in range(item.experts[1] or 2))
    settings = [f" --set {own.name}={own.default}" for own in item.parameters[:1] if own.default]
    return f"    magmerge merge --base B {experts} --method {item.name}{''.join(settings)} OUT"


def _composed(name: str, parts: tuple[str, ...]) -> str:
    links = ", then ".join(f"[{part}]({part}.md)" for part in parts)
    tables = [_parameters(registry.calibrators.get(part).parameters, f"{part}.") for part in parts]
    return (
        "\n\n".join(
            [
                f"# {name}",
                f"{links}, each on the result of the one before it, in one run.",
                f"**Source:** {prose.source(_source_of(parts))}",
                "## Parameters",
                *tables,
                "## Use",
                f"    {MERGE} --calibrate {name}{DATA} OUT",
            ]
        )
        + "\n"
    )


def _source_of(parts: tuple[str, ...]) -> str:
    """That of the paper which all parts are from."""
    return registry.calibrators.get(parts[0]).source.rpartition(",")[0]
