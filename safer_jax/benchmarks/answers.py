"""Answers to benchmarks and what a judge said of them, kept so that a kill at any moment loses and repeats none (host code).

A folder holds one benchmark's rows, answered by one policy:

    settings.json            what the answers depend on; another value is refused
    answers.jsonl            a line for each answer, with its record but for the images' bytes
    verdicts-{judge}.jsonl   a line for each different answer judged; another judge has another file

Lines are appended whole and synced. What a kill has cut off is removed when the folder is next opened.
"""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from safer_jax import verdicts
from safer_jax.judge import recorded
from safer_jax.shapes import Record
from safer_jax.verdicts import Rubric, Verdict

NOT_COMPARED = "left_out"  # names files, which may have moved; the rows that are left in have a hash of their own
SETTINGS, FILE = "settings.json", "answers.jsonl"


class AnswersError(ValueError):
    """A folder that cannot go on or cannot be read: names what differs and the fix."""


class Answer(NamedTuple):
    """One answer. `record` is without its images' bytes, `images` has their SHA-256."""

    row: int  # of the source
    rollout: int
    response: str
    tokens: int
    is_cut: bool
    record: Record
    images: tuple[str, ...]

    @property
    def key(self) -> tuple[int, int]:
        """What makes it the answer that it is."""
        return self.row, self.rollout


def of(record: Record, row: int, rollout: int, response: str, tokens: int, is_cut: bool) -> Answer:
    """An answer to a record as it was read."""
    hashes = tuple(hashlib.sha256(image).hexdigest() for image in record.images)
    return Answer(row, rollout, response, int(tokens), bool(is_cut), record._replace(images=()), hashes)


def claim(folder: Path, settings: dict[str, Any]) -> None:
    """Write settings.json into a new folder. Raises AnswersError, naming each difference, where it holds other answers."""
    target, settings = folder / SETTINGS, json.loads(json.dumps(settings))  # as they are read again: lists for tuples
    if not target.exists():
        if (folder / FILE).exists():
            raise AnswersError(f"{folder}: holds answers but no {SETTINGS}; choose another --out")
        replace(target, json.dumps(settings, indent=2) + "\n")
    old = read_settings(folder)
    names = [name for name in {**old, **settings} if name != NOT_COMPARED]
    changed = [
        f"{name}: {old.get(name)!r} -> {settings.get(name)!r}" for name in names if old.get(name) != settings.get(name)
    ]
    if changed:
        raise AnswersError(
            f"{folder} holds answers of other settings:\n  "
            + "\n  ".join(changed)
            + "\ntake them back to go on, or choose another --out"
        )


def read_settings(folder: Path) -> dict[str, Any]:
    """What the answers of a folder depend on. Raises AnswersError where it is no such folder."""
    try:
        return dict(json.loads((folder / SETTINGS).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise AnswersError(
            f"{folder / SETTINGS}: cannot be read ({error}); give an --out of safer_jax.evaluate"
        ) from error


def line(answer: Answer) -> str:
    """A line of answers.jsonl, in ASCII. The id stands first, for people."""
    record = {name: value for name, value in answer.record._asdict().items() if name != "images"}
    values = {"id": answer.record.id, **answer._asdict(), "record": record}
    return json.dumps(values, allow_nan=False) + "\n"


def read(folder: Path) -> dict[tuple[int, int], Answer]:
    """The folder's answers by row and rollout, in the order of both. A line that is none is named on stderr; of two on
    one question the first counts."""
    found: dict[tuple[int, int], Answer] = {}
    for answer in _lines(folder / FILE, _answer):
        found.setdefault(answer.key, answer)
    return dict(sorted(found.items()))


class Identity(NamedTuple):
    """Which judge: `prompt` is the SHA-256 of all that it is told, its questions among it."""

    kind: str
    name: str
    prompt: str
    temperature: float
    max_tokens: int

    @property
    def digest(self) -> str:
        """Of all of it, for the name of a file."""
        return hashlib.sha256(json.dumps(self).encode()).hexdigest()[:12]


def verdict_file(folder: Path, judge: Identity) -> Path:
    """Where what a judge said of a folder's answers is kept."""
    return folder / f"verdicts-{judge.digest}.jsonl"


def verdict_line(answer: Answer, verdict: Verdict, rubric: Rubric, judge: Identity) -> str:
    """A line of verdicts: as `judge.kind = "recorded"` reads it; beside that the judge, and its numbers and words as they were."""
    entry = recorded.entry(key_of(answer), verdict, rubric)
    values = dict(zip(rubric.names, verdict.value_J.tolist(), strict=True)) if verdict.is_valid else None
    own = {"judge": judge.name, "prompt": judge.prompt, "values": values, "raw": verdict.raw}
    return json.dumps({**entry, **own}, allow_nan=False) + "\n"


def read_verdicts(path: Path, rubric: Rubric) -> dict[recorded.Key, Verdict]:
    """Verdicts by record and response. A failed one counts only where no other stands; of two that are valid the first."""
    found: dict[recorded.Key, Verdict] = {}
    for key, verdict in _lines(path, lambda entry: _verdict(entry, rubric)):
        if key not in found or not found[key].is_valid:
            found[key] = verdict
    return found


def key_of(answer: Answer) -> recorded.Key:
    """What a verdict on it is kept under."""
    return recorded.key_of(answer.record, answer.response)


def append(path: Path, lines: Sequence[str]) -> None:
    """Add lines and wait until they are on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as file:
        file.write("".join(lines).encode("ascii"))
        file.flush()
        os.fsync(file.fileno())


def mend(path: Path) -> None:
    """Remove what a kill has left of a line at the end of a file."""
    if not path.exists():
        return
    with open(path, "rb+") as file:
        whole = file.read().rfind(b"\n") + 1
        if whole < file.tell():
            say(f"{path}: the last line is not whole and is removed")
            file.truncate(whole)


def replace(target: Path, text: str | bytes) -> None:
    """Write a file that is there whole or as it was."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    partial.write_bytes(text.encode("utf-8", "replace") if isinstance(text, str) else text)
    os.replace(partial, target)


def say(text: str) -> None:
    """For people, on stderr."""
    print(text, file=sys.stderr, flush=True)


def _lines(path: Path, parse: Callable[[dict[str, Any]], Any]) -> Iterator[Any]:
    if not path.exists():
        return
    with open(path, encoding="ascii", errors="replace") as file:
        for number, text in enumerate(file, 1):
            try:
                yield parse(json.loads(text))
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                say(f"{path}, line {number}: left out, it cannot be read ({str(error)[:80]}): {text[:60]!r}")


def _answer(entry: dict[str, Any]) -> Answer:
    """Raises ValueError, TypeError or KeyError."""
    record = {**entry["record"], "history": tuple(entry["record"].get("history") or ())}
    answer = Answer(
        int(entry["row"]),
        int(entry["rollout"]),
        entry["response"],
        int(entry["tokens"]),
        bool(entry["is_cut"]),
        Record(**record, images=()),
        tuple(entry["images"]),
    )
    if not all(isinstance(text, str) for text in (answer.response, answer.record.id, answer.record.prompt)):
        raise ValueError("a text is none")
    return answer


def _verdict(entry: dict[str, Any], rubric: Rubric) -> tuple[recorded.Key, Verdict]:
    """Raises ValueError, TypeError or KeyError."""
    key = (str(entry["record"]), str(entry["response"]))
    if entry["values"] is None:
        return key, verdicts.failed(rubric, str(entry["error"]) or "no reason was recorded")
    values = {name: float(entry["values"][name]) for name in rubric.names}
    if not np.isfinite(list(values.values())).all():
        raise ValueError("a number is not finite")
    return key, verdicts.of_values(rubric, values, str((entry["reply"] or {}).get("comment", "")))
