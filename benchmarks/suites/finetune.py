"""Fine-tune all weights of a body together with its head, and measure the two."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LambdaLR

from .probe import Head, Labelled

BATCHES_PER_POOL = 8  # batches are cut from pools of this many, sorted by length
EVALUATION_BATCH = 64
LARGEST_GRADIENT = 1.0
WARMUP = 0.1

Features = Callable[[nn.Module, Tensor], Tensor]
"""From a model and a batch of its inputs to features [n, features]."""


@dataclass(frozen=True)
class Recipe:
    """How one expert is fine-tuned."""

    learning_rate: float
    epochs: int
    batch: int = 16
    head_learning_rate: float = 1e-3  # at 0 the head stays as it is
    weight_decay: float = 0.0
    steps: int | None = None  # fewer than the epochs have, if they have more
    bfloat16: bool = True  # products in bfloat16, where the processor is fast at them
    seed: int = 0


def has_matrix_unit() -> bool:
    """Say whether the processor multiplies bfloat16 matrices several times faster (AMX)."""
    information = Path("/proc/cpuinfo")
    return information.exists() and "amx_bf16" in information.read_text()


def products(bfloat16: bool) -> torch.autocast:
    """The arithmetic of training: bfloat16 products if wanted and fast, else float32."""
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16 and has_matrix_unit())


def fine_tune(
    body: nn.Module, head: Head, features: Features, data: Labelled, recipe: Recipe
) -> Head:
    """Train the body in place, together with its head; return the trained head."""
    torch.manual_seed(recipe.seed)
    linear = nn.Linear(head.weight.shape[1], head.weight.shape[0])
    linear.load_state_dict(head._asdict())
    batches = list(islice(training_batches(data.inputs, recipe), recipe.steps))
    optimizer = torch.optim.AdamW(
        [
            {"params": list(body.parameters()), "lr": recipe.learning_rate},
            {"params": list(linear.parameters()), "lr": recipe.head_learning_rate},
        ],
        weight_decay=recipe.weight_decay,
        fused=True,
    )
    schedule = LambdaLR(optimizer, lambda step: warm_up_and_decay(step, len(batches)))
    body.train()
    for indices in batches:
        inputs = data.inputs[indices]
        with products(recipe.bfloat16):
            found = features(body, inputs)
        loss = cross_entropy(linear(found.float()), data.labels[indices])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(body.parameters(), LARGEST_GRADIENT)
        optimizer.step()
        schedule.step()
    body.eval()
    return Head(linear.weight.detach(), linear.bias.detach())


def warm_up_and_decay(step: int, steps: int) -> float:
    """The learning rate's factor: linearly up over the first tenth, then linearly down."""
    warm = max(1, round(WARMUP * steps))
    return min((step + 1) / warm, (steps - step) / max(1, steps - warm))


def training_batches(inputs: Tensor, recipe: Recipe) -> Iterator[list[int]]:
    """Yield shuffled batches of rows of similar length: little is spent on padding."""
    rng = random.Random(recipe.seed)
    size = lengths(inputs)
    for _ in range(recipe.epochs):
        order = rng.sample(range(len(inputs)), len(inputs))
        pool = recipe.batch * BATCHES_PER_POOL
        chunks = []
        for start in range(0, len(order), pool):
            part = sorted(order[start : start + pool], key=size.__getitem__)
            chunks += [part[i : i + recipe.batch] for i in range(0, len(part), recipe.batch)]
        rng.shuffle(chunks)
        yield from (chunk for chunk in chunks if len(chunk) > 1)


def lengths(inputs: Tensor) -> list[int]:
    """Tokens in each row that are no padding; images are all of one length."""
    if inputs.dim() == 2:
        return inputs.ne(0).sum(1).tolist()
    return [1] * len(inputs)


@torch.no_grad()
def all_features(body: nn.Module, features: Features, inputs: Tensor) -> Tensor:
    """Features [n, features] of all inputs, in float32 and in the order given."""
    body.eval()
    size = lengths(inputs)
    order = torch.tensor(sorted(range(len(inputs)), key=size.__getitem__))
    parts = [features(body, inputs[chunk]) for chunk in order.split(EVALUATION_BATCH)]
    return torch.cat(parts)[order.argsort()]


def accuracy(body: nn.Module, head: Head, features: Features, data: Labelled) -> float:
    """Share of the inputs whose largest logit is their label's."""
    predicted = head(all_features(body, features, data.inputs)).argmax(1)
    return float(predicted.eq(data.labels).double().mean())
