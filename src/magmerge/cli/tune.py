"""magmerge tune: search a recipe's marked values on held-out rows."""

from __future__ import annotations

from typing import Any

import magmerge
from magmerge.cli import options as o
from magmerge.cli.output import log, progress_reporter, show, show_json
from magmerge.cli.settings import sources_by_expert
from magmerge.core.errors import UsageError
from magmerge.report.terminal_tables import plain

MEASURES = ("suite", "perplexity", "unlabelled")
OF_MACHINE = ("threads", "memory", "device")


def command(options: o.Options) -> None:
    """Search the values that a recipe marks, and merge the best."""
    if not any(options[name] for name in MEASURES):
        raise UsageError(
            "nothing to measure by is given",
            remedy="give one of --suite, --perplexity and --unlabelled",
        )
    keywords = o.without(options, "recipe", "out", "unlabelled", "tasks", *OF_MACHINE)
    keywords["unlabelled"] = sources_by_expert(options["unlabelled"], "--unlabelled")
    keywords["tasks"] = options["tasks"] or None
    machine = {name: options[name] for name in OF_MACHINE}

    def note() -> str:
        return "; the trials so far are kept, and the same command with --resume goes on"

    with progress_reporter(note) as progress:
        result = magmerge.tune(
            options["recipe"], options["out"], **keywords, each=_say,
            machine=magmerge.Machine(**machine, progress=progress),
        )  # fmt: skip
    if options["json"]:
        show_json(result.document())
        return
    _show(result)


def _say(trial: Any, best: Any) -> None:
    """One line for a trial."""
    text = f"trial {trial.number}: {trial.words}: "
    if trial.same_as is not None:
        text += f"as trial {trial.same_as}, "
    text += f"failed: {trial.fault}" if trial.score is None else f"{trial.score:.5g}"
    if best is not None:
        text += f" (best {best.score:.5g}, trial {best.number})"
    log().print(plain(text), soft_wrap=not log().is_terminal)


def _show(result: Any) -> None:
    """Default, best and gain, and what to think of them."""
    default, best = result.default, result.best
    lines = [plain(f"{result.words}, on {result.count} held-out rows", "bold")]
    lines += [plain(f"  {name}: {rows}", "dim") for name, rows in result.rows.items()]
    told = "failed" if default.score is None else f"{default.score:.5g}"
    lines.append(plain(f"  default {told}"))
    lines.append(plain(f"  best    {best.score:.5g} (trial {best.number}: {best.words})"))
    if result.gain is not None:
        lines.append(plain(f"  gain    {result.gain:.5g} ± {result.error:.2g} (standard error)"))
    lines += [plain(f"  {note}", "yellow") for note in _notes(result)]
    if result.folder is not None:
        lines.append(plain(f"  best recipe, trials and plots are in {result.folder}"))
    if result.result is not None:
        lines.append(plain(f"  wrote {result.result.path} in {result.seconds:.1f} s in all"))
    show(*lines)


def _notes(result: Any) -> list[str]:
    """What a reader must know before he believes the gain."""
    failed = sum(trial.score is None for trial in result.trials)
    notes = [f"{failed} of {len(result.trials)} trials failed"] if failed else []
    if result.best.number == 0:
        return [*notes, "no trial is better than the default"]
    if result.in_noise:
        notes.append(
            "the gain is within noise: fewer than two standard errors; look at more rows before "
            "believing it"
        )
    notes.append("the best of many trials is flattered by its rows: measure it on test rows")
    return notes
