"""Scores of a policy's own answers, K to a prompt, appended to files that a killed run goes on with (host code).

s_k is the judge's word on answer k, on the scale of its scores, 1..10: `judged` of the reward scheme's formula
(`structured`) mapped back from 0..1 by 1 + 9 * judged (of the scheme steer it starts at 1.9). So Q and I are those of the
reward that GRPO would see, penalties and gates included, but for the rule terms.
"""

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from safer_jax import config as config_lib
from safer_jax import data, metrics, structured, verdicts
from safer_jax.curate import CurateError
from safer_jax.shapes import Record
from safer_jax.verdicts import HIGH, LOW, Verdict

SHARD = 1024  # rows of the source whose scores stand in one file
DIGITS = 6  # of every number: equal scores have a spread of 0, not of a rounding error
# What does not change an answer, a verdict or s_k.
MAY_CHANGE = (
    "mesh.", "sft.", "reflection.", "grpo.", "optimizer.", "eval.", "eval_judge.", "checkpoint.", "log.", "model.path", "model.remat",
    "data.root", "data.eval_rows", "data.bad_rows", "sampler.group", "sampler.temperature", "sampler.prompts_per_pass",
    "judge.url", "judge.key_env", "judge.deadline", "judge.retries", "judge.concurrency", "judge.cache",
    "judge.max_failed", "judge.window", "judge.canaries_every",
)  # fmt: skip

Ask = Callable[[Sequence[int]], tuple[list[Record], list[list[str]]]]  # rows -> their records, K responses to each


class Settings(NamedTuple):
    """What the scores of a folder depend on; `config.sampler` is read but for group and temperature."""

    config: config_lib.Config
    rollouts: int  # K
    temperature: float
    policy: str  # which weights
    rows: int  # of the source


class Group(NamedTuple):
    """One prompt scored, a line of scores/*.jsonl. None where the judge gave no verdict, and there the comment says why."""

    row: int  # of the source
    id: str
    source: str
    category: str
    licence: str
    scores: tuple[float | None, ...]  # s_k
    safety: tuple[float | None, ...]  # `verdicts.safety`, by which training accepts and rejects
    responses: tuple[str, ...]
    comments: tuple[str, ...]

    @property
    def judged(self) -> list[float]:
        """The scores that there are."""
        return [score for score in self.scores if score is not None]

    @property
    def is_set_aside(self) -> bool:
        """True where fewer than half of the answers were judged: no Q and no I."""
        return 2 * len(self.judged) < len(self.scores)

    @property
    def quality(self) -> float | None:
        """Q, 1..10."""
        return None if self.is_set_aside else round(float(np.mean(self.judged)), DIGITS)

    @property
    def instability(self) -> float | None:
        """I, 0..4.5: the standard deviation of the scores that there are."""
        return None if self.is_set_aside else round(float(np.std(self.judged)), DIGITS)


def claim(folder: Path, settings: Settings) -> None:
    """Write settings.json into a new folder of scores. Raises CurateError where it holds scores of other settings."""
    target = folder / "settings.json"
    if not target.exists():
        if any(files(folder)):
            raise CurateError(f"{folder}: holds scores but no settings.json; choose another --out")
        folder.mkdir(parents=True, exist_ok=True)
        values = {**settings._asdict(), "config": dataclasses.asdict(settings.config)}
        replace(target, json.dumps(values, indent=2) + "\n")
    old = read_settings(folder)
    lines = config_lib.differences(old.config, settings.config)
    changed = [line for line in lines if not line.startswith(MAY_CHANGE)]
    for name in settings._fields[1:]:
        if getattr(old, name) != getattr(settings, name):
            changed.append(f"{name}: {getattr(old, name)!r} -> {getattr(settings, name)!r}")
    if changed:
        raise CurateError(
            f"{folder} holds scores of other settings:\n  "
            + "\n  ".join(changed)
            + "\ntake them back to go on, or choose another --out"
        )


def read_settings(folder: Path) -> Settings:
    """What the scores of a folder were made with. Raises CurateError where it is no such folder."""
    try:
        values = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
        config = config_lib.from_json(json.dumps(values.pop("config")))
        return Settings(config, **values)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CurateError(f"{folder / 'settings.json'}: cannot be read ({error}); give the --out of score") from error


def word(verdict: Verdict, rubric: str, settings: config_lib.Reward) -> float | None:
    """s_k, 1..10, as the top of this module says; None without a verdict."""
    judged = structured.terms(rubric, verdict, settings)["judged"]
    return _number(LOW + (HIGH - LOW) * judged)


def shards(rows: Iterable[int], part: int = 0, parts: int = 1) -> dict[int, list[int]]:
    """Rows by the number of their file; of several processes that share the work each takes every `parts`-th file."""
    made: dict[int, list[int]] = {}
    for row in rows:
        if row // SHARD % parts == part:
            made.setdefault(row // SHARD, []).append(row)
    return made


def score(
    folder: Path,
    rows: Mapping[int, Sequence[int]],
    ask: Ask,
    judge: verdicts.Judge,
    rubric: str,
    reward: config_lib.Reward,
    size: int,
    *,
    is_ahead: bool = True,
    is_again: bool = False,
    stop: Callable[[int], bool] = lambda done: False,
) -> bool:
    """Score the rows that have no line yet; whether all of them have one now.

    Args:
      folder: gets scores/{shard}.jsonl, where a line is there whole or, after a kill, not at all.
      rows: rows of the source by shard, each shard's in the order in which they are asked.
      ask: samples; called with up to `size` rows at a time.
      judge, rubric, reward: what s_k is made of.
      is_ahead: True = the next rows are sampled while these are judged.
      is_again: True = prompts that were set aside are scored once more.
      stop: called with the number of prompts done after each pass; True ends it.

    Raises JudgeDown; what was judged before stays.
    """
    missing = {shard: _missing(folder, shard, own, is_again) for shard, own in rows.items()}
    passes = [(shard, own[i : i + size]) for shard, own in missing.items() for i in range(0, len(own), size)]
    total = sum(map(len, rows.values()))
    done = total - sum(map(len, missing.values()))
    progress = metrics.Progress(total, done, "prompts", ("quality", "instability", "unjudged"), "prompt")
    with data.Prefetch(ask) as answers:
        for number, (shard, own) in enumerate(passes):
            records, responses = answers.get(own)
            if is_ahead and number + 1 < len(passes):
                answers.ahead(passes[number + 1][1])
            groups = _judge(own, records, responses, judge, rubric, reward)
            _append(folder, shard, groups)
            done += len(own)
            progress.update(done, _figures_of(groups))
            if stop(done):
                break
    return done == total


def _judge(
    rows: Sequence[int],
    records: Sequence[Record],
    responses: Sequence[Sequence[str]],
    judge: verdicts.Judge,
    rubric: str,
    reward: config_lib.Reward,
) -> list[Group]:
    pairs = [(record, text) for record, texts in zip(records, responses, strict=True) for text in texts]
    said = iter(judge(*zip(*pairs, strict=True)))
    groups = []
    for row, record, texts in zip(rows, records, responses, strict=True):
        own = [next(said) for _ in texts]
        group = Group(
            row=row,
            id=record.id,
            source=record.source,
            category=record.category,
            licence=record.licence,
            scores=tuple(word(verdict, rubric, reward) for verdict in own),
            safety=tuple(_number(float(verdicts.safety(judge.rubric, verdict.value_J))) for verdict in own),
            responses=tuple(texts),
            comments=tuple(verdict.error or verdict.comment for verdict in own),
        )
        if group.is_set_aside:
            error = next(verdict.error for verdict in own if verdict.error)
            say(f"set aside: {group.id}: {len(group.judged)} of {len(own)} answers judged; {error}")
        groups.append(group)
    return groups


def _figures_of(groups: Sequence[Group]) -> dict[str, float]:
    """What the progress line shows of a pass."""
    judged = [group for group in groups if not group.is_set_aside]
    means = {name: np.mean([getattr(group, name) for group in judged]) for name in ("quality", "instability")}
    return {**(means if judged else {}), "unjudged": sum(group.scores.count(None) for group in groups)}


def files(where: Path) -> list[Path]:
    """The score files of a folder of scores, in order, or the one file that `where` is."""
    return [where] if where.is_file() else sorted((where / "scores").glob("*.jsonl"))


def read(paths: Iterable[Path]) -> Iterator[Group]:
    """The groups of score files. A line that is none is named on stderr and left out; a row's first line counts."""
    for file in paths:
        seen = set()
        for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").split("\n"), 1):
            if not line.strip():
                continue
            try:
                group = _parse(line)
            except (ValueError, TypeError, RecursionError) as error:
                say(f"{file}, line {number}: no scores ({str(error)[:100]}): {line[:60]!r}")
                continue
            if group.row not in seen:
                seen.add(group.row)
                yield group


def _missing(folder: Path, shard: int, rows: Sequence[int], is_again: bool) -> list[int]:
    """The rows of a shard without a line; its file is mended first where a kill has cut a line."""
    file = path(folder, shard)
    if not file.exists():
        return list(rows)
    groups = [group for group in read([file]) if not (is_again and group.is_set_aside and group.row in rows)]
    whole = "".join(map(_line, groups))
    if file.read_bytes() != whole.encode():
        replace(file, whole)
    done = {group.row for group in groups}
    return [row for row in rows if row not in done]


def _append(folder: Path, shard: int, groups: Sequence[Group]) -> None:
    target = path(folder, shard)
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target, "ab") as file:
        file.write("".join(map(_line, groups)).encode())


def path(folder: Path, shard: int) -> Path:
    """The file of a shard's scores."""
    return folder / "scores" / f"{shard:05d}.jsonl"


def _line(group: Group) -> str:
    """JSON in ASCII; quality and instability are there for other readers."""
    return json.dumps({**group._asdict(), "quality": group.quality, "instability": group.instability}) + "\n"


def _parse(line: str) -> Group:
    """Raises ValueError or TypeError."""
    entry = json.loads(line)
    if not isinstance(entry, dict) or (lacks := [name for name in Group._fields if name not in entry]):
        raise ValueError(f"lacks {', '.join(lacks)}" if isinstance(entry, dict) else "no object")
    values = {name: tuple(entry[name]) if isinstance(entry[name], list) else entry[name] for name in Group._fields}
    group = Group(**values)
    count = len(group.scores)
    is_score = lambda value: value is None or type(value) in (int, float) and LOW <= value <= HIGH
    if type(group.row) is not int or not count or any(len(values) != count for values in group[-3:]):
        raise ValueError("row is no number, or not every answer has its scores, response and comment")
    if not all(is_score(value) for value in (*group.scores, *group.safety)):
        raise ValueError(f"a score is no number from {LOW} to {HIGH}")
    if not all(isinstance(text, str) for text in (*group[1:5], *group.responses, *group.comments)):
        raise ValueError("a text is none")
    return group


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return None if np.isnan(value) else round(value, DIGITS)


def replace(target: Path, text: str) -> None:
    """Write a file that is there whole or as it was."""
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, target)


def say(text: str) -> None:
    """For people, on stderr."""
    print(text, file=sys.stderr, flush=True)
