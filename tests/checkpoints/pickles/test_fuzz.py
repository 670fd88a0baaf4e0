"""Mutated files: read or refused, never worse. The long run is benchmarks/fuzz_pickles.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.fuzz_pickles import DAGS, GLOBALS, HUGE, OPCODES
from hypothesis import given, settings
from hypothesis import strategies as st

from magmerge.core.errors import MagmergeError
from tests.checkpoints.pickles import load_tensors
from tests.quick import examples

RUN = """
import json, pathlib, sys
from benchmarks.fuzz_pickles import fuzz
tally, sentinel, grown = fuzz(2000, 7, pathlib.Path(sys.argv[1]))
print(json.dumps([tally.read, sum(tally.reasons.values()), tally.failures, sentinel.seen, grown]))
"""


def test_nothing_runs_and_nothing_breaks(tmp_path: Path) -> None:
    # An audit hook cannot be taken away, so it is in a process of its own.
    done = subprocess.run([sys.executable, "-c", RUN, str(tmp_path)], capture_output=True,
                          text=True, check=True, cwd=Path(__file__).parents[3])  # fmt: skip
    read, refused, failures, seen, grown = json.loads(done.stdout)
    assert (read + refused, failures, seen) == (2000, [], [])
    assert read > 20
    assert grown < 200e6


@settings(deadline=None, max_examples=examples(300))
@given(st.lists(st.sampled_from([*OPCODES, *GLOBALS, *HUGE, *DAGS]), max_size=30))
def test_any_opcodes_are_read_or_refused(opcodes: list[bytes]) -> None:
    import tempfile

    with tempfile.NamedTemporaryFile(suffix=".pt") as file:
        file.write(b"\x80\x04" + b"".join(opcodes) + b".")
        file.flush()
        try:
            load_tensors(Path(file.name))
        except MagmergeError as error:
            assert "remedy" in str(error)
