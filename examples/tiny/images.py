"""Generated images in folders by split and class: colour patterns that a small model can tell."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from magmerge.core.extras import needed
from magmerge.linalg.draws import derive_seed

SIDE = 32
CELLS = 4
NOISE = 0.45
ROWS = {"train": 16, "test": 16}
"""Images of each class."""


def draw_images(folder: Path, task: str, classes: Sequence[str], seed: int) -> None:
    """Write FOLDER/SPLIT/CLASS/N.png: each class has its pattern, each image its own noise."""
    library = needed("PIL.Image", "writing images")
    for name in classes:
        pattern = np.random.default_rng(derive_seed(seed, task, name))
        cells = pattern.random((CELLS, CELLS, 3))
        whole = np.kron(cells, np.ones((SIDE // CELLS, SIDE // CELLS, 1)))
        for split, count in ROWS.items():
            inner = folder / split / name
            inner.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                noise = pattern.normal(scale=NOISE, size=whole.shape)
                pixels = np.clip(255 * (whole + noise), 0, 255).astype(np.uint8)
                library.fromarray(pixels).save(inner / f"{number:03}.png")
