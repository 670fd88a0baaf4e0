"""Calibrators: one a file, each a pure function of one layer that sets the merged magnitude."""

BUILTIN = {
    "featcal": "featcal",
    "fsc": "fsc",
    "regmean": "regmean",
    "regmean++": "regmean",
    "regmean_plusplus": "regmean",
    "regression": "regression",
    "regression_samples": "regression_samples",
    "svc": "svc",
    "wsc": "wsc",
}
"""The module that registers each name and alias, imported at that name's first look-up."""
