"""magmerge export: hand a model over to llama.cpp and Ollama."""

from __future__ import annotations

import shlex

import magmerge
from magmerge.cli import options as o
from magmerge.cli.output import show, show_json
from magmerge.core.dtypes import spoken_size
from magmerge.core.errors import UnknownNameError, suggestion
from magmerge.report.terminal_tables import plain

FORMATS = ("gguf",)


def command(options: o.Options) -> None:
    """Write a model as a GGUF file by llama.cpp's converter, and say how Ollama takes it."""
    if options["format"] not in FORMATS:
        told = options["format"]
        raise UnknownNameError(
            f"there is no export to {told!r}", remedy=f"{suggestion(told, FORMATS)} (export gguf)"
        )
    done = magmerge.export(**o.without(options, "format"))
    if options["json"]:
        told = {"path": str(done.path), "size": done.size, "tensors": done.tensors}
        more = {"chat_template": done.chat_template, "command": list(done.command)}
        show_json({**told, **more, "modelfile": done.modelfile})
        return
    held = "its chat template is in it" if done.chat_template else "it has no chat template"
    show(
        plain(f"wrote {done.path} ({spoken_size(done.size)}, {done.tensors} tensors); {held}"),
        plain("for Ollama, a file called Modelfile:"),
        plain(f"  {done.modelfile.strip()}"),
        plain("then"),
        plain(f"  ollama create {shlex.quote(done.path.stem.lower())} -f Modelfile"),
    )
