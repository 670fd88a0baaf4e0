"""magmerge merges fine-tuned neural networks, then calibrates the magnitude of the change.

The front door is `__all__`. Each name is loaded at its first use, so that importing magmerge does
not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from magmerge.core.version import __version__

if TYPE_CHECKING:
    from magmerge.checkpoints import open_checkpoint
    from magmerge.checkpoints.output.leftovers import clean
    from magmerge.core.catalogue import calibrator, catalog, method
    from magmerge.core.errors import MagmergeError, MagmergeWarning
    from magmerge.core.machine import Machine
    from magmerge.core.recipe import Recipe
    from magmerge.core.registry import register_calibrator, register_method
    from magmerge.engine.inspection import diff, inspect
    from magmerge.engine.job import Live
    from magmerge.engine.result import Result
    from magmerge.evaluation import evaluate
    from magmerge.evaluation.ablation import ablate
    from magmerge.evaluation.result_tables import compare_scores
    from magmerge.evaluation.sensitivity import Sensitivity, sensitivity
    from magmerge.evaluation.side_by_side import compare
    from magmerge.evaluation.suites import named_suites, suite
    from magmerge.pipeline.convert import convert
    from magmerge.pipeline.documents import run
    from magmerge.pipeline.export import export
    from magmerge.pipeline.merge import calibrate, extract, merge
    from magmerge.pipeline.planning import plan, plan_document, plan_recipe
    from magmerge.pipeline.push import push
    from magmerge.pipeline.recipe_files import read_recipes
    from magmerge.pipeline.verify import verify
    from magmerge.report.card_file import card
    from magmerge.report.html_file import write_report
    from magmerge.studies.demo import demo
    from magmerge.studies.figures import plot, redraw
    from magmerge.studies.reproduction import reproduce
    from magmerge.studies.tuning import TuneResult, tune

_HOMES = {
    "MagmergeError": "core.errors",
    "MagmergeWarning": "core.errors",
    "Live": "engine.job",
    "Machine": "core.machine",
    "Recipe": "core.recipe",
    "run": "pipeline.documents",
    "Result": "engine.result",
    "ablate": "evaluation.ablation",
    "calibrate": "pipeline.merge",
    "calibrator": "core.catalogue",
    "clean": "checkpoints.output.leftovers",
    "card": "report.card_file",
    "catalog": "core.catalogue",
    "compare": "evaluation.side_by_side",
    "compare_scores": "evaluation.result_tables",
    "convert": "pipeline.convert",
    "demo": "studies.demo",
    "diff": "engine.inspection",
    "evaluate": "evaluation",
    "export": "pipeline.export",
    "extract": "pipeline.merge",
    "inspect": "engine.inspection",
    "merge": "pipeline.merge",
    "method": "core.catalogue",
    "named_suites": "evaluation.suites",
    "open_checkpoint": "checkpoints",
    "plan": "pipeline.planning",
    "plan_document": "pipeline.planning",
    "plan_recipe": "pipeline.planning",
    "plot": "studies.figures",
    "push": "pipeline.push",
    "read_recipes": "pipeline.recipe_files",
    "redraw": "studies.figures",
    "reproduce": "studies.reproduction",
    "register_calibrator": "core.registry",
    "register_method": "core.registry",
    "Sensitivity": "evaluation.sensitivity",
    "sensitivity": "evaluation.sensitivity",
    "Statistics": "pipeline.statistics",
    "statistics": "pipeline.statistics",
    "suite": "evaluation.suites",
    "TuneResult": "studies.tuning",
    "tune": "studies.tuning",
    "verify": "pipeline.verify",
    "write_report": "report.html_file",
}

__all__ = [
    "Live",
    "Machine",
    "MagmergeError",
    "MagmergeWarning",
    "Recipe",
    "Result",
    "Sensitivity",
    "TuneResult",
    "__version__",
    "ablate",
    "calibrate",
    "calibrator",
    "card",
    "catalog",
    "clean",
    "compare",
    "compare_scores",
    "convert",
    "demo",
    "diff",
    "evaluate",
    "export",
    "extract",
    "inspect",
    "merge",
    "method",
    "named_suites",
    "open_checkpoint",
    "plan",
    "plan_document",
    "plan_recipe",
    "plot",
    "push",
    "read_recipes",
    "redraw",
    "reproduce",
    "run",
    "register_calibrator",
    "register_method",
    "sensitivity",
    "Statistics",
    "statistics",
    "suite",
    "tune",
    "verify",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'magmerge' has no attribute {name!r}")
    value = getattr(import_module(f"magmerge.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
