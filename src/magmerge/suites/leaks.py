"""Published checkpoints whose training saw the test images of a task, as far as a path tells it.

TALL masks (arXiv:2405.07813) first published its experts with a folder of DTD whose test images
were among those of training: its DTD expert of ViT-B/32 is right on 98.0 % of the test images and
on 78.5 % of its own validation images; that of ViT-L/14 on 98.5 % and 85.1 %
(github.com/nik-dim/tall_masks, results/single_task; issue 1 there). The same files are behind the
links of TSV and LiNeS. Since December 2024 corrected ones are on the hub as nik-dim/tall_masks.
"""

from __future__ import annotations

from pathlib import Path

TASK = "dtd"
DRIVES = ("15ParSng4d5xSdaWdBFsg1617zPXT8Dae", "1UEM1Thcz1c7dc1nji1i5uTN53Kf6G3-e")
"""The shared folders of TALL masks and of TSV."""
FOLDER, FILE = "DTDVal", "nonlinear_finetuned"
CORRECTED = ("models--nik-dim--tall_masks", "nik-dim/tall_masks")
"""The hub's name in paths of its cache and of downloads."""
SEEN = 0.95
"""A DTD expert above this accuracy on the test split has seen it: clean ones reach 0.80 to 0.85."""


def leaked(task: str, expert: str | Path) -> str | None:
    """Why this expert of `task` may have seen the test split, and what to do; None if not told.

    Told by the names that those files have (DTDVal/nonlinear_finetuned.pt) or by the shared
    folder's id in the path, unless the path says that they are from the corrected repository. A
    file that was renamed is not recognised.
    """
    if task != TASK:
        return None
    names = {str(expert), str(Path(expert).expanduser().resolve())}
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
