"""The bits of results, as the front door gives them, stay what they were.

On another kind of processor, or with another torch, products and decompositions round otherwise:
there the results are compared by their fingerprints.
"""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import magmerge
from tests.conftest import State
from tests.golden.cases import DTYPES, cases, digest, fingerprint, models
from tests.golden.record import FILE, machine
from tests.quick import quick_ones

KNOWN = json.loads(FILE.read_text())
CASES = cases()

pytestmark = pytest.mark.filterwarnings("ignore::magmerge.core.errors.MagmergeWarning")


PAIRS = [
    ("float32", "average", 1), ("bfloat16", "ties", 4), ("float32", "dare_ties", 4),
    ("bfloat16", "tsv_m", 1),
]  # fmt: skip
"""Each dtype, method and number of threads once."""


def test_every_case_is_recorded() -> None:
    assert set(KNOWN["fingerprints"]) == set(CASES)


@pytest.mark.parametrize("kernels", ["auto", "off"])
@pytest.mark.parametrize("name", CASES)
def test_the_bits_are_what_they_were(
    name: str, kernels: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAGMERGE_KERNELS", kernels)
    state = CASES[name](tmp_path)
    recorded = KNOWN["digests"].get(machine())
    if recorded is not None:
        assert digest(state) == recorded[name]
    else:
        assert np.allclose(fingerprint(state), KNOWN["fingerprints"][name], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("dtype", "method", "threads"),
    quick_ones(
        product(DTYPES, ("average", "ties", "dare_ties", "tsv_m"), (1, 4)),
        lambda case: case in PAIRS,
    ),
)
def test_files_shards_and_threads_change_no_bit(
    tmp_path: Path, dtype: str, method: str, threads: int
) -> None:
    base, experts = models(DTYPES[dtype], 3)
    how = {"method": method, "calibrate": "wsc", "threads": threads}
    expected = digest(magmerge.merge(base=base, experts=experts, method=method, calibrate="wsc",
                                     threads=1).state_dict())  # fmt: skip
    assert digest(magmerge.merge(base=base, experts=experts, **how).state_dict()) == expected

    def written(name: str, state: State) -> Path:
        (tmp_path / name).mkdir()
        save_file(state, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text('{"model_type": "tiny"}')
        return tmp_path / name

    files = {"base": written("base", base)}
    files |= {name: written(name, state) for name, state in experts.items()}
    stored = {"base": files.pop("base"), "experts": files, **how}
    magmerge.merge(**stored, out=tmp_path / "one.safetensors")
    magmerge.merge(**stored, out=tmp_path / "folder")
    magmerge.merge(**stored, out=tmp_path / "shards", shard_size="10kB", memory="140MB")
    shards = sorted((tmp_path / "shards").glob("model-*.safetensors"))
    assert len(shards) > 2
    joined: State = {}
    for shard in shards:
        joined |= load_file(shard)
    for state in (
        load_file(tmp_path / "one.safetensors"),
        load_file(tmp_path / "folder" / "model.safetensors"),
        joined,
    ):
        assert digest(state) == expected


def test_a_digest_sees_one_bit() -> None:
    state = {"a": torch.zeros(3)}
    changed = {"a": torch.tensor([0.0, -0.0, 0.0])}
    assert digest(state) != digest(changed)
    assert digest(state) != digest({"b": torch.zeros(3)})
    assert digest(state) != digest({"a": torch.zeros(3).half()})
