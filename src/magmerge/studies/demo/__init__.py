"""The main job on real models: six experts of one encoder, merged, calibrated and measured."""

from magmerge.studies.demo.demonstration import Demo, DemoRow, demo

__all__ = ["Demo", "DemoRow", "demo"]
