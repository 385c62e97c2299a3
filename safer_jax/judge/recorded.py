"""Verdicts kept in a file, line by line: written down from another judge, or replayed for an exact re-run (host code)."""

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from safer_jax import verdicts
from safer_jax.judge import JudgeError
from safer_jax.shapes import Record
from safer_jax.verdicts import HIGH, LOW, Rubric, Verdict, VerdictError

Key = tuple[str, str]  # record id, SHA-256 of the response


class Recorder:
    """Asks `judge` and appends its verdicts to a file, failures among them; what stands there already is not asked again.

    So a run and its re-run see one verdict for each attempt however often it comes up, also where the run was stopped in
    between. Only an attempt that failed in an earlier process is asked again. One process writes one file.
    """

    def __init__(self, judge: verdicts.Judge, path: str | Path):
        self.rubric, self._judge, self._path = judge.rubric, judge, Path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._known = {}
        if self._path.exists():
            self._known = {key: verdict for key, verdict in _read(self._path, self.rubric) if verdict.is_valid}
            with open(self._path, "a", encoding="ascii") as file:
                file.write("\n")  # ends a line that a kill has cut; empty lines are skipped

    def __call__(self, records: Sequence[Record], responses: Sequence[str]) -> list[Verdict]:
        keys = _keys(records, responses)
        new = {key: pair for key, *pair in zip(keys, records, responses, strict=True) if key not in self._known}
        if new:
            judged = self._judge(*zip(*new.values(), strict=True))
            self._known |= {key: verdict._replace(raw="") for key, verdict in zip(new, judged, strict=True)}
            with open(self._path, "a", encoding="ascii") as file:
                made = (entry(key, self._known[key], self.rubric) for key in new)
                file.writelines(json.dumps(line, allow_nan=False) + "\n" for line in made)
        return [self._known[key] for key in keys]


class Judge:
    """Replays the verdicts of a file, or of all *.jsonl files of a folder; where one is missing, that is the error.

    Of several on one attempt the last counts. Raises JudgeError where there is nothing to replay for this rubric.
    """

    def __init__(self, path: str | Path, rubric: Rubric):
        self.rubric, self._path = rubric, Path(path).expanduser()
        files = sorted(self._path.glob("*.jsonl")) if self._path.is_dir() else [self._path]
        try:
            self._known = {key: verdict for file in files for key, verdict in _read(file, rubric)}
        except OSError as error:
            raise JudgeError(f"judge.path = {str(path)!r}: cannot be read ({error}); correct it") from error
        if not self._known:
            raise JudgeError(
                f"judge.path = {str(path)!r}: holds no verdict on this scheme's rubric; correct path or scheme"
            )

    def __call__(self, records: Sequence[Record], responses: Sequence[str]) -> list[Verdict]:
        return [self._known.get(key) or self._missing(key) for key in _keys(records, responses)]

    def _missing(self, key: Key) -> Verdict:
        return verdicts.failed(self.rubric, f"record {key[0]!r}: {self._path} has no verdict on response {key[1][:16]}")


def key_of(record: Record, response: str) -> Key:
    """What a verdict is kept under."""
    return record.id, hashlib.sha256(response.encode("utf-8", "surrogatepass")).hexdigest()


def _keys(records: Sequence[Record], responses: Sequence[str]) -> list[Key]:
    return [key_of(*pair) for pair in zip(records, responses, strict=True)]


def entry(key: Key, verdict: Verdict, rubric: Rubric) -> dict[str, Any]:
    """A line of such a file; `reply` has the form of a judge's own, so that it is checked as one when it is read."""
    reply: dict[str, Any] | None = None
    if verdict.is_valid:
        values = dict(zip(rubric.names, verdict.value_J.tolist(), strict=True))
        reply = {"comment": verdict.comment, **values, **{name: values[name] >= 0.5 for name in rubric.flags}}
    return {"record": key[0], "response": key[1], "rubric": _digest(rubric), "reply": reply, "error": verdict.error}


def _read(path: Path, rubric: Rubric) -> Iterator[tuple[Key, Verdict]]:
    """The file's verdicts on this rubric, in order. A line that is none is named on stderr and left out."""
    digest = _digest(rubric)
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
                key = (str(entry["record"]), str(entry["response"]))
                if entry["rubric"] != digest:
                    continue
                if entry["reply"] is None:
                    yield key, verdicts.failed(rubric, str(entry["error"]) or "no reason was recorded")
                else:
                    yield key, verdicts.parse(json.dumps(entry["reply"]), rubric)._replace(raw="")
            except (ValueError, RecursionError, LookupError, TypeError, VerdictError) as error:
                print(f"{path}, line {number}: no verdict ({error})", file=sys.stderr, flush=True)


def _digest(rubric: Rubric) -> str:
    """The rubric by what it asks: a verdict answers no other questions."""
    ranges = [rubric.range(name) for name in rubric.scores]
    asked = [rubric.scores, rubric.flags, rubric.safety] + ([] if set(ranges) == {(LOW, HIGH)} else [ranges])
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]
