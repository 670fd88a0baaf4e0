"""What stands for torch until something is computed with it."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import torch as real

from magmerge.core import lazy


def run(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout


def test_torch_is_imported_by_its_first_use_and_not_by_annotations() -> None:
    code = (
        "from __future__ import annotations\nimport sys\n"
        "from magmerge.core.lazy import Float, Tensor, torch\n"
        "def f(x: Float[Tensor, 'a b']) -> torch.Tensor: ...\n"
        "Stack = Float[Tensor, 'K n'] | list[Tensor]\n"
        "assert not isinstance(1, Tensor) and not issubclass(int, Tensor)\n"
        "print('torch' in sys.modules, 'jaxtyping' in sys.modules)\n"
        "x = torch.ones(2)\n"
        "print('torch' in sys.modules, isinstance(x, Tensor), isinstance(1, Tensor))"
    )
    assert run(code) == "False False\nTrue True False\n"


def test_they_are_the_real_ones_where_torch_and_jaxtyping_are_loaded() -> None:
    assert lazy.torch.float32 is real.float32
    assert lazy.torch.Tensor is real.Tensor
    assert isinstance(real.ones(1), lazy.Tensor)
    assert isinstance(real.nn.Parameter(real.ones(1)), lazy.Tensor)
    assert not isinstance(np.ones(1), lazy.Tensor)
    assert isinstance(real.ones(2, 3), lazy.Float[lazy.Tensor, "2 3"])
    assert not isinstance(real.ones(2, 3), lazy.Float[lazy.Tensor, "3 2"])


def test_each_thread_is_told_of_its_first_use() -> None:
    told: list[str] = []

    def use() -> None:
        _ = lazy.torch.float32
        _ = lazy.torch.float64

    with lazy.at_first_use_of_torch(lambda: told.append(threading.current_thread().name)):
        threads = [threading.Thread(target=use, name=name) for name in ("a", "b")]
        for thread in threads:
            thread.start()
            thread.join()
    assert told == ["a", "b"]
    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert told == ["a", "b"]
