"""A single file with its record beside it: one moment decides which run's both are."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from magmerge.checkpoints.output import staging
from magmerge.checkpoints.output.target import Target
from magmerge.core.errors import OutputError
from tests.checkpoints.test_staging import leftovers, merge
from tests.quick import quick_ones

SHORT_RUN = r"""
    import os, sys
    from pathlib import Path
    import magmerge
    from magmerge.checkpoints.output import staging

    count, base, expert, out = int(sys.argv[1]), *map(Path, sys.argv[2:])
    replace, calls = os.replace, []

    def killed(source, target):
        calls.append(target)
        if len(calls) == count:
            os._exit(9)
        replace(source, target)

    publish = staging.Staging.publish

    def watched(*arguments):
        staging.os.replace = killed
        publish(*arguments)

    staging.Staging.publish = watched
    magmerge.merge(base=base, experts=[expert], method="average", out=out, overwrite=True)
"""


@pytest.mark.parametrize("count", quick_ones(list(range(1, 8)), lambda n: n in (3, 4, 5)))
def test_a_record_is_never_beside_another_model_than_its_own(
    folders: list[Path], tmp_path: Path, count: int
) -> None:
    out = tmp_path / "out.safetensors"
    record = out.with_name("out.magmerge.json")
    merge([folders[0], folders[1]], out)
    before, told = load_file(out), record.read_bytes()
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SHORT_RUN), str(count), folders[0], folders[2], out],
        check=False,
    )
    after = load_file(out)
    old = all(torch.equal(before[name], after[name]) for name in before)
    # Where both are there, they are of one run.
    assert not record.exists() or (record.read_bytes() == told) == old
    # The next run for this place puts things right before it does its own work.
    target = Target(out, True, out.name, overwrite=True)
    with staging.Staging(target):
        pass
    assert (record.read_bytes() == told) == old
    assert (run.returncode == 9) == (count <= 6)
    assert not leftovers(tmp_path)


def test_what_another_user_planted_is_not_taken(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = tmp_path / ".out.magmerge-old"
    planted.mkdir()
    (planted / "model.safetensors").write_text("evil")
    other = os.stat(planted).st_uid + 1
    monkeypatch.setattr(staging.os, "geteuid", lambda: other)
    with pytest.raises(OutputError, match="another user's"):
        merge(folders, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    planted.rename(tmp_path / ".out.magmerge-partial")
    with pytest.raises(OutputError, match="another user's"):
        merge(folders, tmp_path / "out")
