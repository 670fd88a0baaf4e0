"""PEFT's adapter_config.json: what is plain LoRA, how it is scaled, what is refused; and anew."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from magmerge.checkpoints.adapters.formats.group import checked_scale
from magmerge.checkpoints.adapters.formats.keys import AGAIN, CONFIG
from magmerge.checkpoints.kinds import read_json
from magmerge.core.errors import AdapterError

REPEATS, LONGEST = 2, 300
"""How many repetitions a file's pattern may have, and how long a name it is then tried on."""
WITH_INITIAL = "put the adapter as it was before the training into a folder named initial in it"
MERGED_BY_PEFT = "merge it into its base with PEFT (merge_and_unload) and give the whole model"
REFUSED = {
    "layer_replication": "it copies layers of the base",
    "alora_invocation_tokens": "it is active for some tokens only",
}
REFUSED_IN_FOLDERS = {
    **REFUSED,
    "use_qalora": "its A factors act on pooled inputs",
    "use_bdlora": "its factors are blocks on a diagonal",
    "arrow_config": "it chooses among adapters for each token",
    "kasa_config": "it has singular values between its factors, and changes the base",
    "monteclora_config": "its factors are samples of a distribution",
    "velora_config": "it has factors besides lora_A and lora_B",
}
"""Settings whose task vector is not scale * B A."""
NEVER_MERGED = ("alora_invocation_tokens", "arrow_config", "layer_replication")
"""Settings whose result is no change of the base's weights that holds for all inputs."""
PROMPTS = frozenset(
    """
    PROMPT_TUNING MULTITASK_PROMPT_TUNING P_TUNING PREFIX_TUNING ADAPTION_PROMPT CPT CARTRIDGE XLORA
    POLY
    """.split()  # noqa: SIM905
)
"""PEFT's kinds that learn prompts or routes beside the weights."""
ALONE = "leave it out: no merge can hold it; a plain LoRA of the same training can be merged"
KINDS = ("LORA", "LOHA", "LOKR", "IA3", "TRAINABLE_TOKENS")
"""PEFT's kinds of adapters that are read."""
LYCORIS = ("LOHA", "LOKR")
AGAINST = frozenset(
    """
    r lora_alpha rank_pattern alpha_pattern target_modules exclude_modules layers_to_transform
    layers_pattern use_rslora init_lora_weights loftq_config eva_config corda_config lora_ga_config
    target_parameters peft_type
    """.split()  # noqa: SIM905
)
"""Settings of an input that would contradict those made anew, or begin the training once more."""

Value = TypeVar("Value", int, float)


def read_config(folder: Path) -> dict[str, Any]:
    """The adapter's configuration; AdapterError if it cannot be read."""
    return read_json(folder / CONFIG, AGAIN, AdapterError)


def check_config(
    config: Mapping[str, Any], source: str, refused: Mapping[str, str] = REFUSED
) -> None:
    """Refuse what is not plain LoRA: another kind of adapter, or one of the settings `refused`."""
    reasons = [f"it sets {key}: {why}" for key, why in refused.items() if config.get(key)]
    start = str(config.get("init_lora_weights")).lower()
    if start.startswith(("pissa", "olora", "corda", "loftq", "lora_ga")):
        reasons.insert(0, f"it was started with {start}, which changes the base itself")
    elif config.get("peft_type") not in KINDS:
        reasons.insert(0, f"its peft_type is {config.get('peft_type')!r}, not LORA")
    if reasons:
        never = str(config.get("peft_type")) in PROMPTS or any(map(config.get, NEVER_MERGED))
        remedy = ALONE if never else MERGED_BY_PEFT
        if start.startswith(("pissa", "olora", "corda", "lora_ga")):
            remedy = f"{WITH_INITIAL}, or {MERGED_BY_PEFT}"
        raise AdapterError(f"refused: {reasons[0]}", source=source, remedy=remedy)


def check_kind(
    config: Mapping[str, Any], modules: Mapping[str, Collection[str]], source: str
) -> None:
    """AdapterError where the factors of the `modules`, by their roles, are not those of the kind
    that the configuration names, and where magnitudes of DoRA are missing or unannounced.
    """
    kind = str(config.get("peft_type") or "LORA")
    own = {"LORA": "up", "LOHA": "hada", "LOKR": "lokr"}.get(kind)
    for module, roles in modules.items():
        problem, remedy = "", AGAIN
        if not any(own is not None and role.startswith(own) for role in roles):
            problem = f"its peft_type is {kind}, and these are no factors of one"
        elif ("dora" in roles) != bool(config.get("use_dora")):
            told = "it sets use_dora, and DoRA's magnitude is missing"
            problem = (
                "DoRA's magnitude is here, and use_dora is not set" if "dora" in roles else told
            )
            remedy = f"{AGAIN}, or set use_dora in {CONFIG} as it was trained"
        if problem:
            raise AdapterError(problem, source=source, tensor=module, remedy=remedy)


class ScaleOrigin(NamedTuple):
    """Where a scale is from: what in an adapter is to blame for one of no use."""

    source: str
    entry: str
    remedy: str
    key: str


def sound_scale(
    module: str, rank: int | None, config: Mapping[str, Any], origin: ScaleOrigin
) -> float:
    """alpha / r, or alpha / sqrt(r) (arXiv:2312.03732); AdapterError for one that is of no use.

    A `rank` of None is the configuration's: the factors of a LoHa or LoKr need not tell it.
    """
    source, entry, remedy, key = origin
    try:
        plainly = config.get("alpha" if config.get("peft_type") in LYCORIS else "lora_alpha")
        alpha = _by_pattern(module, config.get("alpha_pattern"), plainly)
        if rank is None:
            rank = _by_pattern(module, config.get("rank_pattern"), config.get("r"))
            if type(rank) is not int or rank < 1:
                raise ValueError(f"r is {rank!r} for {module}")
        plain = isinstance(alpha, int | float) and not isinstance(alpha, bool)
        if not plain or not math.isfinite(alpha):
            raise ValueError(f"lora_alpha is {alpha!r} for {module}")
        scale: float = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    except (ValueError, re.error) as error:
        raise AdapterError(f"{entry}: {error}", source=source, remedy=remedy) from error
    except OverflowError as error:
        problem = f"{entry}: lora_alpha is too large for {module}"
        raise AdapterError(problem, source=source, remedy=remedy) from error
    return checked_scale(scale * rank, scale, source, key, remedy)


def _by_pattern(module: str, patterns: Any, default: Any) -> Any:
    """PEFT's rule: the first pattern that matches the path or its end after a dot."""
    if not isinstance(patterns or {}, dict):
        raise ValueError(f"a pattern table is {patterns!r}")
    for pattern, value in (patterns or {}).items():
        if _is_endless(str(pattern), module):
            raise ValueError(
                f"the pattern {str(pattern)[:80]!r} could take for ever to match: write plain "
                "module names in alpha_pattern"
            )
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        except (re.error, RecursionError, OverflowError) as error:
            problem = f"{str(pattern)[:80]!r} is no regular expression: {error}"
            raise ValueError(problem) from error
    return default


def _is_endless(pattern: str, module: str) -> bool:
    """Whether a file's own pattern may need more than some million steps on this name."""
    repeats = len(re.findall(r"[*+{]", pattern))
    groups = re.search(r"\)[*+{?]|\\[0-9]", pattern) is not None
    return groups or repeats > REPEATS or (repeats > 0 and len(module) > LONGEST)


def config_fields(modules: Mapping[str, tuple[int, float]]) -> dict[str, Any]:
    """PEFT's settings for modules of these ranks and scales: alpha is scale times rank."""
    ranks = {name: rank for name, (rank, _) in modules.items()}
    products = {name: rank * scale for name, (rank, scale) in modules.items()}
    alphas = {name: int(a) if a == int(a) else a for name, a in products.items()}
    rank, alpha = _most_common(ranks), _most_common(alphas)
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": _patterns(ranks, rank),
        "alpha_pattern": _patterns(alphas, alpha),
        "target_modules": sorted(modules),
        "use_rslora": False,
        "init_lora_weights": True,
    }


def _most_common(values: Mapping[str, Value]) -> Value:
    counts = Counter(values.values())
    return max(counts, key=lambda value: (counts[value], -value))


def _patterns(values: Mapping[str, Value], usual: Value) -> dict[str, Value]:
    """The values that are not the usual one, each by its module's name.

    PEFT takes the first pattern that matches a name or its end. Where the end of one name is
    another, patterns are tied to the start; older versions of PEFT do not know how to read those.
    """
    unusual = {name: values[name] for name in sorted(values) if values[name] != usual}
    plain = all(re.fullmatch(r"[\w.-]+", name) for name in unusual)
    ends = [(name, name[at + 1 :]) for name in values for at, c in enumerate(name) if c == "."]
    if plain and all(unusual.get(end, values[name]) == values[name] for name, end in ends):
        return unusual
    return {f"^{re.escape(name)}": value for name, value in unusual.items()}
