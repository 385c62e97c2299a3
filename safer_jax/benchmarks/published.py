"""What the papers report, as they report it, to stand beside one's own table (host code).

Every number is one that its source states. Marks: "stated" by the paper itself, or "sister": measured of it by the authors
of a sister system. Where a source is silent on how a number came about, `note` says so.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from safer_jax.benchmarks import metrics

SAFER, STEER, SAFEGRPO = "SaFeR-VLM (arXiv 2510.06871)", "SaFeR-Steer", "SafeGRPO (arXiv 2511.12982)"
SIX, FIVE = "average of six benchmarks", "average of five sets"
LIKELY = ("beavertails_v", "mm_safetybench", "mssbench", "siuo", "spa_vl", "vlguard")  # the six; it does not name them
THREE = ("figstep", "vlguard", "mm_safetybench")


class Published(NamedTuple):
    """One number. `value` as printed, in percent, or a gain in points over the system `against`; `measure` averaged over
    `benchmarks` is what of ours comes nearest, "" where nothing does; `needs_all`: some of them will not do."""

    system: str
    what: str
    value: float
    measure: str
    benchmarks: tuple[str, ...]
    judge: str
    source: str
    mark: str
    needs_all: bool = True
    against: str = ""


def _averages(
    system: str, safety: float, help_: float, judge: str, source: str, mark: str, over: str
) -> list[Published]:
    like = lambda name, value, measure: Published(
        system, f"{name}, {over}", value, measure, LIKELY, judge, source, mark, needs_all=False
    )
    return [like("safety", safety, "answer_safety_3"), like("helpfulness", help_, "answer_help_3")]


def _gain(value: float, against: str) -> Published:
    return Published("SaFeR-VLM 7B", f"safety, {SIX}", value, "", (), "GPT-4o-mini", SAFER, "stated", against=against)


def _safegrpo(system: str, what: str, value: float, measure: str = "", benchmarks: tuple[str, ...] = ()) -> Published:
    judge = "GPT-4o-mini" if measure else "none"
    return Published(system, what, value, measure, benchmarks, judge, SAFEGRPO, "stated")


BASE, TRAINED = "Qwen3-VL-8B-Thinking", "SafeGRPO 8B"
JAILBREAK = "jailbreak mean (FigStep, VLGuard, MM-SafetyBench)"
REFUSAL = "MOSSBench, refusal rate (lower is better)"
ROWS = (
    *_averages("SaFeR-VLM 3B", 70.13, 78.97, "GPT-4o-mini", SAFER, "stated", SIX),
    _gain(6.47, "GPT-5-mini"),
    _gain(16.76, "Gemini-2.5-Flash"),
    *_averages("Qwen2.5-VL 3B", 48.30, 45.86, "GPT-5-nano", STEER, "sister", FIVE),
    *_averages("SaFeR-VLM 3B", 72.02, 69.15, "GPT-5-nano", STEER, "sister", FIVE),
    *_averages("Qwen2.5-VL 7B", 56.21, 60.32, "GPT-5-nano", STEER, "sister", FIVE),
    *_averages("SaFeR-VLM 7B", 74.48, 71.69, "GPT-5-nano", STEER, "sister", FIVE),
    _safegrpo(BASE, JAILBREAK, 89.28, "safe", THREE),
    _safegrpo(TRAINED, JAILBREAK, 99.02, "safe", THREE),
    _safegrpo(BASE, "SIUO", 86.52, "safe", ("siuo",)),
    _safegrpo(TRAINED, "SIUO", 94.31, "safe", ("siuo",)),
    _safegrpo(BASE, REFUSAL, 21.00, "over_refusal", ("mossbench",)),
    _safegrpo(TRAINED, REFUSAL, 20.00, "over_refusal", ("mossbench",)),
    _safegrpo("VLGuard SFT", REFUSAL, 95.00, "over_refusal", ("mossbench",)),
    _safegrpo(BASE, "five general tasks, mean", 77.98),
    _safegrpo(TRAINED, "five general tasks, mean", 78.75),
)


def own(row: Published, reports: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """What these reports have to stand beside a published number, as `metrics.average` gives it; None for nothing."""
    found = metrics.average([one for one in reports if one["benchmark"] in row.benchmarks], row.measure)
    is_enough = found["benchmarks"] and (not row.needs_all or set(found["benchmarks"]) == set(row.benchmarks))
    return found if is_enough else None


def markdown(reports: Sequence[Mapping[str, Any]], name: str = "this run") -> str:
    """The papers' numbers, with source, judge and mark, and what the run has that comes nearest."""
    lines = [
        "## Beside the papers",
        "",
        f"| system | what | published, % | {name}: nearest, % | their judge | source |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in ROWS:
        nearest, told = own(row, reports), "–"
        said = f"{row.value:+.2f} points over {row.against}" if row.against else f"{row.value:.2f}"
        if nearest:
            interval = "" if nearest["low"] is None else f" ({_percent(nearest, 'low')} to {_percent(nearest, 'high')})"
            used = [one for one in reports if one["benchmark"] in nearest["benchmarks"]]
            of = ", ".join(f"{one['benchmark']} ({one['rows']:,})" for one in used)
            told = f"{_percent(nearest, 'value')}{interval}, `{row.measure}` of {of}"
            told += ", by keywords" * any(bool(one["keywords"]) for one in used)
        lines.append(f"| {row.system} | {row.what} | {said} | {told} | {row.judge} | {row.source}, {row.mark} |")
    text = (
        "Not the same measurement: other judges, prompts and rows (ours in brackets: answers); what cannot be read is left out "
        "of ours; the papers print no intervals. *stated*: by the paper "
        "itself; *sister*: measured by the authors of a sister system. SaFeR-VLM does not say which six benchmarks it "
        f"averages (likely {', '.join(LIKELY)}), nor whether reasoning, answer or both; `answer_safety_3` and "
        "`answer_help_3` are shares of answers with the best score, on the scales of a sister system. SafeGRPO's SIUO "
        "is taken for the share of safe answers, not of safe and effective ones (`joint`): it does not say. VLGuard is in "
        "SafeGRPO's training and in its test, and independent re-runs found far weaker gains."
    )
    return "\n".join([*lines, "", text]) + "\n"


def _percent(figure: Mapping[str, Any], name: str) -> str:
    return f"{100 * figure[name]:.2f}"
