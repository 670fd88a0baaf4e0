"""Figures of a suite: scores against samples, lambda and alpha, and layers' numbers."""

from magmerge.studies.figures.figure import Plotted, plot, redraw

__all__ = ["Plotted", "plot", "redraw"]
