"""Calibrators: one a file, each a pure function of one layer that sets the merged magnitude."""

from magmerge.calibrators import wsc

__all__ = ["wsc"]
