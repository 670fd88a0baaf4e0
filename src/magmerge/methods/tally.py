"""How often values occur in the pieces of layers, kept compactly."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Int, Shaped
from torch import Tensor


class Finding(NamedTuple):
    """One piece: where it is, how many of its entries are above the tally, and where that is."""

    name: str
    start: int
    stop: int
    above: int
    first: int
    last: int


class Tally:
    """Values and how often each piece has them, end to end.

    In two growing blocks: many small ones, which outlive the pieces, would leave the memory of the
    pieces in splinters.
    """

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.count = 0
        self._values, self._counts = bytearray(), bytearray()
        self._dtype = torch.float32

    def add(
        self,
        name: str,
        start: int,
        stop: int,
        above: int,
        values: Shaped[Tensor, "values"],
        counts: Int[Tensor, "values"],
    ) -> None:
        """Take note of the piece [start, stop) of the layer `name`."""
        end = self.count + len(values)
        self.findings.append(Finding(name, start, stop, above, self.count, end))
        self.count, self._dtype = end, values.dtype
        self._values += values.numpy().data
        self._counts += counts.to(torch.int32).numpy().data

    def columns(self) -> tuple[Shaped[Tensor, "values"], Int[Tensor, "values"]]:
        """All values, and how often each is where it was found."""
        if not self.count:
            return torch.empty(0), torch.empty(0, dtype=torch.int32)
        values = torch.frombuffer(self._values, dtype=self._dtype)
        return values, torch.frombuffer(self._counts, dtype=torch.int32)

    def last_of(self, value: float | int, quota: int) -> tuple[Finding, int]:
        """The piece in which the `quota`-th entry of this value is, and its number there.

        Pieces are taken by layer name, then by place.
        """
        values, counts = self.columns()
        equal = torch.where(values == value, counts, 0)
        for finding in sorted(self.findings):
            here = int(equal[finding.first : finding.last].sum())
            if quota <= here:
                return finding, quota
            quota -= here
        raise AssertionError("there are fewer such entries than are sought")

    def count_of(self, value: float) -> int:
        """How many entries have this value."""
        values, counts = self.columns()
        return int(counts[values == value].sum())
