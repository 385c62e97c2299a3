"""Settings that cannot be meant together, each said with its fix (host code).

The functions take `config.Config` and its sections, whose module stands above this one.
"""

import re
import typing
import urllib.parse
from collections.abc import Iterator
from typing import Any

from safer_jax import fields, responses
from safer_jax.datasets import DataError, mixture

RULES = ("safegrpo", "safegrpo_plus")  # schemes that need no judge


def of_training(config: Any) -> Iterator[str]:
    """What only a run that trains cannot do with: other commands name their own sets, and what they judge."""
    if config.data.name not in ("demo", "mixture") and not config.data.path:
        yield (f"data.path = '': data.name = {config.data.name!r} is read from disk; set it to the data set's folder")
    yield from _judging_conflicts(config)


def of(config: Any) -> Iterator[str]:
    """What each field alone does not show."""
    yield from _size_conflicts(config)
    yield from _choice_conflicts(config)
    yield from _judge_conflicts("judge", config.judge)
    yield from _judge_conflicts("eval_judge", config.eval_judge)
    if config.eval_judge.canaries_every and config.eval_judge.kind != "none":
        yield f"eval_judge.canaries_every = {config.eval_judge.canaries_every}: is of training; set it to 0"
    data, prompt, mesh = config.data, config.prompt, config.mesh
    if mesh.data == 0 or mesh.data < -1:
        yield f"mesh.data = {mesh.data}: must be -1 (the devices that the other axes leave) or at least 1"
    yield from _mixture_conflicts(data)
    if data.train_split == data.eval_split:
        yield f"data.eval_split = {data.eval_split!r}: is data.train_split too; evaluate on rows that are not trained on"
    ascending = {f"prompt.{name}": getattr(prompt, name) for name in ("buckets", "patch_buckets")}
    ascending |= {"reflection.row_counts": config.reflection.row_counts}
    ascending |= {"judge.buckets": config.judge.buckets, "eval_judge.buckets": config.eval_judge.buckets}
    for name, sizes in ascending.items():
        if list(sizes) != sorted(set(sizes)):
            yield f"{name} = {sizes!r}: must ascend; write {tuple(sorted(set(sizes)))!r}"
    if prompt.min_pixels > prompt.max_pixels:
        yield f"prompt.min_pixels = {prompt.min_pixels}: is above prompt.max_pixels = {prompt.max_pixels}; lower it"
    if prompt.max_pixels > prompt.max_source_pixels:
        yield (
            f"prompt.max_source_pixels = {prompt.max_source_pixels}: is below prompt.max_pixels = {prompt.max_pixels};"
            " raise it"
        )


def _mixture_conflicts(data: Any) -> Iterator[str]:
    sets = {"mixture": data.mixture, "eval_sets": data.eval_sets}
    if data.name != "mixture":
        for name, lines in sets.items():
            if lines:
                yield f"data.{name} = {lines!r}: has no effect with data.name = {data.name!r}; set it to () or name to 'mixture'"
        return
    if data.path:
        yield f"data.path = {data.path!r}: has no effect with data.name = 'mixture', whose lines name the folders; set it to ''"
    seen = {}
    for name, lines in sets.items():
        if not lines:
            yield f"data.{name} = (): data.name = 'mixture' needs a set there; write one such as {_SETS[name]!r}"
        for line in lines:
            try:
                entry = str(mixture.parse(line, is_weighed=name == "mixture"))
            except DataError as error:
                yield f"data.{name}: {error}"
                continue
            if entry in seen:
                fix = "name it once" if seen[entry] == name else "evaluate on rows that are not trained on"
                yield f"data.{name}: {line!r} is in data.{seen[entry]} too; {fix}"
            seen[entry] = name


_SETS = {"mixture": ("2 safetag train /data/SafeTag-VL-3K",), "eval_sets": ("safetag test /data/SafeTag-VL-3K",)}


def _size_conflicts(config: Any) -> Iterator[str]:
    grpo, sampler = config.grpo, config.sampler
    if grpo.prompts % grpo.minibatches:
        yield _divides("grpo.minibatches", grpo.minibatches, "grpo.prompts", grpo.prompts)
    elif grpo.prompts // grpo.minibatches % grpo.micro_prompts:
        size = grpo.prompts // grpo.minibatches
        yield _divides("grpo.micro_prompts", grpo.micro_prompts, "grpo.prompts / grpo.minibatches", size)
    if config.sft.rows > grpo.micro_prompts and config.sft.rows % grpo.micro_prompts:
        yield (
            f"sft.rows = {config.sft.rows}: is no multiple of grpo.micro_prompts = {grpo.micro_prompts}, the prompts whose "
            f"gradient is computed at once; the nearest is {round(config.sft.rows / grpo.micro_prompts) * grpo.micro_prompts}"
        )
    if grpo.logp_chunk < grpo.micro_prompts:
        yield f"grpo.logp_chunk = {grpo.logp_chunk}: is below grpo.micro_prompts = {grpo.micro_prompts}; raise it to that"
    if grpo.micro_group and sampler.group % grpo.micro_group:
        yield _divides("grpo.micro_group", grpo.micro_group, "sampler.group", sampler.group)
    if sampler.prompts_per_pass and grpo.prompts % sampler.prompts_per_pass:
        yield _divides("sampler.prompts_per_pass", sampler.prompts_per_pass, "grpo.prompts", grpo.prompts)


def _choice_conflicts(config: Any) -> Iterator[str]:
    grpo, sampler = config.grpo, config.sampler
    if grpo.kl == "none" and grpo.beta > 0:
        yield f"grpo.beta = {grpo.beta}: has no effect with grpo.kl = 'none'; set beta to 0 or kl to 'k3'"
    if 0 < grpo.dual_clip <= 1:
        yield f"grpo.dual_clip = {grpo.dual_clip}: must be 0 (off) or above 1, 3 is usual"
    if grpo.overlong == "soft_penalty" and not 0 < grpo.overlong_buffer <= sampler.max_tokens:
        yield (
            f"grpo.overlong_buffer = {grpo.overlong_buffer}: grpo.overlong = 'soft_penalty' needs 1 to "
            f"sampler.max_tokens = {sampler.max_tokens} tokens"
        )
    if grpo.overlong != "soft_penalty" and grpo.overlong_buffer:
        yield (
            f"grpo.overlong_buffer = {grpo.overlong_buffer}: has no effect with grpo.overlong = {grpo.overlong!r}; "
            "set it to 0 or overlong to 'soft_penalty'"
        )
    for name, value, off in (("top_k", sampler.top_k, 0), ("top_p", sampler.top_p, 1.0)):
        # The ratios are of whole distributions; of a truncated one they are biased.
        if value != off and grpo.correction != "none":
            yield f"sampler.{name} = {value}: biases grpo.correction = {grpo.correction!r}; set one of them to {off}, none"
        elif value != off and grpo.minibatches > 1:
            yield (
                f"sampler.{name} = {value}: biases the ratios of grpo.minibatches = {grpo.minibatches}; "
                f"set it to {off} or minibatches to 1"
            )
    yield from _reward_conflicts(config.reward)


def _reward_conflicts(reward: Any) -> Iterator[str]:
    if reward.scheme in RULES and reward.tag_weight == reward.behaviour_weight == 0:
        yield "reward.tag_weight = 0.0: and behaviour_weight is 0 too, nothing right would be rewarded; raise one of them"
    for name, hint in fields.hints(type(reward)).items():
        value, marks = getattr(reward, name), getattr(hint, "__metadata__", ())
        if isinstance(value, tuple) and not any(value) and float in typing.get_args(fields.plain(hint)):
            yield f"reward.{name} = {value!r}: weighs nothing; give one of them a weight above 0"
        for mark in marks:
            if isinstance(mark, fields.Only) and mark.scheme != reward.scheme and mark.idle != value:
                yield (
                    f"reward.{name} = {value!r}: has no effect with reward.scheme = {reward.scheme!r}; "
                    f"set it to {mark.idle!r} or scheme to {mark.scheme!r}"
                )
    for name in ("refusals", "warnings"):
        try:
            responses.phrases(getattr(reward, name))
        except ValueError as error:
            yield f"reward.{name}: {error}"
    if reward.length_weight and not reward.length_limit:
        yield f"reward.length_limit = 0: reward.length_weight = {reward.length_weight} needs 1 or more characters that are free"
    if reward.length_limit and not reward.length_weight:
        yield f"reward.length_limit = {reward.length_limit}: has no effect with reward.length_weight = 0.0; set it to 0"


def _judging_conflicts(config: Any) -> Iterator[str]:
    kind, scheme, reruns = config.judge.kind, config.reward.scheme, config.reflection.reruns
    if kind == "none" and scheme not in RULES:
        yield f"judge.kind = 'none': reward.scheme = {scheme!r} needs a judge; choose one, or scheme 'safegrpo'"
    if kind == "none" and reruns:
        yield f"judge.kind = 'none': reflection.reruns = {reruns} needs a judge that rejects; choose one, or set reruns to 0"
    if config.sft.reflections and not reruns:
        yield f"sft.reflections = {config.sft.reflections}: shows reruns, but reflection.reruns = 0; set either"
    if kind != "none" and scheme in RULES and not reruns:
        yield (
            f"judge.kind = {kind!r}: has no effect with reward.scheme = {scheme!r} and reflection.reruns = 0; set it to "
            "'none', or change one of these"
        )


def _judge_conflicts(section: str, judge: Any) -> Iterator[str]:
    if judge.kind == "http":
        for name in ("url", "model"):
            if not getattr(judge, name):
                yield f"{section}.{name} = '': {section}.kind = 'http' asks a server; set it"
    if judge.kind in ("recorded", "local", "score") and not judge.path:
        yield f"{section}.path = '': {section}.kind = {judge.kind!r} is read from disk; set it"
    if judge.kind == "score" and judge.temperature:
        yield f"{section}.temperature = {judge.temperature}: has no effect with {section}.kind = 'score'; set it to 0"
    if judge.kind == "none" and judge.canaries_every:
        yield f"{section}.canaries_every = {judge.canaries_every}: has no effect with {section}.kind = 'none'; set it to 0"
    # A secret in one of these would be written to config.json, so neither is shown where it may hold one.
    if "@" in judge.url or "?" in judge.url:
        yield (
            f"{section}.url: holds a login or a query (not shown); leave it off and name the key's variable in "
            f"{section}.key_env"
        )
    elif judge.url and not _is_url(judge.url):
        yield f"{section}.url = {judge.url!r}: is no http(s) address; write one such as http://localhost:8000/v1"
    if judge.key_env and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", judge.key_env):
        yield (
            f"{section}.key_env: is no name of an environment variable (not shown, it may be the key itself); write the name"
        )


def _is_url(text: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(text)
        return bool(re.fullmatch(r"https?://[^\s#]+", text) and text.isascii() and parts.hostname and parts.port != 0)
    except ValueError:  # of a port that is none
        return False


def _divides(name: str, value: int, whole: str, size: int) -> str:
    divisors = [number for number in range(1, size + 1) if size % number == 0]
    near = min(divisors, key=lambda number: abs(number - value))
    return f"{name} = {value}: does not divide {whole} = {size}; the nearest divisor is {near}"
