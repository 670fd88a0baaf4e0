"""Calibrators: one a file, each a pure function of one layer that sets the merged magnitude."""

BUILTIN = {
    "fsc": "fsc",
    "svc": "svc",
    "wsc": "wsc",
}
"""The module that registers each name and alias, imported at that name's first look-up."""
