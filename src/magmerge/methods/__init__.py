"""Merge methods: one family a file, each a pure function of one layer's tensors [K, *shape]."""

from magmerge.methods import average, dare, slerp, task_arithmetic, ties

__all__ = ["average", "dare", "slerp", "task_arithmetic", "ties"]
