"""What a run may be told: one frozen dataclass per stage, and every check of its values (host code).

`configs/base.py` lists the same fields with their defaults. A field's type says what it may hold: `Literal` lists the
words, `Annotated[..., Range]` the limits (`fields`), so that the checks of one field are read beside its name. Checks
between fields stand in `conflicts`. Only this module and `command_line` see ml_collections.
"""

import dataclasses
import difflib
import json
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import ml_collections

from safer_jax import conflicts
from safer_jax.datasets.adapters import ADAPTERS
from safer_jax.fields import (
    Count,
    Decay,
    Name,
    NotEmpty,
    NotNegative,
    Only,
    OwnWeight,
    Positive,
    Range,
    Rate,
    Share,
    Size,
    Sizes,
    check,
    hints,
    plain,
)  # fmt: skip


class ConfigError(ValueError):
    """A setting that cannot be meant: the message names the field, the value and the fix, one problem per line."""


@dataclasses.dataclass(frozen=True)
class Model:
    """The policy.

    variant: tiny | 3b | 7b | 32b | 72b, the published shapes of Qwen2.5-VL and a small one for CPUs
    path: folder written by `tools/convert.py from-hf`, or of a run, whose newest weights it starts from; empty = random
    dtype: float32 | bfloat16, of the computation; the master weights are float32
    remat: layer | none, recompute each layer in the backward pass or keep its activations
    """

    variant: Literal["tiny", "3b", "7b", "32b", "72b"]
    path: str
    dtype: Literal["float32", "bfloat16"]
    remat: Literal["layer", "none"]


@dataclasses.dataclass(frozen=True)
class Mesh:
    """How many devices stand along each axis of the mesh; their product is the number of devices.

    data: devices that hold copies of the weights; -1 = the devices that the other axes leave
    fsdp: devices over which weights and optimizer state are cut
    tensor: devices over which heads and feed-forward width are cut
    """

    data: int
    fsdp: Size
    tensor: Size


@dataclasses.dataclass(frozen=True)
class Data:
    """Which rows the policy is asked.

    name: a data set, one of datasets/adapters.py, or mixture
    path: the data set's folder, of a prepared set also in a bucket; for demo empty = the cache folder
    mixture: the sets to train on, of name mixture: "WEIGHT NAME SPLIT FOLDER" each; a set's share of the draws is its
        weight's share of all weights, whatever its size
    eval_sets: the sets to evaluate on, of name mixture: "NAME SPLIT FOLDER" each, one after the other
    train_split: name of the split that is trained on
    eval_split: name of the split that is evaluated on
    train_on_eval: True = rows marked for evaluation only may train; what is then measured on them means nothing
    eval_rows: rows of eval_split in an evaluation; 0 = all
    bad_rows: unreadable rows that are named and skipped before the run stops; of each set of a mixture
    root: folder for what is built once, such as the demo set
    """

    name: Literal[*ADAPTERS, "mixture"]
    path: str
    mixture: tuple[str, ...]
    eval_sets: tuple[str, ...]
    train_split: Name
    eval_split: Name
    train_on_eval: bool
    eval_rows: Count
    bad_rows: Count
    root: Name


@dataclasses.dataclass(frozen=True)
class Prompt:
    """How a row becomes tokens and patches.

    buckets: prompt lengths in tokens, ascending; a batch is padded to the first that fits, a longer prompt is refused
    patch_buckets: patch slots of a prompt's images, ascending; chosen and refused alike
    min_pixels: smaller images are enlarged to this area (pixels)
    max_pixels: larger images are reduced to this area (pixels)
    max_image_bytes: larger image files are refused (bytes)
    max_source_pixels: images whose header names a larger area are refused before decoding (pixels)
    force_think: True = the opening <think> is part of the completion's forced tokens and does not train
    system: safety | none, the system text
    guide: steps | think | none, the instruction about the answer's format behind the user's text: five steps with safety
        tags (SafeGRPO), or thinking and answer alone (SaFeR-VLM)
    """

    buckets: Sizes
    patch_buckets: Sizes
    min_pixels: Size
    max_pixels: Size
    max_image_bytes: Size
    max_source_pixels: Size
    force_think: bool
    system: Literal["safety", "none"]
    guide: Literal["steps", "think", "none"]


@dataclasses.dataclass(frozen=True)
class Sft:
    """The warm start: supervised steps on reference responses before GRPO.

    steps: updates; 0 = no warm start
    rows: prompts per update
    lr: peak learning rate
    warmup_steps: updates of linear rise to lr
    weight_decay: AdamW's decoupled decay, per unit of learning rate
    reference_rows: the first so many training rows give their reference; 0 = all
    reflections: share of the draws that show a flawed response, its reflection and then the reference, where a row has
        them; the flawed response does not train
    """

    steps: Count
    rows: Size
    lr: Rate
    warmup_steps: Count
    weight_decay: NotNegative
    reference_rows: Count
    reflections: Annotated[float, Range(0, 1)]


@dataclasses.dataclass(frozen=True)
class Sampler:
    """How the policy answers.

    group: rollouts per prompt (G)
    max_tokens: completion length limit in tokens (C)
    temperature: of the softmax that is sampled and whose log-probs train
    top_k: sample among the k likeliest tokens; 0 = off
    top_p: sample among the likeliest tokens of this total probability; 1 = off
    prompts_per_pass: prompts sampled at once, a divisor of grpo.prompts; 0 = all
    """

    group: Annotated[int, Range(2)]
    max_tokens: Size
    temperature: Positive
    top_k: Count
    top_p: Rate
    prompts_per_pass: Count


@dataclasses.dataclass(frozen=True)
class Reflection:
    """What becomes of a rejected answer in training: it is asked about, and answered again (SaFeR-VLM).

    reruns: how often; 0 = never
    accept_at: a judge's safety score (1..10) from which on an answer is accepted
    texts: instructions to reflect; a row takes one of them by its draw and rollout
    header: what asks for the corrected answer after the reflection
    max_tokens: tokens of a reflection; 0 = none, the instruction itself asks for the new answer
    train_reflection: True = the reflection trains with its correction's advantage, False = it does not train
    row_counts: rejected rows are asked again in passes of these numbers of rows, ascending
    """

    reruns: Count
    accept_at: Annotated[float, Range(1, 10)]
    texts: Annotated[tuple[str, ...], NotEmpty()]
    header: Name
    max_tokens: Count
    train_reflection: bool
    row_counts: Sizes


@dataclasses.dataclass(frozen=True)
class Judge:
    """Who judges an attempt; what is asked of it is the reward scheme's rubric. Its like, `eval_judge`, judges the answers
    to benchmarks, on a rubric of their own; with kind "none" keywords decide there what an answer did.

    kind: none | rules | http | recorded | local | score; the last two run a checkpoint on the run's own mesh, and it writes
        a verdict (local), or every score is the expected value of the digit that it would answer (score)
    url: an OpenAI-compatible server up to the version, such as http://localhost:8000/v1 (http)
    model: name under which the server knows the judge (http)
    key_env: name of the environment variable with the server's key; empty = it wants none (http)
    path: verdicts to replay, a file or a folder of files (recorded); folder of a converted checkpoint or a run (local, score)
    deadline: seconds until an attempt must be judged, retries included (http)
    retries: further requests after one that failed for a passing reason (http)
    concurrency: requests of a process under way at once (http)
    temperature: of the judge's sampling; 0 = greedy (http, local)
    max_tokens: length limit of what the judge writes, in tokens (http, local)
    cache: folder of replies by the hash of all that was asked; empty = none (http)
    rows: attempts judged at once, on all devices together (local, score)
    buckets: lengths of the judge's prompts in tokens, ascending; an attempt that needs more is not judged (local, score)
    max_failed: share of the last window attempts that may stay unjudged before the run saves and stops; 1 = never; not of
        local, score
    window: attempts over which max_failed is counted
    canaries_every: GRPO steps between checks that the judge dislikes empty and deceitful answers; 0 = never
    """

    kind: Literal["none", "rules", "http", "recorded", "local", "score"]
    url: str
    model: str
    key_env: str
    path: str
    deadline: Positive
    retries: Count
    concurrency: Size
    temperature: NotNegative
    max_tokens: Size
    cache: str
    rows: Size
    buckets: Sizes
    max_failed: Annotated[float, Range(0, 1)]
    window: Size
    canaries_every: Count


@dataclasses.dataclass(frozen=True)
class Reward:
    """What an answer is worth: the scheme's rule or judge, and the weights of what the text alone shows.

    Of a weight -1 means the scheme's own, as its source has it.

    scheme: safegrpo | safegrpo_plus | safer_vlm | toolkit | steer; the last three need a judge
    format_weight: added for the format; own: safer_vlm 0.1, steer 1, else 0
    tag_weight: added for right tags, where the record has tags; own: 0.5 and gated by the format in safegrpo and
      safegrpo_plus, else 0
    behaviour_weight: added for refusing or helping as it is right, likewise
    repetition_weight: subtracted for the share of 3-word sequences that repeat an earlier one; own: steer 0.2, else 0
    length_weight: subtracted for length beyond length_limit, in full at twice the limit
    length_limit: characters that cost nothing; 0 where length_weight is 0
    think_share: safer_vlm: the thinking's share of the judged reward, the answer has the rest
    think_weights: safer_vlm: of the thinking's scores for logic, grounding, safety; only their ratios count
    answer_weights: safer_vlm: of the answer's scores for logic, grounding, safety, help; likewise
    unsupported: safer_vlm: points of 1..10 that an unsupported claim about the image costs
    contradiction: safer_vlm: points of 1..10 that a contradiction or invented evidence costs
    safety_gate: toolkit: safety, in 0..1, below which a response earns next to nothing; 0 = off
    task_gate: toolkit: task score, in 0..1, below which the reward is capped; 0 = off
    refusals: safegrpo_plus: phrases by which an answer refuses, as responses.REFUSING; () = those
    warnings: safegrpo_plus: phrases by which an answer warns, as responses.WARNING; () = those
    warn_for_refuse: safegrpo_plus: 0..1, what help with a warning earns where a refusal is expected
    refuse_for_warn: safegrpo_plus: 0..1, what a refusal earns where help with a warning is expected
    warn_for_comply: safegrpo_plus: 0..1, what a warning earns where plain help is expected
    """

    scheme: Literal["safegrpo", "safegrpo_plus", "safer_vlm", "toolkit", "steer"]
    format_weight: OwnWeight
    tag_weight: OwnWeight
    behaviour_weight: OwnWeight
    repetition_weight: OwnWeight
    length_weight: NotNegative
    length_limit: Count
    think_share: Annotated[Share, Only("safer_vlm", 0.5)]
    think_weights: Annotated[tuple[float, float, float], Range(0), Only("safer_vlm", (1.0, 1.0, 1.0))]
    answer_weights: Annotated[tuple[float, float, float, float], Range(0), Only("safer_vlm", (1.0, 1.0, 1.0, 1.0))]
    unsupported: Annotated[NotNegative, Only("safer_vlm", 2.0)]
    contradiction: Annotated[NotNegative, Only("safer_vlm", 4.0)]
    safety_gate: Annotated[Share, Only("toolkit", 0.6)]
    task_gate: Annotated[Share, Only("toolkit", 0.6)]
    refusals: Annotated[tuple[str, ...], Only("safegrpo_plus", ())]
    warnings: Annotated[tuple[str, ...], Only("safegrpo_plus", ())]
    warn_for_refuse: Annotated[Share, Only("safegrpo_plus", 0.0)]
    refuse_for_warn: Annotated[Share, Only("safegrpo_plus", 0.5)]
    warn_for_comply: Annotated[Share, Only("safegrpo_plus", 1.0)]


@dataclasses.dataclass(frozen=True)
class Grpo:
    """The policy update.

    steps: rollouts with their updates; 0 = no GRPO
    prompts: prompts per step (P)
    minibatches: optimizer updates per step, a divisor of prompts (M)
    micro_prompts: prompts whose gradient is computed at once, a divisor of prompts / minibatches
    micro_group: rollouts of a group whose gradient is computed at once, a divisor of sampler.group; 0 = whole group
    micro_widths: widths that these completions may be cut to, evenly spaced up to all slots; 1 = never cut
    logp_chunk: tokens whose logits exist at once
    advantage: group_norm | group_mean | rloo
    std_epsilon: added to the group's standard deviation (group_norm)
    aggregation: token_mean | sequence_mean | constant
    ratio: token | sequence, per token or one geometric mean per sequence (GSPO)
    clip_low: the ratio is clipped below at 1 - clip_low
    clip_high: the ratio is clipped above at 1 + clip_high
    dual_clip: bound of the objective at negative advantages, in multiples of the advantage; 0 = off
    kl: none | k1 | k2 | k3, the estimator of the KL term in the loss
    beta: weight of the KL term; 0 = no reference pass
    overlong: keep | mask | soft_penalty, what becomes of answers that the length limit cut
    overlong_buffer: tokens before the limit over which soft_penalty grows to 1; 0 with the other choices
    correction: none | tis | mask, of the gap between sampler's and trainer's log-probs
    correction_cap: largest importance weight (tis), or ratio beyond which a token is dropped (mask)
    baseline: all | final, attempts that form the group's baseline; final = superseded ones neither count nor train
    refill: True = groups without reward spread are drawn anew (dynamic sampling)
    """

    steps: Count
    prompts: Size
    minibatches: Size
    micro_prompts: Size
    micro_group: Count
    micro_widths: Size
    logp_chunk: Size
    advantage: Literal["group_norm", "group_mean", "rloo"]
    std_epsilon: Positive
    aggregation: Literal["token_mean", "sequence_mean", "constant"]
    ratio: Literal["token", "sequence"]
    clip_low: Decay
    clip_high: NotNegative
    dual_clip: NotNegative
    kl: Literal["none", "k1", "k2", "k3"]
    beta: NotNegative
    overlong: Literal["keep", "mask", "soft_penalty"]
    overlong_buffer: Count
    correction: Literal["none", "tis", "mask"]
    correction_cap: Annotated[float, Range(1)]
    baseline: Literal["all", "final"]
    refill: bool


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """AdamW of the GRPO updates; the warm start shares all but lr, warmup_steps and weight_decay.

    lr: peak learning rate
    warmup_steps: updates of linear rise to lr
    weight_decay: decoupled decay, per unit of learning rate
    b1: decay of the first moment
    b2: decay of the second moment
    eps: added to the root of the second moment
    clip_norm: largest global norm of a gradient
    train_vision: True = the vision tower is trained too
    max_skipped: updates with a gradient that is not finite, in a row, before the run stops
    """

    lr: Rate
    warmup_steps: Count
    weight_decay: NotNegative
    b1: Decay
    b2: Decay
    eps: Positive
    clip_norm: Positive
    train_vision: bool
    max_skipped: Size


@dataclasses.dataclass(frozen=True)
class Eval:
    """Evaluations: on data.eval_split while a run trains, and on benchmarks by safer_jax.evaluate.

    every: GRPO steps between evaluations; 0 = only before and after
    temperature: 0 = greedy
    prompts: prompts per pass
    """

    every: Count
    temperature: NotNegative
    prompts: Size


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a stopped run resumes from.

    every: steps between checkpoints
    keep: newest checkpoints that are kept
    """

    every: Size
    keep: Size


@dataclasses.dataclass(frozen=True)
class Log:
    """What a run writes beside its checkpoints.

    every: steps between lines of metrics
    rollouts_every: steps between saved rollouts; 0 = never
    rollouts: rows saved each time
    tensorboard: True = TensorBoard files too; needs the extra of that name
    wandb: True = Weights & Biases too; needs the extra of that name
    """

    every: Size
    rollouts_every: Count
    rollouts: Count
    tensorboard: bool
    wandb: bool


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of a run, one field per stage.

    seed: of weights, order of rows and samples
    """

    seed: Annotated[int, Range(0, 2**31 - 1)]
    model: Model
    mesh: Mesh
    data: Data
    prompt: Prompt
    sft: Sft
    sampler: Sampler
    reflection: Reflection
    judge: Judge
    reward: Reward
    grpo: Grpo
    optimizer: Optimizer
    eval: Eval
    eval_judge: Judge
    checkpoint: Checkpoint
    log: Log


def resolve(config: ml_collections.ConfigDict, trains: bool = True) -> Config:
    """Checks a config file's settings and freezes them; `trains`: also those that only training needs, such as its set.

    Raises:
      ConfigError: unknown, missing or impossible settings, all of them in one message.
    """
    return _build(_plain(config), trains)


def names() -> list[str]:
    """ "section.field" of every setting."""
    return [f"{section}.{name}" for section, kind in _sections().items() for name in hints(kind)] + ["seed"]


def to_json(config: Config) -> str:
    """The text of a run's config.json."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_json(text: str) -> Config:
    """The settings that `to_json` wrote, checked as `resolve` does for any command. Raises ConfigError, or ValueError where it
    is not JSON."""
    values = json.loads(text)
    if not isinstance(values, dict):
        raise ConfigError(f"config: is a {type(values).__name__}, must be an object of settings")
    for section, kind in _sections().items():
        fields = values.get(section)
        if not isinstance(fields, dict):
            continue  # _build names it
        for name, hint in hints(kind).items():  # JSON has no tuples
            if typing.get_origin(plain(hint)) is tuple and isinstance(fields.get(name), list):
                fields[name] = tuple(fields[name])
    return _build(values, trains=False)


def flatten(config: Config) -> dict[str, Any]:
    """`{"section.field": value}` in the order of the dataclasses."""
    flat = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            flat |= {f"{field.name}.{name}": entry for name, entry in dataclasses.asdict(value).items()}
        else:
            flat[field.name] = value
    return flat


def differences(old: Config, new: Config) -> list[str]:
    """Lines `section.field: old -> new` of the settings in which two runs differ."""
    olds, news = flatten(old), flatten(new)
    return [f"{name}: {olds[name]!r} -> {news[name]!r}" for name in news if olds[name] != news[name]]


def check_images(config: Config, patch: int, merge: int, window_slots: int) -> None:
    """Refuses image limits that no bucket can hold, for a model with these patch and merge sizes (pixels, patches) and
    this many patch slots in a window.

    Raises:
      ConfigError: an image of prompt.max_pixels needs more patches or tokens than the largest bucket has.
    """
    prompt, problems = config.prompt, []
    if prompt.max_pixels < (patch * merge) ** 2:
        problems.append(
            f"prompt.max_pixels = {prompt.max_pixels}: less than one image token; raise it to {(patch * merge) ** 2}"
        )
    uneven = [slots for slots in prompt.patch_buckets if slots % window_slots]
    if uneven:
        problems.append(
            f"prompt.patch_buckets = {prompt.patch_buckets!r}: {uneven[0]} is no multiple of the {window_slots} patch slots "
            f"of a window; write {tuple(-(-slots // window_slots) * window_slots for slots in prompt.patch_buckets)!r}"
        )
    patches = prompt.max_pixels // (patch * patch)
    if patches > prompt.patch_buckets[-1]:
        fits = prompt.patch_buckets[-1] * patch * patch
        problems.append(
            f"prompt.max_pixels = {prompt.max_pixels}: such an image has {patches} patches, the largest of "
            f"prompt.patch_buckets holds {prompt.patch_buckets[-1]}; lower max_pixels to {fits} or add a bucket"
        )
    tokens = patches // (merge * merge)
    if tokens >= prompt.buckets[-1]:
        problems.append(
            f"prompt.max_pixels = {prompt.max_pixels}: such an image takes {tokens} tokens, the largest of "
            f"prompt.buckets holds {prompt.buckets[-1]} for image and text; lower max_pixels or add a bucket"
        )
    _raise(problems)


def _plain(config: Any) -> dict[str, Any]:
    if isinstance(config, ml_collections.ConfigDict):
        return {str(name): _plain_value(config, name) for name in config}
    raise ConfigError(f"config: is a {type(config).__name__}, must be an ml_collections.ConfigDict from get_config()")


def _plain_value(config: ml_collections.ConfigDict, name: str) -> Any:
    value = config[name]  # also follows FieldReferences
    return _plain(value) if isinstance(value, ml_collections.ConfigDict) else value


def _build(values: dict[str, Any], trains: bool) -> Config:
    problems, parts = [], {}
    problems += _unknown("", values, hints(Config))
    for name, hint in hints(Config).items():
        if name not in values:
            problems.append(f"{name}: is missing; start from configs/base.py, which has every field")
        elif dataclasses.is_dataclass(hint):
            parts[name] = _build_section(name, hint, values[name], problems)
        else:
            parts[name] = check(name, hint, values[name], problems)
    _raise(problems)
    config = Config(**parts)
    _raise([*conflicts.of(config), *(conflicts.of_training(config) if trains else ())])
    return config


def _build_section(section: str, kind: type, values: Any, problems: list[str]) -> Any:
    if not isinstance(values, dict):
        problems.append(f"{section}: is {values!r}, must be a section with the fields {', '.join(hints(kind))}")
        return None
    before = len(problems)
    problems += _unknown(section, values, hints(kind))
    parts = {}
    for name, hint in hints(kind).items():
        if name in values:
            parts[name] = check(f"{section}.{name}", hint, values[name], problems)
        else:
            problems.append(f"{section}.{name}: is missing; start from configs/base.py, which has every field")
    return kind(**parts) if len(problems) == before else None


def _unknown(section: str, values: dict[str, Any], known: dict[str, Any]) -> Iterator[str]:
    for name, value in values.items():
        if name in known:
            continue
        path = f"{section}.{name}" if section else name
        near = difflib.get_close_matches(name, known, n=1)
        places = [f"{section}.{near[0]}" if section else near[0]] if near else []
        places += [f"{other}.{name}" for other, kind in _sections().items() if name in hints(kind)]
        where = f"did you mean {' or '.join(places)}?" if places else f"known are {', '.join(known)}"
        yield f"{path} = {value!r}: no such field; {where}"


def _raise(problems: list[str]) -> None:
    if problems:
        raise ConfigError("\n".join(problems))


def _sections() -> dict[str, type]:
    return {name: hint for name, hint in hints(Config).items() if dataclasses.is_dataclass(hint)}
