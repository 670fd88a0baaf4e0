"""Tables for the terminal. Names from files are shown as plain text, whatever they contain."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from magmerge.dtypes import spoken_size, torch_name
from magmerge.errors import printable

if TYPE_CHECKING:
    from magmerge.inspection import CheckpointInfo, TensorDifference
    from magmerge.types import LayerRecord, Plan


def plain(text: str, style: str = "") -> Text:
    """Text without markup and control characters."""
    return Text(printable(text), style=style, overflow="fold")


def table(title: str, *columns: str, numbers: Iterable[str] = ()) -> Table:
    """An empty table in the project's one style; the columns in `numbers` are right-aligned."""
    made = Table(title=plain(title, "bold"), title_justify="left", box=None, pad_edge=False)
    for column in columns:
        right = column in set(numbers)
        made.add_column(column, justify="right" if right else "left", header_style="dim")
    return made


def plan_table(plan: Plan) -> Table:
    """Every tensor: shape, dtype, what happens to it, and its shard."""
    made = table("plan", "tensor", "shape", "dtype", "action", "calibrate", "why", "file")
    for step in plan.steps:
        calibrate = "sensitive" if step.sensitive else "yes" if step.calibrated else ""
        made.add_row(
            plain(step.spec.name),
            "x".join(map(str, step.spec.shape)) or "scalar",
            torch_name(step.spec.dtype),
            step.action,
            calibrate,
            plain(step.reason),
            plain(plan.shards[step.shard].file),
        )
    return made


def plan_summary(plan: Plan) -> Text:
    """Counts of actions, and the disk and memory that will be needed."""
    actions = Counter(step.action for step in plan.steps)
    counted = ", ".join(f"{count} {action}" for action, count in actions.most_common())
    calibrated = sum(step.calibrated for step in plan.steps)
    files = f"{len(plan.shards)} shard{'s' if len(plan.shards) > 1 else ''}"
    lines = [
        f"{len(plan.steps)} tensors: {counted}; {calibrated} calibrated",
        f"disk {spoken_size(plan.disk)} in {files}",
        f"peak memory about {spoken_size(plan.memory)} beyond the interpreter and torch",
    ]
    if plan.copied:
        lines.append(f"copied beside them: {', '.join(plan.copied)}")
    return plain("\n".join(lines))


def records_table(records: Sequence[LayerRecord]) -> Table:
    """One row for each calibrated layer: its factor, norms and the cosine of the task vectors."""
    columns = ("xi", "least", "greatest", "norm before", "after", "cosine")
    made = table("layers", "layer", *columns, "gate", numbers=columns)
    for record in records:
        if not record.calibrated_by:
            continue
        made.add_row(
            plain(record.name),
            f"{record.xi:.3f}",
            f"{record.xi_min:.3f}",
            f"{record.xi_max:.3f}",
            f"{record.norm_before:.4g}",
            f"{record.norm_after:.4g}",
            "" if record.cosine is None else f"{record.cosine:+.3f}",
            "sensitive" if record.sensitive else "",
        )
    return made


def records_summary(records: Sequence[LayerRecord]) -> str:
    """How many layers were calibrated, and by how much."""
    calibrated = [record for record in records if record.calibrated_by]
    if not calibrated:
        return f"{len(records)} tensors merged"
    mean = sum(record.xi for record in calibrated) / len(calibrated)
    least = min(record.xi_min for record in calibrated)
    greatest = max(record.xi_max for record in calibrated)
    text = (
        f"{len(records)} tensors merged or calibrated; xi in {len(calibrated)} layers: "
        f"mean {mean:.3f}, from {least:.3f} to {greatest:.3f}"
    )
    free = sum(record.xi_free for record in calibrated) / len(calibrated)
    return text if f"{free:.3f}" == f"{mean:.3f}" else f"{text} (mean {free:.3f} without the gate)"


def checkpoint_table(info: CheckpointInfo) -> Table:
    """Every tensor of a checkpoint."""
    made = table(info.source, "tensor", "shape", "dtype", "kind", "size", numbers=["size"])
    for tensor in info.tensors:
        kind = tensor.kind if tensor.tied_to is None else f"tied to {tensor.tied_to}"
        made.add_row(
            plain(tensor.name),
            "x".join(map(str, tensor.shape)) or "scalar",
            torch_name(tensor.dtype),
            plain(kind),
            spoken_size(tensor.size),
        )
    return made


def difference_table(differences: Sequence[TensorDifference]) -> Table:
    """Every tensor that two checkpoints share: norms, difference, relative size and cosine."""
    columns = ("|a|", "|b|", "|b - a|", "relative", "cosine")
    made = table("difference", "tensor", *columns, numbers=columns)
    for one in differences:
        made.add_row(
            plain(one.name, "dim" if one.difference == 0 else ""),
            f"{one.norm_a:.4g}",
            f"{one.norm_b:.4g}",
            f"{one.difference:.4g}",
            f"{one.relative:.3g}",
            "" if one.cosine is None else f"{one.cosine:.6f}",
        )
    return made


def catalog_table(entries: Sequence[Mapping[str, Any]], kind: str) -> Table:
    """Methods or calibrators, with their parameters and sources."""
    made = table(f"{kind}s", "name", "parameters", "what it does", "source")
    for entry in entries:
        if entry["kind"] != kind:
            continue
        names = ", ".join([entry["name"], *entry["aliases"]])
        parameters = "\n".join(f"{p['name']}={p['default']}" for p in entry["parameters"])
        made.add_row(
            plain(names, "bold"), plain(parameters), plain(entry["summary"]), plain(entry["source"])
        )
        made.add_row()
    return made
