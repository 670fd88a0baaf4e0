"""A small random CLIP model with everything that a published one has in its folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from examples.tiny.images import SIDE
from jaxtyping import Float, Int
from torch import Tensor

from magmerge.live.modules import quiet_transformers

WIDTH = 64
LAYERS = 3
HEADS = 4
PATCH = 8
FIRST = 25
"""Steps of the base for each lesson."""
STEPS = 40
"""Steps of an expert."""
BATCH = 32
RATE = 5e-4
START, END = "<|startoftext|>", "<|endoftext|>"


def write_clip(folder: Path, seed: int) -> None:
    """Write model, tokenizer and image processor, as `from_pretrained` reads them."""
    words = _vocabulary()
    half = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": LAYERS}
    half |= {"num_attention_heads": HEADS, "projection_dim": WIDTH}
    text = {"vocab_size": len(words), "bos_token_id": words[START]}
    text |= {"eos_token_id": words[END], "pad_token_id": words[END]}
    with quiet_transformers() as library, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = library.CLIPConfig(
            text_config={**half, **text},
            vision_config={**half, "image_size": SIDE, "patch_size": PATCH},
            projection_dim=WIDTH,
        )
        library.CLIPModel(config).save_pretrained(folder)
        tokenizer = library.CLIPTokenizer(vocab=words, merges=[], model_max_length=77)
        tokenizer.save_pretrained(folder)
        crop = {"height": SIDE, "width": SIDE}
        processor = library.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=crop)
        processor.save_pretrained(folder)


@dataclass(frozen=True, slots=True)
class Lesson:
    """Images, their classes, and the fixed head that they are to be told by."""

    pixels: Float[Tensor, "rows 3 side side"]
    labels: Int[Tensor, "rows"]
    head: Float[Tensor, "classes width"]
    seed: int


def pretrain(folder: Path, lessons: Sequence[Lesson]) -> None:
    """Let a whole CLIP see a little of every lesson, so that there is something to lose."""
    with quiet_transformers() as library:
        whole = library.CLIPModel.from_pretrained(folder, local_files_only=True)
        seeing = _tuned(library, folder, lessons, FIRST * len(lessons))
        whole.vision_model.load_state_dict(seeing.vision_model.state_dict())
        whole.visual_projection.load_state_dict(seeing.visual_projection.state_dict())
        whole.save_pretrained(folder)


def tune_vision(base: Path, out: Path, lesson: Lesson) -> None:
    """Tune the seeing half of a CLIP for a moment, and write it."""
    with quiet_transformers() as library:
        _tuned(library, base, [lesson], STEPS).save_pretrained(out)


def _tuned(library: Any, base: Path, lessons: Sequence[Lesson], steps: int) -> Any:
    """The seeing half after so many steps, with the lessons in turn."""
    orders = [torch.Generator().manual_seed(lesson.seed) for lesson in lessons]
    model = library.CLIPVisionModelWithProjection.from_pretrained(base, local_files_only=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    # Heads are made in inference mode; autograd takes copies only.
    heads = [lesson.head.clone() for lesson in lessons]
    for step in range(steps):
        turn = step % len(lessons)
        lesson = lessons[turn]
        rows = torch.randint(len(lesson.labels), (BATCH,), generator=orders[turn])
        seen = torch.nn.functional.normalize(model(lesson.pixels[rows]).image_embeds, dim=-1)
        loss = torch.nn.functional.cross_entropy(seen @ heads[turn].T, lesson.labels[rows])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model


def _vocabulary() -> dict[str, int]:
    """Single bytes, within a word and at its end, in the alphabet of byte-level tokenizers."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = [chr(byte) for byte in shown] + [chr(256 + n) for n in range(256 - len(shown))]
    words = [*alphabet, *(f"{letter}</w>" for letter in alphabet), START, END]
    return {word: number for number, word in enumerate(words)}
