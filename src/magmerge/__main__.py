"""The program: `magmerge`, and `python -m magmerge`. Ctrl-C is seen to before all else."""

import gc
import os
import signal
import sys
from types import FrameType
from typing import NoReturn

# The same as in cli.output, which is not loaded yet.
STOPPED = "stopped; nothing was left at the output"


def stop(*_: int | FrameType | None) -> None:
    """End the process at once, with one line and exit code 130, however deep in the import of a
    library it is. Where something is at work that must be put away first: KeyboardInterrupt.
    """
    # Modules that are not loaded yet, or in part, have nothing at work.
    unfinished = getattr(sys.modules.get("magmerge.checkpoints.output.staging"), "UNFINISHED", ())
    leave = getattr(sys.modules.get("magmerge.cli.output"), "leave_screen", lambda: True)
    if unfinished or not leave():
        raise KeyboardInterrupt
    line = (
        f'{{"error": {{"kind": "MagmergeError", "problem": "{STOPPED}", "source": null, "tensor": '
    )
    line += 'null, "remedy": null}}'
    where, text = (1, line) if "--json" in sys.argv else (2, STOPPED)
    os.write(where, f"{text}\n".encode())
    os._exit(130)


def program() -> NoReturn:
    """The installed program."""
    signal.signal(signal.SIGINT, stop)
    # Looking for cycles among the many objects that imports make takes long and finds nothing.
    gc.set_threshold(100_000, 50, 100)
    # To look for plugins pydantic opens the metadata of every package that is installed.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    from magmerge import cli

    cli.program()


if __name__ == "__main__":
    program()
