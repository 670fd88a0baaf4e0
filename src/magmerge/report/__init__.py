"""Results for people: reports, and tables of plans, records and differences."""

from __future__ import annotations

from typing import TYPE_CHECKING

from magmerge.core.lazy import front

if TYPE_CHECKING:
    from magmerge.report.card import card_files
    from magmerge.report.page import render

__all__ = ["card_files", "render"]

__getattr__ = front(__name__, {"card_files": "card", "render": "page"})
