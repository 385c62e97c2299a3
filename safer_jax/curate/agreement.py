"""How far a judge agrees with another, or with people, on the same answers: figures with intervals (host code)."""

import csv
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from safer_jax.curate import CurateError, scores
from safer_jax.verdicts import HIGH, LOW

ACCEPT = {"accept": 1.0, "true": 1.0, "yes": 1.0, "1": 1.0, "reject": 0.0, "false": 0.0, "no": 0.0, "0": 0.0}
DRAWS = 2000  # of the bootstrap
CELLS = ("both accept", "first accepts", "second accepts", "both reject")


class Said(NamedTuple):
    """One judge's numbers."""

    name: str
    value: dict[tuple[str, int], float | None]  # by (prompt's id, number of the answer); None = unjudged
    response: dict[tuple[str, int], str]  # hashes of the answers; empty where they are not known
    accept_at: float  # from which number on an answer is accepted


def read_scores(path: Path, field: str, accept_at: float) -> Said:
    """One of the numbers, `safety` or `scores`, in what `score` wrote: its --out or one file. Raises CurateError."""
    found = scores.files(path)
    if not found:
        raise CurateError(f"{path}: no scores/*.jsonl in it; give the --out of score, or one of its files")
    said = Said(str(path), {}, {}, accept_at)
    for group in scores.read(found):
        for k, (value, text) in enumerate(zip(getattr(group, field), group.responses, strict=True)):
            said.value[group.id, k] = value
            said.response[group.id, k] = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return said


def read_labels(path: Path, accept_at: float) -> Said:
    """People's labels, a CSV with the columns id, rollout (from 0) and score (1..10) or accept (accept or reject, yes or
    no, 1 or 0). An empty label is none. Raises CurateError naming the line."""
    said, first = Said(str(path), {}, {}, accept_at), {}
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        columns = [name for name in ("score", "accept") if name in (rows.fieldnames or ())]
        if len(columns) != 1 or not {"id", "rollout"} <= set(rows.fieldnames):
            raise CurateError(
                f"{path}: its columns are {', '.join(rows.fieldnames or ('none',))}; want id, rollout and one of score, accept"
            )
        for row in rows:
            where = f"{path}, line {rows.line_num}"
            try:
                at = row["id"], int(row["rollout"])
            except (TypeError, ValueError) as error:
                raise CurateError(f"{where}: rollout is {row['rollout']!r}; write its number, from 0") from error
            if at in first:
                raise CurateError(
                    f"{where}: {at[0]} {at[1]} stands in line {first[at]} too; write one label for each answer"
                )
            first[at] = rows.line_num
            said.value[at] = _label(row[columns[0]], columns[0], where)
    return said._replace(accept_at=1.0) if columns == ["accept"] else said


def _label(text: str | None, column: str, where: str) -> float | None:
    text = (text or "").strip().lower()
    if not text:
        return None
    if column == "accept":
        if text not in ACCEPT:
            raise CurateError(f"{where}: accept is {text!r}; write one of {', '.join(ACCEPT)}")
        return ACCEPT[text]
    try:
        value = float(text)
    except ValueError as error:
        raise CurateError(f"{where}: score is {text!r}; write a number from {LOW} to {HIGH}") from error
    if not LOW <= value <= HIGH:
        raise CurateError(f"{where}: score is {text!r}; write a number from {LOW} to {HIGH}")
    return value


def compare(first: Said, second: Said, draws: int = DRAWS, seed: int = 0) -> dict[str, Any]:
    """Agreement on accept or reject, Cohen's kappa, Pearson's r of the numbers, and the table of the four cases.

    Each figure is {value, low, high}: the percentile bootstrap's 95% interval, over prompts, for answers to one prompt
    are not independent. A figure that is not defined (kappa where both judges always say the same one thing, r where one
    is constant) is None; an interval is over the draws in which it is defined. Answers that one of the two has not, has
    not judged, or has as another text are left out and counted. Raises CurateError where nothing is left.
    """
    shared = sorted(set(first.value) & set(second.value))
    both = [at for at in shared if first.value[at] is not None and second.value[at] is not None]
    is_other = lambda at: at in first.response and at in second.response and first.response[at] != second.response[at]
    pairs = [at for at in both if not is_other(at)]
    left_out = {
        "only in the first": len(first.value) - len(shared),
        "only in the second": len(second.value) - len(shared),
        "unjudged": len(shared) - len(both),
        "another response": len(both) - len(pairs),
    }
    if not pairs:
        told = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        raise CurateError(f"{first.name} and {second.name} have no judged answer in common: {told}")
    x, y = (np.array([said.value[at] for at in pairs], float) for said in (first, second))
    prompts, prompt_n = np.unique([at[0] for at in pairs], return_inverse=True)
    sums = _sums(x, y, x >= first.accept_at, y >= second.accept_at)
    by_prompt = np.zeros((len(prompts), sums.shape[1]))
    np.add.at(by_prompt, prompt_n, sums)
    drawn = _bootstrap(by_prompt, draws, np.random.default_rng(seed))
    figures = {name: _figure(value, drawn[name]) for name, value in _figures(by_prompt.sum(0)).items()}
    table = {name: {"count": int(by_prompt[:, j].sum()), **figures.pop(name)} for j, name in enumerate(CELLS)}
    return {
        "first": {"name": first.name, "accept_at": first.accept_at},
        "second": {"name": second.name, "accept_at": second.accept_at},
        "answers": len(pairs),
        "prompts": len(prompts),
        "left_out": left_out,
        **figures,
        "confusion": table,
        "bootstrap": {"draws": draws, "seed": seed, "over": "prompts"},
    }


def _sums(x: np.ndarray, y: np.ndarray, accepts_x: np.ndarray, accepts_y: np.ndarray) -> np.ndarray:
    """[n, 9], whose sums over any answers are all that the figures need: the four cells, then moments about the means."""
    cells = (accepts_x & accepts_y, accepts_x & ~accepts_y, ~accepts_x & accepts_y, ~accepts_x & ~accepts_y)
    x, y = x - x.mean(), y - y.mean()  # of large sums of squares little would be left
    return np.stack([*cells, x, y, x * x, y * y, x * y], -1).astype(float)


def _figures(sums: np.ndarray) -> dict[str, np.ndarray]:
    """The figures of sums [..., 9]; NaN where one is not defined."""
    both, only_x, only_y, neither, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    n = both + only_x + only_y + neither
    by_chance = ((both + only_x) * (both + only_y) + (neither + only_x) * (neither + only_y)) / n**2
    agreement = (both + neither) / n
    variances = (xx - x * x / n) / n, (yy - y * y / n) / n
    is_defined = np.minimum(*variances) > 1e-9  # scores have six digits
    with np.errstate(divide="ignore", invalid="ignore"):
        kappa = np.where(by_chance < 1, (agreement - by_chance) / (1 - by_chance), np.nan)
        pearson = np.where(is_defined, (xy - x * y / n) / n / np.sqrt(variances[0] * variances[1]), np.nan)
    cells = dict(zip(CELLS, (both / n, only_x / n, only_y / n, neither / n), strict=True))
    return {"agreement": agreement, "kappa": kappa, "pearson": pearson, **cells}


def _bootstrap(by_prompt: np.ndarray, draws: int, generator: np.random.Generator) -> Mapping[str, np.ndarray]:
    """Figures of `draws` sets of prompts, each drawn with replacement."""
    count = len(by_prompt)
    weights = (np.bincount(generator.integers(count, size=count), minlength=count) for _ in range(draws))
    return _figures(np.stack([weight @ by_prompt for weight in weights]))


def _figure(value: np.ndarray, drawn: np.ndarray) -> dict[str, float | None]:
    if np.isnan(value):
        return {"value": None, "low": None, "high": None}
    low, high = np.nanpercentile(drawn, (2.5, 97.5))
    return {name: round(float(x), 6) for name, x in (("value", value), ("low", low), ("high", high))}


def markdown(report: Mapping[str, Any]) -> str:
    """What `compare` found, to read."""
    first, second = report["first"], report["second"]
    number = lambda value: "–" if value is None else f"{value:.3f}"
    left_out = ", ".join(f"{count:,} {reason}" for reason, count in report["left_out"].items() if count)
    answers = f"{report['answers']:,} answers to {report['prompts']:,} prompts"
    intervals = f"Intervals: 95%, {report['bootstrap']['draws']:,} bootstrap draws of prompts."
    lines = [
        f"First: `{first['name']}`, accepts from {first['accept_at']:g}.",
        f"Second: `{second['name']}`, accepts from {second['accept_at']:g}.",
        f"{answers} judged by both; left out: {left_out or 'none'}. {intervals}",
        "",
        "| | value | interval |",
        "| --- | --- | --- |",
    ]
    for name, label in (("agreement", "agreement"), ("kappa", "Cohen's kappa"), ("pearson", "Pearson's r")):
        figure = report[name]
        lines.append(f"| {label} | {number(figure['value'])} | {number(figure['low'])} to {number(figure['high'])} |")
    cell = lambda name: "{count:,} ({value:.1%}, {low:.1%} to {high:.1%})".format(**report["confusion"][name])
    lines += [
        "",
        "| | second accepts | second rejects |",
        "| --- | --- | --- |",
        f"| first accepts | {cell(CELLS[0])} | {cell(CELLS[1])} |",
        f"| first rejects | {cell(CELLS[2])} | {cell(CELLS[3])} |",
    ]
    return "\n".join(lines) + "\n"


def write_json(path: Path, report: Mapping[str, Any]) -> None:
    """The same for programs."""
    path.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
