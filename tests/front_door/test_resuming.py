"""A run that was killed is gone on with: what is there is neither made nor measured again."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

import magmerge
from magmerge import live
from tests.front_door.test_one_path import nets, written
from tests.front_door.test_recipes_beside import stored
from tests.golden.cases import DTYPES, digest, models
from tests.quick import slow

pytestmark = pytest.mark.filterwarnings("ignore::magmerge.core.errors.MagmergeWarning")


KILLED = """
import sys, os, signal
import magmerge
from magmerge.checkpoints.output import writer
finish, left = writer.Ledger.finish, int(sys.argv[3])
def counted(self, step, outcome):
    global left
    finish(self, step, outcome)
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
writer.Ledger.finish = counted
magmerge.run(sys.argv[1], sys.argv[2], machine=magmerge.Machine(1), resume=True)
"""


@pytest.mark.parametrize(
    ("calibration", "first"),
    [("", "False"), slow("", "True"), slow("calibrate: [{method: wsc}]", "True")],
)
def test_a_killed_run_is_gone_on_with(
    tmp_path: Path, calibration: str, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it said itself that it would go on with another one, or not."""
    base, experts = models(DTYPES["float32"], 3)
    paths = written(tmp_path, {"base": base, **experts})
    recipe = tmp_path / "recipe.yaml"
    own = "".join(f"  {name}: {path}\n" for name, path in paths.items() if name != "base")
    recipe.write_text(f"base: {paths['base']}\nexperts:\n{own}method: ties\n{calibration}\n")
    out, whole = tmp_path / "out", tmp_path / "whole"
    code = KILLED.replace("resume=True", f"resume={first}")
    call = [sys.executable, "-c", code, str(recipe), str(out), "4"]
    assert subprocess.run(call, check=False).returncode == -signal.SIGKILL
    assert not out.exists()
    from magmerge.engine import steps

    put_bytes, names = steps.Bench.put_bytes, set[str]()

    def counted(bench, step, start, data):  # type: ignore[no-untyped-def]
        names.add(step.spec.name)
        put_bytes(bench, step, start, data)

    monkeypatch.setattr(steps.Bench, "put_bytes", counted)
    resumed = magmerge.run(recipe, out, resume=True)
    assert 0 < len(names) <= len(base) - 4
    monkeypatch.undo()
    fresh = magmerge.run(recipe, whole)
    for file in whole.iterdir():
        assert file.read_bytes() == (out / file.name).read_bytes(), file.name
    assert resumed.records == fresh.records
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in whole.iterdir())


@pytest.mark.slow
def test_torn_bytes_and_another_recipe_are_not_gone_on_with(tmp_path: Path) -> None:
    base, experts = models(DTYPES["float32"], 3)
    paths = written(tmp_path, {"base": base, **experts})
    recipe = magmerge.Recipe(
        base=paths["base"], experts={k: v for k, v in paths.items() if k != "base"}, method="ties"
    )
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    out = tmp_path / "out"
    call = [sys.executable, "-c", KILLED, str(tmp_path / "recipe.yaml"), str(out), "5"]
    assert subprocess.run(call, check=False).returncode == -signal.SIGKILL
    partial = tmp_path / ".out.magmerge-partial"
    weights = partial / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    weights.write_bytes(content)
    magmerge.run(recipe, out, resume=True)
    expected = magmerge.run(recipe).state_dict()
    assert digest(load_file(out / "model.safetensors")) == digest(expected)
    assert subprocess.run([*call[:4], str(tmp_path / "other"), "5"], check=False).returncode < 0
    changed = recipe.model_copy(update={"params": {"density": 0.5}})
    magmerge.run(changed, tmp_path / "other", resume=True)
    state = load_file(tmp_path / "other" / "model.safetensors")
    assert digest(state) == digest(magmerge.run(changed).state_dict())


def test_what_is_known_is_not_looked_for_again(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    from magmerge.checkpoints.output import writer

    base, experts = stored(tmp_path)
    finish, done = writer.Ledger.finish, []

    def counting(self, step, outcome):  # type: ignore[no-untyped-def]
        done.append(step)
        finish(self, step, outcome)

    def stopping(self, step, outcome):  # type: ignore[no-untyped-def]
        finish(self, step, outcome)
        raise KeyboardInterrupt

    recipe = magmerge.Recipe(
        base=str(base), experts={k: str(path) for k, path in experts.items()}, method="ties"
    )
    monkeypatch.setattr(writer.Ledger, "finish", counting)
    magmerge.run(recipe, tmp_path / "whole", resume=True)
    whole, done[:] = list(done), []
    monkeypatch.setattr(writer.Ledger, "finish", stopping)
    with pytest.raises(KeyboardInterrupt):
        magmerge.run(recipe, tmp_path / "out", resume=True)
    monkeypatch.setattr(writer.Ledger, "finish", counting)
    magmerge.run(recipe, tmp_path / "out", resume=True)
    assert 0 < len(done) < len(whole)
    for name in ("model.safetensors", "magmerge.yaml"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_samples_in_memory_are_measured_again(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """Nothing tells whether they are still the same."""
    base, experts, samples = nets(2)
    data = {f"expert-{k + 1}": one for k, one in enumerate(samples)}
    arguments = {"base": base, "experts": experts, "method": "average", "calibrate": "fsc"}
    estimate, calls = live.estimate, []

    def counting(*given: object) -> object:
        calls.append(given)
        return estimate(*given)

    monkeypatch.setattr(live, "estimate", counting)
    out = tmp_path / "out.safetensors"
    from magmerge.checkpoints.output import writer

    finish = writer.Ledger.finish

    def stopping(self, step, outcome):  # type: ignore[no-untyped-def]
        finish(self, step, outcome)
        raise KeyboardInterrupt

    monkeypatch.setattr(writer.Ledger, "finish", stopping)
    with pytest.raises(KeyboardInterrupt):
        magmerge.merge(**arguments, data=data, out=out, resume=True)
    monkeypatch.setattr(writer.Ledger, "finish", finish)
    magmerge.merge(**arguments, data=data, out=out, resume=True)
    assert len(calls) == 2
