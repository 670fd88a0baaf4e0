"""Adapters as results: of adapters alone, and of models or merges on a base."""

from __future__ import annotations

from typing import TYPE_CHECKING

from magmerge.core.lazy import front

if TYPE_CHECKING:
    from magmerge.engine.adapters.extraction import bytes_of_truncation, run_extraction
    from magmerge.engine.adapters.faults import adapter_faults, adapter_notes
    from magmerge.engine.adapters.modules import bytes_of_module, run_module
    from magmerge.engine.adapters.result import AdapterResult, Extraction, adapter_result
    from magmerge.engine.adapters.targets import mark_lost

__all__ = [
    "AdapterResult",
    "Extraction",
    "adapter_faults",
    "adapter_notes",
    "adapter_result",
    "bytes_of_module",
    "bytes_of_truncation",
    "mark_lost",
    "run_extraction",
    "run_module",
]

__getattr__ = front(
    __name__,
    {
        "AdapterResult": "result",
        "Extraction": "result",
        "adapter_faults": "faults",
        "adapter_notes": "faults",
        "adapter_result": "result",
        "bytes_of_module": "modules",
        "bytes_of_truncation": "extraction",
        "mark_lost": "targets",
        "run_extraction": "extraction",
        "run_module": "modules",
    },
)
