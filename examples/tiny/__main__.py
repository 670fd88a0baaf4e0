"""Write small models, data and a pipeline file, to try `magmerge reproduce` on in a minute.

    .venv/bin/python -m examples.tiny clip-b32 TINY
    .venv/bin/magmerge reproduce TINY/clip-b32.yaml --inputs TINY/inputs --data TINY/data

A small random base is tuned for a moment for each task, on generated images or texts; all is in the
layouts of the published files. The figures say nothing about the methods.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from examples.tiny import write_tiny


def main() -> None:
    """Write them, and say what comes next."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pipeline", help="clip-b32, clip-b16, clip-l14, bert, glue or llama")
    parser.add_argument("folder", type=Path, help="a new or an empty folder")
    parser.add_argument("--task", action="append", help="only this task; repeat for more")
    given = parser.parse_args()
    if given.folder.exists() and any(given.folder.iterdir()):
        parser.error(f"{given.folder} holds other things; name a new folder")
    file = write_tiny(given.pipeline, given.folder, given.task)
    code = " --allow-code" if given.pipeline == "llama" else ""
    places = f"--inputs {given.folder / 'inputs'} --data {given.folder / 'data'}"
    print(f"now run: magmerge reproduce {file} {places}{code}")


if __name__ == "__main__":
    main()
