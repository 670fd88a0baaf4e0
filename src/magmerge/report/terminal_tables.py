"""Tables for the terminal. Names from files are shown as plain text, whatever they contain."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from magmerge.core.dtypes import spoken_size, torch_name
from magmerge.core.errors import printable, printable_lines
from magmerge.report.parameter_text import place_text, value_text

if TYPE_CHECKING:
    from magmerge.checkpoints.load_checks import Check
    from magmerge.checkpoints.output.leftovers import Leftover
    from magmerge.core.types import Action, Choice, LayerRecord, Plan, Uncovered
    from magmerge.engine.inspection import CheckpointInfo, TensorDifference


SPOKEN: dict[Action, str] = {
    "merge": "merged",
    "mean": "set to lambda times the mean",
    "average": "averaged",
    "carry": "carried over",
    "tie": "tied",
}
"""Actions as a summary tells them."""


NAMED = 3
"""Layers of one reason that a summary names."""


def plain(text: str, style: str = "") -> Text:
    """Text without markup and control characters."""
    return Text(printable(text), style=style, overflow="fold")


def paragraph(text: str, style: str = "") -> Text:
    """The same in several lines."""
    return Text(printable_lines(text), style=style, overflow="fold")


def table(title: str, *columns: str, numbers: Iterable[str] = ()) -> Table:
    """An empty table in the project's one style; the columns in `numbers` are right-aligned."""
    rows = Table(title=plain(title, "bold") or None, title_justify="left", box=None, pad_edge=False)
    for column in columns:
        right = column in set(numbers)
        rows.add_column(column, justify="right" if right else "left", header_style="dim")
    return rows


def plan_table(plan: Plan) -> Table:
    """Every tensor: shape, dtype, what happens to it and why; its shard if there are several."""
    several = len(plan.shards) > 1
    columns = ("tensor", "shape", "dtype", "action", "why")
    rows = table("plan", *columns, *(["file"] if several else []))
    for step in plan.steps:
        calibrated = " + calibrate" if step.calibrated else ""
        rows.add_row(
            plain(step.spec.name),
            "x".join(map(str, step.spec.shape)) or "scalar",
            torch_name(step.spec.dtype),
            f"{step.action}{calibrated}{' (sensitive)' if step.sensitive else ''}",
            plain(", ".join([step.reason, *(f"{n} {_setting(v)}" for n, v in step.params)])),
            *([plain(plan.shards[step.shard].file)] if several else []),
        )
    return rows


def plan_summary(plan: Plan) -> Text:
    """Counts of actions, and the disk and memory that will be needed."""
    # Rows that other models have are steps of their own, but no tensors.
    tensors = {step.tensor_key: step for step in reversed(plan.steps)}.values()
    actions = Counter(step.action for step in tensors)
    counted = ", ".join(f"{word} {actions[act]}" for act, word in SPOKEN.items() if actions[act])
    calibrated = sum(step.calibrated for step in tensors)
    files = f" in {len(plan.shards)} shard{'s' if len(plan.shards) > 1 else ''}"
    # An adapter has modules, and no shards.
    noun = "tensors" if plan.shards else "modules"
    lines = [
        f"{len(tensors)} {noun}: {counted}; calibrated {calibrated}",
        f"disk {spoken_size(plan.disk)}{files if plan.shards else ', at most'}",
        f"peak memory about {spoken_size(plan.memory)} beyond the interpreter and torch"
        + (
            f", of that {spoken_size(plan.live)} for the model that is run and the layer at work; "
            "what it computes on its samples comes on top"
            if plan.live
            else ""
        ),
    ]
    lines += [*plan.blocks, *choice_lines(plan.choices)]
    if plan.copied:
        lines.append(f"copied beside them: {', '.join(plan.copied)}")
    return paragraph("\n".join(lines))


def choice_lines(choices: Sequence[Choice]) -> list[str]:
    """Each parameter that varies by layer: its values, and how many merged tensors take them."""
    values: dict[str, list[str]] = {}
    several = Counter(choice.parameter for choice in choices)
    for choice in choices:
        place = {"filter": choice.filter, "layers": choice.layers, "stack": choice.stack}
        where = place_text(place, alone=several[choice.parameter] == 1)
        tensors = f"{choice.tensors} tensor{'' if choice.tensors == 1 else 's'}"
        text = f"{value_text(choice.value, _setting)} for {where} ({tensors})"
        values.setdefault(choice.parameter, []).append(text)
    return [f"{parameter}: {', '.join(texts)}" for parameter, texts in values.items()]


def _setting(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def records_table(records: Sequence[LayerRecord]) -> Table:
    """One row for each layer: its factors xi, norms of the task vector, cosine of the experts'."""
    columns = ("xi", "least", "greatest", "no gate", "norm before", "after", "cosine")
    noted = any(record.notes for record in records)
    extra = ("list", "notes") if noted else ("list",)
    rows = table("layers", "layer", *columns, *extra, numbers=columns)
    for record in records:
        factors = (record.xi, record.xi_min, record.xi_max, record.xi_free)
        rows.add_row(
            plain(record.name),
            *(f"{factor:.3f}" if record.calibrated_by else "" for factor in factors),
            f"{record.norm_before:#.4g}",
            f"{record.norm_after:#.4g}",
            "" if record.cosine is None else f"{record.cosine:+.3f}",
            "sensitive" if record.sensitive else "",
            *([plain("; ".join(record.notes))] if noted else []),
        )
    return rows


def records_summary(plan: Plan, records: Sequence[LayerRecord], *, merged: bool) -> str:
    """How many tensors were merged, calibrated and carried over, and by how much they grew."""
    carried = sum(step.action == "carry" for step in plan.steps if step.whole is None)
    parts = [step.tensor_key for step in plan.steps if step.whole and step.action != "carry"]
    count = len(records) - len(parts) + len(set(parts))
    calibrated = [record for record in records if record.calibrated_by]
    noun = "tensors" if plan.shards else "modules"
    told = [f"{count} {noun} merged"] if merged else []
    told += [f"{len(calibrated)} calibrated"] if calibrated else []
    told += [f"{carried} {'carried over unchanged' if plan.shards else 'left out'}"] * bool(carried)
    text = ", ".join(told)
    noted = [record for record in records if record.notes]
    if noted:
        text += f"\n{len(noted)} layers with a note (-v lists them), such as: {noted[0].notes[0]}"
    return text + _growth(calibrated) if calibrated else text


def _growth(calibrated: Sequence[LayerRecord]) -> str:
    """By which factors layers were calibrated; else how their lengths changed."""
    if all(record.xi_min == record.xi_max == record.xi_free == 1 for record in calibrated):
        ratios = [r.norm_after / r.norm_before for r in calibrated if r.norm_before]
        if not ratios:
            return ""
        mean, least, greatest = sum(ratios) / len(ratios), min(ratios), max(ratios)
        span = f"layers from {least:.3f} to {greatest:.3f}"
        return f"\nlength of the task vector, after by before: mean {mean:.3f}, {span}"
    mean = sum(record.xi for record in calibrated) / len(calibrated)
    least = min(record.xi_min for record in calibrated)
    greatest = max(record.xi_max for record in calibrated)
    text = f"\nxi on the task vector: mean {mean:.3f}, rows from {least:.3f} to {greatest:.3f}"
    free = sum(record.xi_free for record in calibrated) / len(calibrated)
    return text if f"{free:.3f}" == f"{mean:.3f}" else f"{text} (mean {free:.3f} without the gate)"


def check_lines(check: Mapping[str, Any]) -> list[str]:
    """What a check on samples kept aside found, where no warning has told it already."""
    text = check.get("text", "")
    return [text] if text and text not in check["notes"] else []


def checkpoint_table(info: CheckpointInfo) -> Table:
    """Every tensor of a checkpoint."""
    rows = table(info.source, "tensor", "shape", "dtype", "kind", "size", numbers=["size"])
    for tensor in info.tensors:
        kind = tensor.kind if tensor.tied_to is None else f"tied to {tensor.tied_to}"
        rows.add_row(
            plain(tensor.name),
            "x".join(map(str, tensor.shape)) or "scalar",
            torch_name(tensor.dtype),
            plain(kind),
            spoken_size(tensor.size),
        )
    return rows


def difference_table(differences: Sequence[TensorDifference]) -> Table:
    """Every tensor that two checkpoints share: norms, difference, relative size and cosine."""
    columns = ("|a|", "|b|", "|b - a|", "relative", "cosine")
    rows = table("difference", "tensor", *columns, numbers=columns)
    for tensor in differences:
        rows.add_row(
            plain(tensor.name, "dim" if tensor.difference == 0 else ""),
            f"{tensor.norm_a:#.4g}",
            f"{tensor.norm_b:#.4g}",
            f"{tensor.difference:#.4g}",
            f"{tensor.relative:#.3g}",
            "" if tensor.cosine is None else f"{tensor.cosine:.6f}",
        )
    return rows


def checks_table(source: str, checks: Sequence[Check]) -> Table:
    """Every check of a model: ok, a fault with its remedy, or why it was not made."""
    rows = table(source, "check", "", "what was seen")
    for (part, quiet), run in groupby(checks, _part_and_quiet):
        group = list(run)
        names = [check.name.rpartition(": ")[2] for check in group] if quiet else []
        if names:
            name = plain(part or "config, tokenizer")
            rows.add_row(name, plain("ok", "green"), plain(", ".join(names), "dim"))
            continue
        for check in group:
            if not check.faults:
                state = ("ok", "green") if check.done else ("not made", "dim")
                rows.add_row(plain(check.name), plain(*state), plain(check.seen, "dim"))
            for fault in check.faults:
                told = plain(fault.text) + paragraph(f"\nremedy: {fault.remedy}", "dim")
                rows.add_row(plain(check.name), plain("fault", "bold red"), told)
    return rows


def _part_and_quiet(check: Check) -> tuple[str, bool]:
    """The part of a pipeline that a check is of, and whether there is nothing to say of it."""
    return check.name.rpartition(": ")[0], not check.faults and not check.seen


def leftovers_table(leftovers: Sequence[Leftover], now: float) -> Table:
    """What runs left: each path, what it is, its size and age, and whether a run has it."""
    rows = table("left by runs", "path", "what", "size", "last changed", "", numbers=["size"])
    for left in leftovers:
        state = "--resume goes on from it" if left.resumable else ""
        rows.add_row(
            plain(str(left.path)),
            plain(left.words),
            spoken_size(left.size),
            f"{max(now - left.changed, 0) / 3600:.1f} h ago",
            plain("a run may be at work on it" if left.at_work else state, "dim"),
        )
    return rows


def catalog_table(entries: Sequence[Mapping[str, Any]], kind: str) -> Table:
    """Methods or calibrators, with their parameters and sources."""
    rows = table(f"{kind}s", "name", "parameters", "what it does", "source")
    for entry in entries:
        if entry["kind"] != kind:
            continue
        names = ", ".join([entry["name"], *entry["aliases"]])
        parameters = "\n".join(f"{p['name']}={p['default']}" for p in entry["parameters"])
        summary = plain(entry["summary"]) + paragraph(f"\ntakes {entry['takes']}", "dim")
        rows.add_row(plain(names, "bold"), paragraph(parameters), summary, plain(entry["source"]))
        rows.add_row()
    return rows


WORST = 20
"""Layers of a ranking that are shown if not all are asked for."""


def sensitivity_table(
    layers: Mapping[str, float], sensitive: Sequence[str], *, whole: bool
) -> Table:
    """Layers by how much worse the score gets, worst first; the sensitive ones are marked."""
    ranked = sorted(layers, key=lambda name: -layers[name])
    rows = table("sensitivity", "", "layer", "worse by", numbers=["worse by"])
    marked = set(sensitive)
    for name in ranked if whole else ranked[:WORST]:
        rows.add_row("*" if name in marked else "", plain(name), f"{layers[name]:.3g}")
    if len(ranked) > WORST and not whole:
        rows.add_row("", f"and {len(ranked) - WORST} more (-v)", "")
    return rows


def uncovered_lines(uncovered: Sequence[Uncovered]) -> list[str]:
    """What a calibration left alone because it could not measure it, by reason."""
    reasons: dict[str, list[str]] = {}
    for layer in uncovered:
        reasons.setdefault(layer.reason, []).append(layer.layer)
    return [
        f"not calibrated, {reason}: {', '.join(layers[:NAMED])}"
        + (f" and {len(layers) - NAMED} more" if len(layers) > NAMED else "")
        for reason, layers in reasons.items()
    ]
