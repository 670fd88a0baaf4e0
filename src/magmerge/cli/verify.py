"""magmerge verify: whether what is written is what its library loads."""

from __future__ import annotations

from dataclasses import asdict

import magmerge
from magmerge.cli import options as o
from magmerge.cli.output import progress_reporter, show, show_json
from magmerge.core.errors import ParameterError
from magmerge.report.terminal_tables import checks_table, plain


def command(options: o.Options) -> None:
    """Check a written model: files, config, tensors, record, and with --load its library."""
    if options["allow_code"] and options["against"] is None:
        raise ParameterError(
            "--allow-code speaks of a recipe", remedy="name it: --against RECIPE.yaml"
        )
    with progress_reporter() as progress:
        machine = magmerge.Machine(options["threads"], progress=progress)
        live = magmerge.Live(build=options["allow_code"])
        keywords = o.without(options, "threads", "allow_code")
        found = magmerge.verify(**keywords, live=live, machine=machine)
    faults = sum(len(check.faults) for check in found.checks)
    if options["json"]:
        checks = [asdict(check) for check in found.checks]
        show_json({"source": found.source, "sound": found.sound, "checks": checks})
    else:
        told = f"{faults} fault{'' if faults == 1 else 's'}" if faults else "sound"
        show(checks_table(found.source, found.checks), plain(told, "bold"))
    if not found.sound:
        raise SystemExit(1)
