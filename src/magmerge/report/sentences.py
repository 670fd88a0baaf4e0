"""What the report says in words: numbers as text, and its sentences."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from magmerge.report.account import LayerAccount, LayerModule, MergeAccount, differs

ABSENT = "–"  # noqa: RUF001
NAMED = 3
"""Layers that a sentence names at most."""
LONGEST = 90
DIGEST, BEGINNING = re.compile("([a-z0-9-]+:)?([0-9a-z]+)"), 16
COUNTS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def factor_text(value: float | None) -> str:
    """A factor to three decimals, or to three digits where those say nothing."""
    if value is None:
        return ABSENT
    return f"{value:.3f}" if value == 0 or 0.01 <= abs(value) < 1000 else f"{value:.3g}"


def norm_text(value: float | None) -> str:
    """A norm to four digits."""
    return ABSENT if value is None else f"{value:#.4g}"


def short(text: str, longest: int = LONGEST) -> str:
    """`text`, or its two ends where it is longer than that."""
    if len(text) <= longest:
        return text
    return f"{text[: longest // 2]}…{text[-(longest // 2 - 1) :]}"


def digest_text(digest: str | None) -> str | None:
    """A file's digest by its kind and beginning; None where it is not known, or is none."""
    parts = DIGEST.fullmatch(digest or "")
    return f"{parts[1] or 'sha256:'}{parts[2][:BEGINNING]}" if parts else None


def count_text(count: int, noun: str) -> str:
    """Three layers, 1,200 layers, one layer."""
    word = COUNTS[count] if count < len(COUNTS) else f"{count:,}"
    return f"{word} {noun}{'' if count == 1 else 's'}"


def list_text(words: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join([*([", ".join(words[:-1])] if words[1:] else []), *words[-1:]])


def name_of(calibrator: str) -> str:
    """A calibrator's name as texts write it."""
    return calibrator.upper() if len(calibrator) <= 4 else calibrator


def layer_text(module: LayerModule) -> str:
    """One layer's factors, for a tooltip."""
    lead = module.lead
    text = f"{short(module.name)}{' (sensitive)' if lead.sensitive else ''}: "
    text += f"xi {factor_text(lead.xi)}"
    if lead.xi_min != lead.xi_max:
        text += f", rows {factor_text(lead.xi_min)} to {factor_text(lead.xi_max)}"
    text += f", before the gate {factor_text(lead.xi_free)}" if lead.held else ""
    others = [tensor for tensor in module.tensors if differs(tensor.xi, lead.xi)]
    return text + "".join(
        f"; its {tensor.name.rpartition('.')[2]} {factor_text(tensor.xi)}" for tensor in others
    )


def title_of(account: MergeAccount) -> str:
    """task_arithmetic + wsc of 6 experts."""
    recipe = account.recipe
    method = recipe.get("method")
    steps = [str(method)] if method else []
    steps += [name for name in account.calibrators if name not in steps]
    head = short(" + ".join(steps) or "merge")
    if recipe.get("merged"):
        head += f" of {short(str(recipe['merged']), 40)}"
    experts = len(account.experts)
    return f"{head}{', ' if recipe.get('merged') else ' of '}{count_text(experts, 'expert')}"


def summary(account: MergeAccount, modules: Sequence[LayerModule]) -> str:
    """The whole calibration in one paragraph."""
    calibrated = account.calibrated
    text = f"{_opening(account)} "
    if not calibrated:
        return (
            f"{text}No layer of it was calibrated: every merged task vector is as long as the "
            "method made it, so there is nothing to plot."
        )
    names = list_text([name_of(name) for name in account.calibrators])
    mean = _mean([layer.xi or 0.0 for layer in calibrated])
    text += (
        f"{names} then set the magnitude of {count_text(len(modules), 'layer')} "
        f"({_share(len(calibrated), len(account.layers))} merged tensors): "
        f"the mean factor xi on what the merge changed is {factor_text(mean)}. "
    )
    return text + gate_text(account, modules) + check_text(account)


def check_text(account: MergeAccount) -> str:
    """What a check on samples kept aside found, where there was one."""
    told = str(account.check.get("text", ""))
    return f" {told[:1].upper()}{told[1:]}." if told else ""


def _share(part: int, whole: int) -> str:
    return f"all {whole:,}" if part == whole > 1 else f"{part:,} of the {whole:,}"


def _opening(account: MergeAccount) -> str:
    experts, recipe = count_text(len(account.experts), "expert"), account.recipe
    if recipe.get("merged"):
        return f"A merged model that existed already was compared with its base and {experts}."
    method = short(str(recipe.get("method") or "an unnamed method"))
    return f"{experts[0].upper()}{experts[1:]} of one base model were merged by {method}."


def gate_text(account: MergeAccount, modules: Sequence[LayerModule]) -> str:
    """What the gate did to how many layers."""
    if not account.gated:
        return "The gate was off, so each layer got what the calibration asked for."
    stopped = sum(module.lead.stopped for module in modules)
    held = sum(module.lead.held for module in modules) - stopped
    if not stopped and not held:
        return "The gate had nothing to hold back."
    parts = [f"stopped {count_text(stopped, 'layer')} altogether"] if stopped else []
    parts += [f"held back {count_text(held, 'layer')} in part"] if held else []
    calibrated = account.calibrated
    free = [layer.xi_free for layer in calibrated if layer.xi_free is not None]
    without = f"; without it the mean would be {factor_text(_mean(free))}" if free else ""
    return f"The gate {' and '.join(parts)}{without}."


def _mean(values: Sequence[float]) -> float:
    return math.fsum(value / len(values) for value in values)


def extremes_text(modules: Sequence[LayerModule]) -> tuple[tuple[str, list[tuple[str, str]]], ...]:
    """The layers of the largest and of the smallest factors, with these."""
    ranked = sorted(modules, key=lambda module: module.lead.xi or 0.0)
    if len(ranked) < 2 * NAMED:
        return ()
    ends = ("Largest", ranked[: -NAMED - 1 : -1]), ("Smallest", ranked[:NAMED])
    return tuple(
        (word, [(module.name, factor_text(module.lead.xi)) for module in few]) for word, few in ends
    )


def deviation_text(modules: Sequence[LayerModule]) -> str:
    """How long the merged task vectors are beside the experts', before and after."""
    pairs = [
        (before, after)
        for lead in (module.lead for module in modules)
        if (before := lead.deviation(lead.norm_before)) is not None
        and (after := lead.deviation(lead.norm_after)) is not None
    ]
    before, after = (math.exp(_mean([math.log(pair[end]) for pair in pairs])) for end in (0, 1))
    nearer = sum(abs(math.log(after)) < abs(math.log(before)) for before, after in pairs)
    return (
        f"A merged task vector was {factor_text(before)} times as long as the experts' on "
        f"(geometric) average, and is {factor_text(after)} times as long now. "
        f"{len(pairs):,} layers are shown; {nearer:,} came nearer to 1."
    )


def hidden_text(missing: int) -> str | None:
    """How many layers have a factor that a logarithmic axis cannot show."""
    if not missing:
        return None
    text = count_text(missing, "layer")
    return f"{text[0].upper()}{text[1:]} with a factor of 0 or less cannot be drawn here."


def samples_text(samples: Mapping[str, int]) -> str:
    """How many samples of which expert."""
    counts = set(samples.values())
    if len(counts) == 1 and len(samples) > 1:
        return f"{counts.pop()} of each expert"
    return ", ".join(f"{short(name)} {count}" for name, count in samples.items())


def drawable(layer: LayerAccount) -> bool:
    """Whether the layer's factor has a place on a logarithmic axis."""
    return layer.xi is not None and layer.xi > 0


def cosine_text(value: float | None) -> str:
    """A cosine with its sign, empty where there is none."""
    return "" if value is None else f"{value:+.3f}"
