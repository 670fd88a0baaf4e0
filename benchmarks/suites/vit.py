"""The ViT suite: a small vision transformer trained here on CIFAR-10, and its experts."""

import time
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad
from transformers import ViTConfig, ViTModel

from .classifying import Assignment, Kind, make_experts
from .finetune import LARGEST_GRADIENT, Recipe, products, warm_up_and_decay
from .image_tasks import IMAGE_TASKS, cifar_arrays
from .imaging import make_splits, scaled
from .packages import CIFAR, SUITES
from .storing import Layout, save_tensors

SIZE = 32
CONFIG = {
    "image_size": SIZE,
    "patch_size": 4,
    "hidden_size": 192,
    "num_hidden_layers": 6,
    "num_attention_heads": 3,
    "intermediate_size": 384,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
LAYOUT = Layout(SUITES / "vision-vit")
PRETRAINING_EPOCHS = 2
PRETRAINING_BATCH = 64
PRETRAINING_RATE = 1e-3
WEIGHT_DECAY = 0.05
LARGEST_SHIFT = 3
PRETRAINING_TASK = "cifar"


def build() -> nn.Module:
    """The transformer without trained weights, and without the pooler, which no task uses."""
    return ViTModel(ViTConfig(**CONFIG), add_pooling_layer=False).eval()


def make() -> None:
    """Make the suite."""
    if not LAYOUT.base.exists():
        partial_base = LAYOUT.base.with_name("base.partial")
        save(pretrain(), partial_base)
        partial_base.rename(LAYOUT.base)
    assignments = {
        name: Assignment(
            task.title,
            task.package,
            task.classes,
            Recipe(learning_rate=3e-4, epochs=5, batch=32, mirror=name != "digits"),
            partial(make_splits, LAYOUT, name, task, SIZE, "pixel_values"),
        )
        for name, task in IMAGE_TASKS.items()
        if name != PRETRAINING_TASK
    }
    make_experts(LAYOUT, KIND, assignments)


def pretrain() -> nn.Module:
    """Train the transformer from random weights to tell CIFAR-10's classes."""
    started = time.monotonic()
    torch.manual_seed(0)
    arrays, labels = cifar_arrays()
    images, targets = torch.from_numpy(arrays).permute(0, 3, 1, 2), torch.tensor(labels)
    body = build()
    head = nn.Linear(CONFIG["hidden_size"], 10)
    parameters = [*body.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(
        parameters, lr=PRETRAINING_RATE, weight_decay=WEIGHT_DECAY, fused=True
    )
    steps = PRETRAINING_EPOCHS * (len(images) // PRETRAINING_BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warm_up_and_decay(step, steps)
    )
    body.train()
    for step in range(steps):
        rows = torch.randint(len(images), (PRETRAINING_BATCH,))
        with products(bfloat16=True):
            features = class_token(body, varied(scaled(images[rows])))
        loss = cross_entropy(head(features.float()), targets[rows])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, LARGEST_GRADIENT)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step} of {steps}: loss {loss:.3f}", flush=True)
    print(f"pre-training: {time.monotonic() - started:.0f} s", flush=True)
    return body.eval()


def varied(images: Tensor) -> Tensor:
    """Shift a batch by a few pixels, and turn it left to right or not."""
    across, down = torch.randint(2 * LARGEST_SHIFT + 1, (2,)).tolist()
    images = pad(images, [LARGEST_SHIFT] * 4)[..., down : down + SIZE, across : across + SIZE]
    return images.flip(-1) if torch.rand(()) < 0.5 else images


def class_token(model: nn.Module, images: Tensor) -> Tensor:
    """The last hidden state of the class token."""
    return model(pixel_values=images).last_hidden_state[:, 0]


def load(folder: Path) -> nn.Module:
    """Load the base or an expert."""
    model = build()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model


def save(model: nn.Module, folder: Path) -> None:
    """Write a model under its module's own names; save_pretrained writes those of older versions.

    from_pretrained reads either.
    """
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_tensors(state, folder / "model.safetensors")
    model.config.save_pretrained(folder)


KIND = Kind(
    model={"build": "benchmarks.suites.vit:build", "features": "cls"},
    features=class_token,
    load=load,
    save=save,
    suffix="safetensors",
    fields={"label_field": "labels"},
    extra={},
    base_sha256=CIFAR.sha256,  # all that it was trained on
)
