"""Figures of a suite: scores against samples, lambda and alpha, and layers' numbers."""

from magmerge.studies.figures.figure import FigureResult, plot, redraw

__all__ = ["FigureResult", "plot", "redraw"]
