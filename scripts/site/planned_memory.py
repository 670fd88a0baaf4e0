"""How much memory a method or calibrator takes, as `magmerge plan` says it for one large layer."""

from __future__ import annotations

import json
import struct
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import magmerge
from magmerge.core.traits import Calibrator, Method
from magmerge.engine.memory import cut_of

SIDE, EXPERTS = 4096, 4
ROOM = "1000GB"
"""More than any layer here takes, so that no plan is refused."""
CUTS = {
    "entries": "A layer is merged in pieces: `--memory` bounds them, however large it is.",
    "rows": "A layer is taken by rows: `--memory` bounds them, however large it is.",
    "whole": "A layer is taken as a whole.",
}
IN_TURN = "Its experts are read one after the other, so that more of them need hardly more."
RUN = """The merged model is run on the samples. `magmerge plan` with your models and samples states
what that takes; `--offload` keeps the weights of one block in memory at a time."""


def memory(item: Method | Calibrator) -> str:
    """What of a layer is in memory at once, and what a plan states for a large one."""
    if isinstance(item, Calibrator) and item.needs == "inputs":
        return RUN
    keywords = {own.keyword: own.default for own in item.parameters}
    words = [CUTS[cut_of(item, keywords)]]
    if isinstance(item, Method) and item.in_turn:
        words.append(IN_TURN)
    return " ".join([*words, _stated(item)])


def _stated(item: Method | Calibrator) -> str:
    stage: dict[str, Any] = {"method": item.name}
    if isinstance(item, Calibrator):
        stage = {"method": "average", "calibrate": item.name}
    most = item.experts[1] if isinstance(item, Method) else None
    count = EXPERTS if most is None else most
    base, *experts = _models()[1][: count + 1]
    found = magmerge.plan(base=base, experts=experts, memory=ROOM, threads=1, **stage)
    several = f"{count} experts" if count > 1 else "one expert"
    return (
        f"For a layer of {SIDE} x {SIDE} in bfloat16 and {several}, on one thread, `magmerge plan` "
        f"states {found.memory / 1e6:,.0f} MB beyond Python and torch."
    )


@cache
def _models() -> tuple[TemporaryDirectory[str], list[str]]:
    """A base and experts of one matrix each: headers, and files that take no room on the disk.

    The folder goes when the program ends.
    """
    folder, size = TemporaryDirectory(prefix="magmerge-site-"), 2 * SIDE * SIDE
    header = {"layer.weight": {"dtype": "BF16", "shape": [SIDE, SIDE], "data_offsets": [0, size]}}
    text = json.dumps(header).encode()
    names = [str(Path(folder.name) / f"{number}.safetensors") for number in range(EXPERTS + 1)]
    for name in names:
        with open(name, "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + size)
    return folder, names
