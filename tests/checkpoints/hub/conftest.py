"""A hub on this machine, and a cache of its library's own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.conftest import random_state, tuned
from tests.hub_server import Hub, serving


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A server that HF_ENDPOINT leads to, with an empty cache, and no token."""
    constants = pytest.importorskip("huggingface_hub.constants")
    with serving() as served:
        for name, value in (
            ("ENDPOINT", served.endpoint),
            (
                "HUGGINGFACE_CO_URL_TEMPLATE",
                served.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
            ),
            ("HF_HUB_CACHE", str(tmp_path / "hf" / "hub")),
            ("HF_XET_CACHE", str(tmp_path / "hf" / "xet")),
            ("HF_TOKEN_PATH", str(tmp_path / "hf" / "token")),
            ("HF_HUB_OFFLINE", False),
            ("HF_HUB_DISABLE_XET", True),
        ):
            monkeypatch.setattr(constants, name, value)
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.chdir(tmp_path)
        yield served


BASE = random_state(0)
TEXTS = {
    "config.json": '{"model_type": "own"}',
    "tokenizer.json": "{}",
    "generation_config.json": "{}",
    "README.md": "---\nlicense: mit\n---\n",
}
NEEDLESS = ("pytorch_model.bin", "model.onnx", "model.gguf", "tf_model.h5", "onnx/model.onnx")


def folder(path: Path, state: dict[str, torch.Tensor], shards: int = 1, **more: str) -> Path:
    """A model's folder, with the same weights in other formats beside them."""
    path.mkdir(parents=True)
    for name, text in {**TEXTS, **more}.items():
        (path / name).write_text(text)
    for name in NEEDLESS:
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_bytes(b"no model")
    if shards == 1:
        save_file(state, path / "model.safetensors")
        return path
    names = list(state)
    weight_map = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        own = names[number::shards]
        save_file({name: state[name] for name in own}, path / file)
        weight_map |= dict.fromkeys(own, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path


@pytest.fixture
def models(hub: Hub, tmp_path: Path) -> dict[str, str]:
    """A base in one file, an expert in two shards; their commits by name."""
    base = hub.put("org/base", folder(tmp_path / "made" / "base", BASE))
    expert = hub.put("org/expert", folder(tmp_path / "made" / "expert", tuned(BASE, 1), 2))
    return {"org/base": base, "org/expert": expert}
