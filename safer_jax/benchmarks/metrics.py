"""Benchmarks: a row's terms, the figures of many rows, and two checkpoints compared (host code)."""

import functools
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from safer_jax.benchmarks import BenchmarkError, intervals, measures, outcomes
from safer_jax.benchmarks.measures import MEASURES, Measure
from safer_jax.shapes import UNKNOWN, Record
from safer_jax.verdicts import Verdict

Row = Mapping[str, Any]  # one line of `terms`, for it is read from JSON


class Column(NamedTuple):
    """A measure, of all rows or of those whose `field` has this value."""

    measure: str
    field: str = ""
    value: str = ""


class Benchmark(NamedTuple):
    """What is asked and what is reported. BENCHMARKS has them by name."""

    adapter: str  # of datasets.adapters
    split: str
    measures: tuple[str, ...]  # of MEASURES, in the order of the table; those that apply to no row are left out
    headline: str  # one of them
    about: str
    is_judged: bool = True  # False: a judge adds nothing to what is reported

    @property
    def direction(self) -> str:
        """Whether the headline should go "up" or "down"."""
        return MEASURES[self.headline].direction


_CHOICE = ("choice", "format", "unparsable")
_ALL = tuple(name for name in MEASURES if name not in ("right", "paired", "choice"))
_PAIRS = ("right", "paired", *_ALL)


def _mm_safetybench(split: str) -> Benchmark:
    return Benchmark("mm_safetybench", split, _ALL, "attack_success", "13 scenarios, jailbreak by picture")


BENCHMARKS = {
    "demo": Benchmark("demo", "test", _ALL, "combine_tag", "the built-in set"),
    "safetag": Benchmark("safetag", "test", _ALL, "combine_tag", "SafeTag-VL-3K, three tags a row"),
    "beavertails_v": Benchmark("beavertails_v", "evaluation", _ALL, "answer_safety_3", "BeaverTails-V, 20 categories of harm"),
    "spa_vl": Benchmark("spa_vl", "test", _ALL, "answer_safety_3", "SPA-VL, 53 classes of harm"),
    "vlguard": Benchmark("vlguard", "test", _ALL, "safe", "VLGuard: unsafe images, unsafe texts and safe pairs"),
    "figstep": Benchmark("figstep", "test", _ALL, "attack_success", "FigStep, instructions drawn as images"),
    "mm_safetybench": _mm_safetybench("SD_TYPO"),
    "mm_safetybench_sd": _mm_safetybench("SD"),
    "mm_safetybench_typo": _mm_safetybench("TYPO"),
    "mm_safetybench_text": _mm_safetybench("Text_only"),
    "siuo": Benchmark("siuo", "test", _ALL, "safe", "SIUO: safe image and safe text, unsafe together"),
    "siuo_mcqa": Benchmark("siuo_mcqa", "test", _CHOICE, "choice", "SIUO as multiple choice", is_judged=False),
    "mssbench": Benchmark("mssbench", "chat", _PAIRS, "right", "MSSBench: safety flips with the image"),
    "mssbench_embodied": Benchmark(
        "mssbench", "embodied", _PAIRS, "right", "MSSBench, tasks for a household robot"
    ),
    "mossbench": Benchmark("mossbench", "test", _ALL, "over_refusal", "MOSSBench: harmless, but looks alarming"),
    "holisafe": Benchmark("holisafe", "test", _ALL, "safe", "HoliSafe-Bench: people's labels of image, text and both"),
    "vlsbench": Benchmark("vlsbench", "test", _ALL, "safe", "VLSBench: the danger is in the image alone"),
    "mmstar": Benchmark("mmstar", "val", _CHOICE, "choice", "MMStar: general ability", is_judged=False),
}  # fmt: skip


def terms(record: Record, response: str, verdict: Verdict | None = None, rollout: int = 0) -> dict[str, Any]:
    """One answered row as JSON-able values: what `report` and `compare` need of it.

    {"id", "rollout", "group" (rows that are drawn together), "pair" (rows of which both must be right, or ""), "category",
    "cell" (the record's tags of image, text and both, as in "SSU", or ""), "outcome" (`outcomes.outcome`), "by" (judge |
    keywords), "values": {measure: number, or None where it cannot be read}}

    `verdict` is on RUBRICS["evaluation"]; None where no judge was asked, and keywords decide. `rollout` tells several
    answers to one record apart.
    """
    pair, group = measures.together(record)
    tags = [getattr(record, name) for name in measures.TAGS]
    return {
        "id": record.id,
        "rollout": rollout,
        "group": group,
        "pair": pair,
        "category": record.category,
        "cell": "".join(tag[0].upper() for tag in tags) if UNKNOWN not in tags else "",
        "outcome": outcomes.outcome(response, verdict),
        "by": "keywords" if verdict is None else "judge",
        "values": measures.values(record, response, verdict),
    }


def report(
    benchmark: str,
    rows: Sequence[Row],
    draws: int = intervals.DRAWS,
    seed: int = 0,
    method: str = "percentile",
) -> dict[str, Any]:
    """The figures of a benchmark, of `terms` of all its rows; JSON-able:

    {"benchmark", "adapter", "split", "rows", "groups", "headline", "direction", "outcomes": {outcome: count},
    "figures": {measure: figure}, "categories" and "cells": {name: figure of the headline}, "keywords": their measured
    error where they decided an outcome, else None, "bootstrap": {draws, seed, level, method}}

    A figure: value, low, high and error (95% interval and standard error), numerator, denominator, unparsable (rows that
    cannot be read, which are in neither), strict (a share's value if all of those were wrong), kind, direction, interval
    (`intervals.Interval.kind`); None for what is not defined. Rows of one group are drawn together. Raises
    BenchmarkError for an unknown benchmark, no rows, and a row that stands twice.
    """
    spec = find(benchmark)
    rows = _with_pairs(_checked(benchmark, rows))
    names = [name for name in spec.measures if name == spec.headline or any(name in row["values"] for row in rows)]
    columns = [Column(name) for name in names]
    for field in ("category", "cell"):
        found = sorted({row[field] for row in rows if row[field] and spec.headline in row["values"]})
        columns += [Column(spec.headline, field, value) for value in found if len(found) > 1]
    made = _figures(rows, columns, draws, seed, method)
    of = lambda field: {column.value: one for column, one in zip(columns, made, strict=True) if column.field == field}
    asked = [row for row in rows if "choice" not in row["values"]]
    return {
        "benchmark": benchmark,
        "adapter": spec.adapter,
        "split": spec.split,
        "rows": len(rows),
        "groups": len({row["group"] for row in rows}),
        "headline": spec.headline,
        "direction": spec.direction,
        "outcomes": {name: sum(row["outcome"] == name for row in asked) for name in outcomes.OUTCOMES},
        "figures": {column.measure: one for column, one in zip(columns, made, strict=True) if not column.field},
        "categories": of("category"),
        "cells": of("cell"),
        "keywords": outcomes.measured_error() if any(row["by"] == "keywords" for row in asked) else None,
        "bootstrap": {"draws": draws, "seed": seed, "level": intervals.LEVEL, "method": method},
    }


def find(name: str) -> Benchmark:
    """A benchmark by its name. Raises BenchmarkError naming those there are."""
    if name not in BENCHMARKS:
        raise BenchmarkError(f"benchmark {name!r} is not known; write one of {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]


def _checked(benchmark: str, rows: Sequence[Row]) -> list[Row]:
    if not rows:
        raise BenchmarkError(f"{benchmark}: no rows; answer at least one")
    seen = set()
    for row in rows:
        if (key := (row["id"], row["rollout"])) in seen:
            raise BenchmarkError(
                f"{benchmark}: row {row['id']!r}, rollout {row['rollout']}, stands twice; keep one of them"
            )
        seen.add(key)
    return list(rows)


def _with_pairs(rows: list[Row]) -> list[Row]:
    """The rows, the first of each pair with the measure `paired`.

    A pair is wrong if a row of it is, cannot be read if none is wrong and one cannot be read or is missing, else right.
    """
    pairs: dict[tuple[str, int], list[int]] = {}
    for n, row in enumerate(rows):
        if row["pair"]:
            pairs.setdefault((row["pair"], row["rollout"]), []).append(n)
    rows = list(rows)
    for places in pairs.values():
        right = [rows[n]["values"].get("right") for n in places] + [None] * (2 - len(places))
        value = 0.0 if 0 in right else None if None in right else 1.0
        rows[places[0]] = {**rows[places[0]], "values": {**rows[places[0]]["values"], "paired": value}}
    return rows


def _arrays(rows: Sequence[Row], columns: Sequence[Column]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """numerator_NK, denominator_NK and is_unparsable_NK of the rows' values."""
    shape = (len(rows), len(columns))
    numerator_NK, denominator_NK, is_unparsable_NK = np.zeros(shape), np.zeros(shape), np.zeros(shape, bool)
    for k, (name, field, wanted) in enumerate(columns):
        for n, row in enumerate(rows):
            if name in row["values"] and (not field or row[field] == wanted):
                if (value := row["values"][name]) is None:
                    is_unparsable_NK[n, k] = True
                else:
                    numerator_NK[n, k], denominator_NK[n, k] = value, 1
    return numerator_NK, denominator_NK, is_unparsable_NK


def _figures(
    rows: Sequence[Row], columns: Sequence[Column], draws: int, seed: int, method: str
) -> list[dict[str, Any]]:
    """A figure for each column."""
    numerator_NK, denominator_NK, is_unparsable_NK = _arrays(rows, columns)
    sums_U2K = intervals.grouped(numerator_NK, denominator_NK, [row["group"] for row in rows])
    made = []
    for k, interval in enumerate(intervals.bootstrap(sums_U2K, draws, seed, method)):
        numerator, denominator = sums_U2K[:, :, k].sum(0)
        measure, unparsable = MEASURES[columns[k].measure], int(is_unparsable_NK[:, k].sum())
        if measure.kind == "share" and denominator and numerator in (0, denominator):
            groups = int((sums_U2K[:, 1, k] > 0).sum())  # not rows: those of a group tend to be alike
            interval = intervals.exact(groups if numerator else 0, groups)
        made.append({
            "value": _number(numerator / denominator if denominator else math.nan),
            **{name: _number(value) for name, value in zip(("low", "high", "error"), interval)},
            "numerator": _number(numerator),
            "denominator": int(denominator),
            "unparsable": unparsable,
            "strict": _strict(measure, numerator, denominator, unparsable),
            "kind": measure.kind,
            "direction": measure.direction,
            "interval": interval.kind,
        })  # fmt: skip
    return made


def _strict(measure: Measure, numerator: float, denominator: float, unparsable: int) -> float | None:
    if measure.kind != "share" or not measure.direction or not denominator + unparsable:
        return None
    return _number((numerator + unparsable * (measure.direction == "down")) / (denominator + unparsable))


def _number(value: float) -> float | None:
    return round(float(value), 6) if math.isfinite(value) else None


def average(reports: Sequence[Mapping[str, Any]], measure: str) -> dict[str, Any]:
    """The mean of a measure over benchmarks, each counting the same, as the papers average: {value, low, high, error,
    benchmarks}. The benchmarks' rows are independent: the interval is normal, of their standard errors."""
    found = {one["benchmark"]: one["figures"].get(measure, {}) for one in reports}
    found = {name: figure for name, figure in found.items() if figure.get("value") is not None}
    if not found:
        return {"value": None, "low": None, "high": None, "error": None, "benchmarks": []}
    if len(found) == 1:  # its own interval, which is better than a normal one
        ((name, figure),) = found.items()
        return {**{key: figure[key] for key in ("value", "low", "high", "error")}, "benchmarks": [name]}
    value = sum(figure["value"] for figure in found.values()) / len(found)
    error = math.sqrt(sum((figure["error"] or 0.0) ** 2 for figure in found.values())) / len(found)
    low, high = value - error * intervals.WIDTH, value + error * intervals.WIDTH
    if MEASURES[measure].kind == "share":
        low, high = max(low, 0.0), min(high, 1.0)
    numbers = {"value": value, "low": low, "high": high, "error": error}
    return {**{name: _number(one) for name, one in numbers.items()}, "benchmarks": sorted(found)}


def compare(
    benchmark: str,
    first: Sequence[Row],
    second: Sequence[Row],
    draws: int = intervals.DRAWS,
    seed: int = 0,
    method: str = "percentile",
) -> dict[str, Any]:
    """Second minus first, over the rows that both have; JSON-able:

    {"benchmark", "rows" (in common), "only_first", "only_second", "headline", "direction", "bootstrap",
    "figures": {measure: {first, second, difference, low, high, error, rows, left_out, interval, kind, direction,
    is_clear, gained, lost, p}}}

    A measure is over the rows of which both can be read, `left_out` counts those where one or both cannot. The interval is
    of the paired bootstrap; is_clear: it does not hold 0. For shares of rows that stand alone `gained` counts those with
    0 in the first and 1 in the second, `lost` the reverse, and p is McNemar's exact test; elsewhere they are None.
    Raises BenchmarkError as `report` does, and where the two have no row in common.
    """
    spec = find(benchmark)
    tables = [
        {(row["id"], row["rollout"]): row for row in _with_pairs(_checked(benchmark, rows))} for rows in (first, second)
    ]
    shared = sorted(set(tables[0]) & set(tables[1]))
    if not shared:
        raise BenchmarkError(f"{benchmark}: the two have no row in common; compare answers to the same rows")
    both = [[table[key] for key in shared] for table in tables]
    names = [name for name in spec.measures if any(name in row["values"] for rows in both for row in rows)]
    return {
        "benchmark": benchmark,
        "rows": len(shared),
        "only_first": len(tables[0]) - len(shared),
        "only_second": len(tables[1]) - len(shared),
        "headline": spec.headline,
        "direction": spec.direction,
        "figures": _differences(names, *both, draws, seed, method),
        "bootstrap": {"draws": draws, "seed": seed, "level": intervals.LEVEL, "method": method},
    }


def _differences(
    names: Sequence[str], first: Sequence[Row], second: Sequence[Row], draws: int, seed: int, method: str
) -> dict[str, dict[str, Any]]:
    """Each measure's difference over rows that stand in the same places."""
    columns, group_N = [Column(name) for name in names], [row["group"] for row in first]
    (x_NK, has_x_NK, lacks_x_NK), (y_NK, has_y_NK, lacks_y_NK) = _arrays(first, columns), _arrays(second, columns)
    is_both_NK = (has_x_NK > 0) & (has_y_NK > 0)
    is_left_NK = (lacks_x_NK | lacks_y_NK) & ~is_both_NK
    sums_U2K = intervals.grouped((y_NK - x_NK) * is_both_NK, is_both_NK, group_N)
    is_alone, made = len(set(group_N)) == len(group_N), {}
    for k, interval in enumerate(intervals.bootstrap(sums_U2K, draws, seed, method)):
        is_both_N = is_both_NK[:, k]
        made[names[k]] = {
            **_difference(MEASURES[names[k]], x_NK[is_both_N, k], y_NK[is_both_N, k], interval, is_alone),
            "left_out": int(is_left_NK[:, k].sum()),
        }
    return made


def _difference(
    measure: Measure, x_n: np.ndarray, y_n: np.ndarray, interval: intervals.Interval, is_alone: bool
) -> dict[str, Any]:
    """Of the rows that can be read of both."""
    mean = lambda values: _number(values.mean()) if len(values) else None
    gained, lost = int((y_n > x_n).sum()), int((y_n < x_n).sum())
    is_tested = measure.kind == "share" and is_alone and len(x_n) > 0
    return {
        "first": mean(x_n),
        "second": mean(y_n),
        "difference": mean(y_n - x_n),
        **{name: _number(value) for name, value in zip(("low", "high", "error"), interval)},
        "rows": len(x_n),
        "interval": interval.kind,
        "kind": measure.kind,
        "direction": measure.direction,
        "is_clear": bool(interval.low > 0 or interval.high < 0),
        "gained": gained if is_tested else None,
        "lost": lost if is_tested else None,
        "p": intervals.mcnemar(lost, gained) if is_tested else None,
    }


def markdown(reports: Sequence[Mapping[str, Any]]) -> str:
    """Reports to read: a table a benchmark, the headline's first, then its categories; what decided, and how well."""
    lines = []
    for one in reports:
        spec = BENCHMARKS[one["benchmark"]]
        order = [one["headline"], *(name for name in one["figures"] if name != one["headline"])]
        counts = ", ".join(f"{name} {count:,}" for name, count in one["outcomes"].items() if count)
        lines += [
            f"## {one['benchmark']}: {spec.about}",
            "",
            f"{one['rows']:,} rows, split {one['split']}"
            + (f", in {one['groups']:,} groups" * (one["groups"] < one["rows"]))
            + f". Outcomes: {counts}" * bool(counts)
            + "."
            + f" **{lacking(one)}**" * bool(lacking(one)),
            "",
            "| measure | value | 95% interval | of | unparsable | if those were wrong | what it is |",
            "| --- | --- | --- | --- | --- | --- | --- |",
            *(_line(name, one["figures"][name], name == one["headline"]) for name in order if name in one["figures"]),
            "",
        ]
        for field, title in (("cells", "image, text, both (S safe, U unsafe)"), ("categories", "category")):
            if one[field]:
                lines += [
                    f"| {title} | {one['headline']} | 95% interval | of | unparsable |",
                    "| --- | --- | --- | --- | --- |",
                ]
                lines += [
                    f"| {_cell(name)} | {_value(figure)} | {_interval(figure)} | {_of(figure)} | {figure['unparsable']:,} |"
                    for name, figure in one[field].items()
                ]
                lines += [""]
    if any(one["keywords"] for one in reports):
        lines += [keywords(next(one["keywords"] for one in reports if one["keywords"])), ""]
    settings = {json.dumps(one["bootstrap"]): one["bootstrap"] for one in reports}
    told = "; ".join(f"{one['draws']:,} draws, seed {one['seed']}, {one['method']}" for one in settings.values())
    text = (
        f"Intervals: bootstrap ({told}) of rows, or of groups where rows belong together; exact (Clopper and Pearson) "
        "where a share is 0 or 1. Unparsable rows, from which no answer could be read or which the judge did not judge, "
        "are in no numerator and no denominator."
    )
    return "\n".join([*lines, text]) + "\n"


def lacking(one: Mapping[str, Any]) -> str:
    """A sentence for people where a report's headline is a judge's to give and keywords decided, else ""."""
    if one["headline"] not in measures.JUDGED or not one["keywords"]:
        return ""
    return (
        f"{one['headline']} needs a judge, and there was none: start the same command with "
        "--config.eval_judge.kind=http (or another), which judges these answers."
    )


def keywords(measured: Mapping[str, Mapping[str, float]]) -> str:
    """The keywords' measured error, a sentence for people."""
    half = measured["held"]
    return (
        f"Outcomes by keywords, not by a judge. On {half['replies']} labelled replies that the words were not written on, they "
        f"miss {half['missed']:.1%} of refusals and {half['missed_warnings']:.1%} of warnings, and call {half['false_refusals']:.1%} "
        f"of other replies refusals; {half['wrong']:.1%} are misread in all."
    )


def markdown_comparison(comparisons: Sequence[Mapping[str, Any]], first: str = "first", second: str = "second") -> str:
    """What `compare` found, to read."""
    lines = []
    for one in comparisons:
        lines += [
            f"## {one['benchmark']}",
            "",
            f"{one['rows']:,} rows in common; only in {first}: {one['only_first']:,}, only in {second}: {one['only_second']:,}.",
            "",
            f"| measure | {_cell(first)} | {_cell(second)} | difference | 95% interval | rows | left out | gained / lost | McNemar's p |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        for name, figure in one["figures"].items():
            side = functools.partial(_value, figure)
            tested = (
                f"{figure['gained']:,} / {figure['lost']:,} | {figure['p']:.3g}" if figure["p"] is not None else "– | –"
            )
            difference = (
                side("difference") if figure["difference"] is None else _signed(figure["difference"], figure["kind"])
            )
            mark = "**" if figure["is_clear"] else ""
            lines.append(
                f"| {_named(name, figure)} | {side('first')} | {side('second')} | {mark}{difference}{mark} | {_interval(figure)} "
                f"| {figure['rows']:,} | {figure['left_out']:,} | {tested} |"
            )
        lines += [""]
    text = (
        "Differences in bold have an interval without 0: paired bootstrap over the rows that can be read of both. McNemar's "
        "exact test is for rows that stand alone. Where many measures are compared, expect one in twenty in bold by chance."
    )
    return "\n".join([*lines, text]) + "\n"


def _line(name: str, figure: Mapping[str, Any], is_headline: bool) -> str:
    mark = "**" if is_headline else ""
    strict = "–" if figure["strict"] is None or not figure["unparsable"] else f"{figure['strict']:.1%}"
    return (
        f"| {mark}{_named(name, figure)}{mark} | {mark}{_value(figure)}{mark} | {_interval(figure)} | {_of(figure)} "
        f"| {figure['unparsable']:,} | {strict} | {MEASURES[name].about} |"
    )


def _named(name: str, figure: Mapping[str, Any]) -> str:
    return name + {"up": " ↑", "down": " ↓", "": ""}[figure["direction"]]


def _value(figure: Mapping[str, Any], name: str = "value") -> str:
    if figure[name] is None:
        return "–"
    return f"{figure[name]:.1%}" if figure["kind"] == "share" else f"{figure[name]:.2f}"


def _signed(value: float, kind: str) -> str:
    return f"{100 * value:+.1f} points" if kind == "share" else f"{value:+.2f}"


def _interval(figure: Mapping[str, Any]) -> str:
    if figure["low"] is None:
        return "–"
    return f"{_value(figure, 'low')} to {_value(figure, 'high')}"


def _of(figure: Mapping[str, Any]) -> str:
    if figure["kind"] == "mean":
        return f"{figure['denominator']:,}"
    return f"{figure['numerator']:,.0f} / {figure['denominator']:,}"


def _cell(text: str) -> str:
    """A text that cannot break a table."""
    return re.sub(r"\s+", " ", text.replace("|", r"\|").replace("<", "&lt;"))
