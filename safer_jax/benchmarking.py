"""A benchmark answered and judged: two passes over its rows, each of which goes on where it was stopped (host code; calls array code)."""

import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from safer_jax import attempts, data, measured, mesh, metrics, policy, prompts, runtime, scoring, verdicts
from safer_jax import config as config_lib
from safer_jax.benchmarks import answers
from safer_jax.judge import kinds
from safer_jax.judge.breaker import JudgeDown
from safer_jax.shapes import ANSWER, Record, Rollout

# Settings that an answer depends on, with the weights and the rows. The rows of a pass are among them: rounding.
MATTERS = (
    "seed", "model.variant", "model.dtype", "prompt.", "sampler.max_tokens", "eval.temperature", "eval.prompts",
)  # fmt: skip


class Task(NamedTuple):
    """One benchmark to answer: its rows, and the folder that gets the answers. A multiple choice needs no judge."""

    name: str
    split: str
    source: data.Source
    folder: pathlib.Path
    is_judged: bool


class Going:
    """Asked between passes, on all processes: tells the watchdog that something moves, raises Stopped after a signal."""

    def __init__(self, stopper: runtime.Stopper, watchdog: runtime.Watchdog):
        self._stopper, self._watchdog, self._passes = stopper, watchdog, 0

    def on(self) -> None:
        self._watchdog.beat()
        self._passes += 1
        if self._stopper.requested(self._passes):
            raise runtime.Stopped("stopped; the same command goes on")


def answer(
    task: Task,
    usable: data.Usable,
    digest: str,
    answering: policy.Policy,
    config: config_lib.Config,
    samples: int,
    limit: int,
    device_mesh: jax.sharding.Mesh,
    going: Going,
) -> None:
    """Answer the rows, as `measure` found them, that have no answer yet, pass by pass.

    Which rows share a pass, and the shape of each, depends on the rows alone: after a kill a pass is made again as it was,
    and what had been written of it stays.
    """
    done = open_answers(task.folder, depends_on(task, answering, config, samples, limit, usable, digest))
    keys = lambda rows: {(row, rollout) for row in rows for rollout in range(samples)}
    todo = [rows for rows in passes(usable, config) if keys(rows) - done]
    feed = data.Feed(task.source, usable, answering.processor, config.prompt)
    process, processes, shapes = jax.process_index(), jax.process_count(), set()

    def ask(rows: tuple[int, ...]) -> data.Asked:
        filled = [*rows, *rows[-1:] * (config.eval.prompts - len(rows))]  # one compiled program for each shape
        return feed.ask(filled, filled, process, processes)

    total, names = len(usable.rows) * samples, ("tokens", "cut")
    progress = metrics.Progress(total, len(done), f"{task.name}: answers", names, "answer", is_shown=process == 0)
    with data.Prefetch(ask) as batches:
        for number, rows in enumerate(todo):
            compiled, asked = runtime.compiles(), batches.get(rows)
            if number + 1 < len(todo):
                batches.ahead(todo[number + 1])
            rollout = attempts.rollout(answering.sample, answering.params, asked.prompts, 0, device_mesh)
            shape = asked.prompts.token_PS.shape, asked.prompts.segment_PX.shape
            if shape in shapes and runtime.compiles() > compiled:
                answers.say(f"{task.name}: compiled again for prompts of shape {shape}, which should not be")
            shapes.add(shape)
            own = answered(rows[process * len(asked.records) :], asked.records, rollout, samples, answering.processor)
            new = gather_texts([answers.line(one) for one in own if one.key not in done])
            if process == 0:
                answers.append(task.folder / answers.FILE, new)
            done |= keys(rows)
            figures = {"tokens": [one.tokens for one in own], "cut": [one.is_cut for one in own]}
            progress.update(len(done), {name: np.mean(values) for name, values in figures.items() if values})
            going.on()


def depends_on(
    task: Task,
    answering: policy.Policy,
    config: config_lib.Config,
    samples: int,
    limit: int,
    usable: data.Usable,
    digest: str,
) -> dict[str, Any]:
    """What the answers are made of; a folder whose answers are of anything else is not gone on with."""
    return {
        "benchmark": task.name,
        "split": task.split,
        "policy": str(answering.origin),
        "samples": samples,
        "limit": limit,
        "rows": len(usable.rows),
        "rows_sha256": digest,
        "left_out": list(usable.dropped),
        **{name: value for name, value in config_lib.flatten(config).items() if name.startswith(MATTERS)},
    }


def answered(
    rows: Sequence[int], records: Sequence[Record], rollout: Rollout, samples: int, processor: prompts.Processor
) -> list[answers.Answer]:
    """This process's answers of a pass. `rows` may be fewer than the records, of which the last are then fillers."""
    return [
        answers.of(record, row, g, *said(rollout, p, g, processor))
        for p, (row, record) in enumerate(zip(rows, records))
        for g in range(samples)
    ]


def measure(source: data.Source, processor: prompts.Processor, config: config_lib.Config) -> tuple[data.Usable, str]:
    """The rows that can be asked, and a SHA-256 of all that is asked. Raises DataError beyond data.bad_rows."""
    seen: dict[str, str] = {}

    sizes = measured.Sizes(processor, config.data.root, source.name)

    def size(record: Record) -> tuple[int, int]:
        needed = sizes(record)  # finds before the first pass what only decoding shows, such as a truncated image
        content = hashlib.sha256(repr((record.prompt, record.history, record.choice)).encode())
        for image in record.images:
            content.update(hashlib.sha256(image).digest())
        seen[record.id] = content.hexdigest()
        return needed

    most = max(config.prompt.buckets), max(config.prompt.patch_buckets)
    usable = data.usable(source, size, *most, config.data.bad_rows)
    sizes.save()
    if len(seen) < len(usable.rows):
        raise data.DataError(f"{source.name}: {len(usable.rows)} rows have {len(seen)} ids; each row needs its own")
    return usable, hashlib.sha256(json.dumps(sorted(seen.items())).encode()).hexdigest()


def passes(usable: data.Usable, config: config_lib.Config) -> list[tuple[int, ...]]:
    """Rows in passes of eval.prompts, the last of each shape with fewer: rows of a pass have one prompt and one patch
    bucket, so that there are no more programs than pairs of buckets in use, and short prompts do not wait for long ones."""
    shapes: dict[tuple[int, int], list[int]] = {}
    for row, tokens, patches in zip(usable.rows, usable.tokens_n, usable.patches_n):
        slots = prompts.bucket(tokens, config.prompt.buckets), prompts.bucket(patches, config.prompt.patch_buckets)
        shapes.setdefault(slots, []).append(row)
    size = config.eval.prompts
    return [tuple(rows[i : i + size]) for _, rows in sorted(shapes.items()) for i in range(0, len(rows), size)]


def open_answers(folder: pathlib.Path, settings: dict[str, Any]) -> set[tuple[int, int]]:
    """Rows and rollouts that have an answer, the same on all processes: process 0 reads, for it alone writes."""
    done, problem = {}, ""
    if jax.process_index() == 0:
        try:
            answers.claim(folder, settings)
            answers.mend(folder / answers.FILE)
            done = answers.read(folder)
        except answers.AnswersError as error:
            problem = str(error)
    if problem := from_first(problem):
        raise answers.AnswersError(problem)
    return {tuple(key) for key in json.loads(from_first(json.dumps(list(done))))}


def said(rollout: Rollout, p: int, g: int, processor: prompts.Processor) -> tuple[str, int, bool]:
    """(text, tokens, whether the limit cut it) of one answer."""
    ids = rollout.token_PGC[p, g][rollout.role_PGC[p, g] == ANSWER]
    return scoring.text_of(ids, processor), len(ids), bool(rollout.is_cut_PGE[p, g, 0])


def gather_texts(texts: Sequence[str]) -> list[str]:
    """All processes' texts, in the order of the processes. A collective."""
    if jax.process_count() == 1:
        return list(texts)
    own = np.frombuffer(json.dumps(list(texts)).encode(), np.uint8)
    width = 1 << int(mesh.gather(np.array([len(own)])).max()).bit_length()  # few widths: each is a program of its own
    whole = mesh.gather(np.pad(own, (0, width - len(own)), constant_values=ord(" "))[None])
    return [text for row in whole for text in json.loads(row.tobytes())]


def from_first(text: str) -> str:
    """Process 0's text on all of them. A collective."""
    return gather_texts([text])[0]


def grade(
    task: Task, judge: verdicts.Judge, identity: answers.Identity, config: config_lib.Config, going: Going
) -> None:
    """Judge the answers that have no verdict yet, equal ones to one row once. What could not be judged is asked
    again by the next start. Raises JudgeDown on all processes."""
    file = answers.verdict_file(task.folder, identity)
    if jax.process_index() == 0:
        answers.mend(file)
    from_first("mended")
    known = {key: verdict for key, verdict in answers.read_verdicts(file, judge.rubric).items() if verdict.is_valid}
    asked = {answers.key_of(one): one for one in answers.read(task.folder).values()}
    todo = [one for key, one in asked.items() if key not in known]
    settings, process, processes = config.eval_judge, jax.process_index(), jax.process_count()
    size = settings.rows if settings.kind in kinds.LOCAL else 2 * settings.concurrency * processes
    progress = metrics.Progress(
        len(asked), len(asked) - len(todo), f"{task.name}: verdicts", ("unjudged",), "verdict", is_shown=process == 0
    )
    for start in range(0, len(todo), size):
        own = np.array_split(np.arange(start, min(start + size, len(todo))), processes)[process]
        lines, unjudged, down = [], 0, ""
        try:
            records = [task.source[todo[i].row] for i in own]
            for i, verdict in zip(own, judge(records, [todo[i].response for i in own]), strict=True):
                lines.append(answers.verdict_line(todo[i], verdict, judge.rubric, identity))
                unjudged += not verdict.is_valid
        except JudgeDown as error:
            down = str(error)
        lines, down = gather_texts(lines), "".join(gather_texts([down]))
        if process == 0:
            answers.append(file, lines)
        if down:
            raise JudgeDown(f"eval_judge: {down}")
        progress.update(len(asked) - max(len(todo) - start - size, 0), {"unjudged": unjudged})
        going.on()
