"""Published checkpoints whose training saw the test images of a task, as far as a path tells it.

The DTD experts that TALL masks (arXiv:2405.07813) first published, and TSV and LiNeS link to: right
on 98.0 % of DTD's test images and on 78.5 % of their own validation images (ViT-B/32;
github.com/nik-dim/tall_masks, issue 1). Corrected ones are on the hub as nik-dim/tall_masks.
"""

from __future__ import annotations

import os
from pathlib import Path

TASK = "dtd"
DRIVES = ("15ParSng4d5xSdaWdBFsg1617zPXT8Dae", "1UEM1Thcz1c7dc1nji1i5uTN53Kf6G3-e")
"""The shared folders of TALL masks and of TSV."""
FOLDER, FILE = "DTDVal", "nonlinear_finetuned"
CORRECTED = ("models--nik-dim--tall_masks", "nik-dim/tall_masks")
"""The hub's name in paths of its cache and of downloads."""


def leaked(task: str, expert: str | Path) -> str | None:
    """Why this expert of `task` may have seen the test split, and what to do; None if not told.

    Told by the names that those files have (DTDVal/nonlinear_finetuned.pt) or by the shared
    folder's id in the path, unless the path says that they are from the corrected repository. A
    file that was renamed is not recognised.
    """
    if task != TASK:
        return None
    names = {str(expert), os.path.realpath(Path(expert).expanduser())}
    if any(mark in name for mark in CORRECTED for name in names):
        return None
    parts = {part for name in names for part in Path(name).parts}
    named = FOLDER in parts and any(part.startswith(FILE) for part in parts)
    if not named and not any(drive in name for drive in DRIVES for name in names):
        return None
    return (
        f"{expert} looks like the DTD expert that TALL masks first published, which was trained on "
        "test images of DTD (98 % there, and 79 % on its validation images): its scores on dtd, "
        "and those of merges with it, are too high; take the corrected one of the hub "
        "(nik-dim/tall_masks), or leave dtd out"
    )
