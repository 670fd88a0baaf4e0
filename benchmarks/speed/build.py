"""A Llama-shaped base in bfloat16 and experts with low-rank and noisy task vectors, in shards.

python -m benchmarks.speed.build FOLDER EXPERTS SIZE
"""

from __future__ import annotations

import json
import sys
from math import prod
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.speed.sizes import SIZES, Size, shapes

SHARD = 200_000_000
RANK, NOISE = 8, 0.1
"""Rank of a task vector's main part, and how large its noise is beside it."""


def config(size: Size) -> dict[str, object]:
    """What transformers and mergekit want to know of it."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": size.hidden,
        "intermediate_size": size.inner,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.heads,
        "vocab_size": size.tokens,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }


def base_tensor(name: str, shape: tuple[int, ...]) -> Tensor:
    """One tensor of the base, the same whenever it is asked for."""
    generator = torch.Generator().manual_seed(hash_of(name))
    return torch.randn(shape, generator=generator).mul_(0.02).bfloat16()


def expert_tensor(name: str, shape: tuple[int, ...], number: int) -> Tensor:
    """The same tensor of an expert: the base's, a product of low rank, and noise."""
    generator = torch.Generator().manual_seed(hash_of(f"{number} {name}"))
    size = 0.002
    delta = torch.randn(shape, generator=generator).mul_(size * NOISE)
    if len(shape) == 2:
        up, down = (torch.randn(n, RANK, generator=generator) for n in shape)
        delta.addmm_(up, down.T, alpha=size / RANK**0.5)
    return base_tensor(name, shape).float().add_(delta).bfloat16()


def hash_of(text: str) -> int:
    """A seed that is the same in every process."""
    return int.from_bytes(text.encode(), "little") % (2**61 - 1)


def save(folder: Path, size: Size, number: int) -> None:
    """Write the base (number 0) or an expert, in numbered shards with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    groups: list[list[str]] = [[]]
    filled = 0
    for name, shape in shapes(size).items():
        room = 2 * prod(shape)
        if filled + room > SHARD and groups[-1]:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += room
    weight_map, total = {}, 0
    for i, names in enumerate(groups, start=1):
        file = f"model-{i:05}-of-{len(groups):05}.safetensors"
        tensors = {}
        for name in names:
            shape = shapes(size)[name]
            tensors[name] = (
                expert_tensor(name, shape, number) if number else base_tensor(name, shape)
            )
            total += tensors[name].nbytes
        save_file(tensors, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config(size)))


if __name__ == "__main__":
    root, experts, chosen = Path(sys.argv[1]), int(sys.argv[2]), SIZES[sys.argv[3]]
    for number in range(experts + 1):
        target = root / (f"expert-{number}" if number else "base")
        if not (target / "config.json").exists():
            save(target, chosen, number)
