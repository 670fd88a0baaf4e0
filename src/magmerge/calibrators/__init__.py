"""Calibrators: one a file, each a pure function of one layer that sets the merged magnitude."""

from magmerge.calibrators import fsc, wsc

__all__ = ["fsc", "wsc"]
