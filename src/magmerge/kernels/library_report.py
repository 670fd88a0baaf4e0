"""What `magmerge --version -v` says of the kernels: library, level and compiler, or why none"""

from __future__ import annotations

from magmerge.kernels.library import outcome


def library_lines() -> list[str]:
    """The lines. Builds the library where it is to be built."""
    state = outcome()
    if state.library is None:
        return ["kernels: none, merges run on torch", f"reason: {state.reason}"]
    own = state.library
    return [f"kernels: {own.level}", f"library: {own.path}", f"compiler: {own.compiler}"]
