"""What the answers of a folder come to: figures with intervals, tables, predictions for other tools, a page (host code).

    OUT/{benchmark}/terms.jsonl    what each answer was found to be
    OUT/{benchmark}/report.json    the benchmark's figures, and by whom they were made
    OUT/{benchmark}/predictions/   in the layouts of lmms-eval and VLMEvalKit
    OUT/results.json, table.md, evaluation.html      of all benchmarks of the folder, by one policy and one judge

All of it is made from the answers and verdicts that stand there, so it can be made again at any time.
"""

import collections
import datetime
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from safer_jax import page, report, verdicts
from safer_jax.benchmarks import answers, exports, metrics, published
from safer_jax.page import Html, element, number
from safer_jax.verdicts import Rubric, Verdict

# Of the settings, what an answer depends on but for rounding.
ASKED = (
    "prompt.system", "prompt.guide", "prompt.force_think", "prompt.min_pixels", "prompt.max_pixels",
    "sampler.max_tokens", "eval.temperature",
)  # fmt: skip
EXAMPLES = 3  # of each kind on the page, of a benchmark
KINDS = {"right": "Right", "wrong": "Wrong", "unparsable": "Cannot be read"}


def write(
    folder: Path,
    benchmark: str,
    told: dict[str, Any],
    rubric: Rubric,
    judge: answers.Identity,
    picture: Callable[[int], list[str]],
) -> None:
    """Terms, report and predictions of one benchmark. `told`: how the answers were made, kept with the figures.
    `picture`: saves the images of a row for the page, and names the files, relative to the folder above."""
    found = list(answers.read(folder).values())
    known = answers.read_verdicts(answers.verdict_file(folder, judge), rubric)
    is_judged = judge.kind != "none" and metrics.find(benchmark).is_judged
    missing = verdicts.failed(rubric, "not judged") if is_judged else None  # not read at all, never a keyword's guess
    said = [known.get(answers.key_of(one), missing) for one in found]
    terms = [metrics.terms(one.record, one.response, verdict, one.rollout) for one, verdict in zip(found, said)]
    answers.replace(folder / "terms.jsonl", "".join(json.dumps(row) + "\n" for row in terms))
    made = metrics.report(benchmark, terms)
    kinds = examples(terms, made)
    chosen = [
        {**shown(found[i], terms[i], said[i]), "kind": kind, "images": picture(found[i].row)}
        for kind, numbers in kinds.items()
        for i in numbers[:EXAMPLES]
    ]
    settings = answers.read_settings(folder)
    facts = {"split": settings["split"], "left_out": settings["left_out"], "cut": sum(one.is_cut for one in found)}
    facts["kinds"] = {kind: len(numbers) for kind, numbers in kinds.items()}
    content = {**told, **facts, "report": made, "examples": chosen}
    answers.replace(folder / "report.json", json.dumps(content, indent=1) + "\n")
    predictions(folder, benchmark, told["checkpoint"], found, made, terms)


def examples(terms: Sequence[dict[str, Any]], made: dict[str, Any]) -> dict[str, list[int]]:
    """The answers by how they did in the headline, those to show first: by a hash of the id, of categories in turn."""
    headline, direction = made["headline"], made["direction"]
    kinds: dict[str, list[int]] = {kind: [] for kind in KINDS}
    for place, row in enumerate(terms):
        if headline in row["values"]:
            value = row["values"][headline]
            is_right = value is not None and (value >= 1) == (direction == "up")
            kinds["unparsable" if value is None else "right" if is_right else "wrong"].append(place)
    order = lambda place: (hashlib.sha256(terms[place]["id"].encode()).digest(), terms[place]["rollout"])
    return {kind: _in_turn(sorted(own, key=order), terms) for kind, own in kinds.items()}


def _in_turn(places: list[int], terms: Sequence[dict[str, Any]]) -> list[int]:
    """The first of each category, then the second of each, ..."""
    seen = collections.Counter()
    turns = []
    for place in places:
        seen[terms[place]["category"]] += 1
        turns.append(seen[terms[place]["category"]])
    return [place for _, place in sorted(zip(turns, places), key=lambda pair: pair[0])]


def shown(one: answers.Answer, row: dict[str, Any], verdict: Verdict | None) -> dict[str, Any]:
    """What the page tells of an answer."""
    record = one.record
    tags = {"image": record.image_tag, "text": record.text_tag, "combine": record.combine_tag}
    asked = {"id": record.id, "history": record.history, "prompt": record.prompt, "category": record.category}
    truth = {"expected": record.expected, "choice": record.choice, "tags": tags}
    said = {"response": one.response, "outcome": row["outcome"], "values": row["values"]}
    return {**asked, **truth, **said, "comment": (verdict.error or verdict.comment) if verdict else ""}


def predictions(
    folder: Path,
    benchmark: str,
    checkpoint: dict[str, Any],
    found: Sequence[answers.Answer],
    made: dict[str, Any],
    terms: Sequence[dict[str, Any]],
) -> None:
    """The answers as other tools read them; of several to each row the first of all rows, the second of all, ..."""
    step, name = checkpoint["step"], checkpoint["name"].replace(" ", "_")
    model = name if step is None else f"{name}-{step}"
    date = datetime.datetime.fromtimestamp((folder / answers.SETTINGS).stat().st_mtime).strftime("%Y%m%d_%H%M%S")
    target = folder / "predictions"
    rollouts = sorted({one.rollout for one in found})
    for rollout in rollouts:
        own = [i for i, one in enumerate(found) if one.rollout == rollout]
        records, responses = [found[i].record for i in own], [found[i].response for i in own]
        rows, called = [terms[i] for i in own], f"{model}-answer-{rollout + 1}" if len(rollouts) > 1 else model
        counted = metrics.report(benchmark, rows) if len(rollouts) > 1 else made
        exports.lmms_eval(target / "lmms_eval", called, benchmark, records, responses, counted, rows, date)
        exports.vlmevalkit(target / "vlmevalkit", called, benchmark, records, responses)


def collect(out: Path) -> Path:
    """results.json, table.md and evaluation.html of all benchmarks in a folder; the page's path.

    Those of another policy or judge than the newest, or asked otherwise, are left out and named. Raises AnswersError where
    there is none.
    """
    files = sorted(out.glob("*/report.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    read = {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in files}
    if not read:
        raise answers.AnswersError(f"{out}: holds no report.json of a benchmark; give an --out of safer_jax.evaluate")
    newest = next(iter(read.values()))
    same = {name: one for name, one in read.items() if _made(one) == _made(newest)}
    same = {name: same[name] for name in metrics.BENCHMARKS if name in same}
    notes = [f"{name}: of another policy or judge, or asked otherwise" for name in read if name not in same]
    notes += [f"{name}: {reason}" for name, one in same.items() for reason in one["left_out"]]
    reports = [one["report"] for one in same.values()]
    common = {key: newest[key] for key in ("checkpoint", "judge", "asked_otherwise", "config")}
    kept = {
        name: {key: one[key] for key in ("split", "samples", "limit", "left_out", "cut", "report")}
        for name, one in same.items()
    }
    answers.replace(out / "results.json", json.dumps({**common, "benchmarks": kept}, indent=1) + "\n")
    table = [
        f"# {origin(newest)}",
        f"Judge: {judged_by(newest)}",
        *(f"**{line}**" for line in partly(same)),
        *(f"**Asked otherwise than in training:** {difference}" for difference in newest["asked_otherwise"]),
        metrics.markdown(reports),
        published.markdown(reports, origin(newest)),
    ]
    answers.replace(out / "table.md", "\n\n".join(table) + "\n")
    answers.replace(out / "evaluation.html", document(out, same, notes))
    return out / "evaluation.html"


def _made(told: dict[str, Any]) -> list[Any]:
    """How results came about: what makes two of them of one kind."""
    return [told["checkpoint"], told["judge"], *(told["config"][name] for name in ASKED)]


def origin(told: dict[str, Any]) -> str:
    """The policy in words."""
    name, step, digest = (told["checkpoint"][key] for key in ("name", "step", "sha256"))
    return f"{name}{'' if step is None else f', step {step}'}{f', SHA-256 {digest[:16]}' if digest else ''}"


def partly(reports: dict[str, dict[str, Any]]) -> list[str]:
    """What keeps figures from being of whole benchmarks, a line each."""
    lines = []
    for limit in sorted({one["limit"] for one in reports.values()} - {0}):
        of = ", ".join(name for name, one in reports.items() if one["limit"] == limit)
        lines.append(f"Only the first {limit:,} rows (--limit), where there are more: {of}")
    left_out = [f"{name} {len(one['left_out']):,}" for name, one in reports.items() if one["left_out"]]
    return [*lines, *([f"Rows left out: {', '.join(left_out)}"] if left_out else [])]


def judged_by(told: dict[str, Any]) -> str:
    """The judge in words."""
    judge = told["judge"]
    if judge["kind"] == "none":
        return "none, keywords"
    prompt = f", prompt SHA-256 {judge['prompt'][:16]}" if judge["prompt"] else ""
    same = " (THE JUDGE OF TRAINING, which was forced)" if judge["is_judge_of_training"] else ""
    return f"{judge['kind']}, {judge['name']}{prompt}{same}"


def compare(first: Path, second: Path) -> list[dict[str, Any]]:
    """`metrics.compare` of the benchmarks of two folders, second minus first. Raises AnswersError where they differ in
    benchmarks, splits or rows, BenchmarkError as `metrics.compare` does."""
    both = []
    for out in (first, second):
        found = {path.parent.name: path.parent for path in sorted(out.glob("*/report.json"))}
        if not found:
            raise answers.AnswersError(
                f"{out}: holds no report.json of a benchmark; give an --out of safer_jax.evaluate"
            )
        both.append(found)
    if missing := sorted(both[0].keys() ^ both[1].keys()):
        raise answers.AnswersError(
            f"{first} and {second}: only one of them holds {', '.join(missing)}; evaluate both on the same benchmarks"
        )
    compared = []
    for name in both[0]:
        settings = [answers.read_settings(where[name]) for where in both]
        told = [json.loads((where[name] / "report.json").read_text(encoding="utf-8")) for where in both]
        for key in ("split", "rows_sha256"):
            if settings[0][key] != settings[1][key]:
                raise answers.AnswersError(
                    f"{name}: {key} is {settings[0][key]!r} in {first} and {settings[1][key]!r} in {second}; evaluate "
                    "both on the same rows"
                )
        if told[0]["judge"] != told[1]["judge"]:
            raise answers.AnswersError(
                f"{name}: {first} is judged by {judged_by(told[0])}, {second} by {judged_by(told[1])}; judge both alike"
            )
        rows = [_terms(where[name]) for where in both]
        one = metrics.compare(name, *rows)
        differ = [
            f"{key}: {told[0]['config'][key]} and {told[1]['config'][key]}"
            for key in ASKED
            if told[0]["config"][key] != told[1]["config"][key]
        ]
        compared.append({**one, "first": origin(told[0]), "second": origin(told[1]), "asked_otherwise": differ})
    return compared


def _terms(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "terms.jsonl").read_text(encoding="utf-8").splitlines()]


def comparison(compared: Sequence[dict[str, Any]]) -> str:
    """`compare`'s as Markdown."""
    first, second = compared[0]["first"], compared[0]["second"]
    differences = dict.fromkeys(difference for one in compared for difference in one["asked_otherwise"])
    differ = [f"not asked alike, {difference}\n\n" for difference in differences]
    return f"first: {first}\n\nsecond: {second}\n\n{''.join(differ)}{metrics.markdown_comparison(compared)}"


def headlines(out: Path) -> str:
    """What results.json says, a line a benchmark, for a terminal."""
    made = json.loads((out / "results.json").read_text(encoding="utf-8"))
    lines = []
    for name, one in made["benchmarks"].items():
        headline, lacking = one["report"]["headline"], metrics.lacking(one["report"])
        if lacking:
            lines.append(f"{name}: {lacking}")
        elif headline in one["report"]["figures"]:
            figure = one["report"]["figures"][headline]
            value, low, high = (number(figure[key], figure["kind"] == "share") for key in ("value", "low", "high"))
            unread = f", {figure['unparsable']} not read" * bool(figure["unparsable"])
            lines.append(f"{name}: {headline} {value} ({low} to {high}) of {figure['denominator']}{unread}")
    measured = next(
        (one["report"]["keywords"] for one in made["benchmarks"].values() if one["report"]["keywords"]), None
    )
    return "\n".join([*lines, *partly(made["benchmarks"]), *([metrics.keywords(measured)] if measured else [])])


# ---- the page


def document(out: Path, reports: dict[str, dict[str, Any]], notes: list[str]) -> bytes:
    """The page of a folder's reports."""
    notes, symbols, newest = list(notes), {}, next(iter(reports.values()))
    facts = {
        "Policy": origin(newest),
        "Judge": judged_by(newest),
        "Answers": f"up to {newest['config']['sampler.max_tokens']} tokens, temperature {newest['config']['eval.temperature']:g}",
    }
    if partial := partly(reports):
        facts["Not whole"] = "; ".join(partial)
    if newest["asked_otherwise"]:
        facts["Asked otherwise than in training"] = "; ".join(newest["asked_otherwise"])
    facts = element(
        "dl", *(element("div", element("dt", k), element("dd", v)) for k, v in facts.items()), class_="facts"
    )
    sections = [section(out, name, one, symbols, notes) for name, one in reports.items()]
    papers = markdown_tables(published.markdown([one["report"] for one in reports.values()]))
    hidden = element("svg", *symbols.values(), width=0, height=0, class_="symbols", aria_hidden="true")
    left_out = element("ul", *(element("li", note) for note in notes or ["nothing"]))
    return page.document(
        f"{out.resolve().name}: evaluation",
        element("header", element("h1", out.resolve().name), facts, element("div", summary(reports), class_="charts")),
        hidden,
        *sections,
        element("section", element("h2", "Beside the papers"), papers),
        glossary(reports),
        element("footer", element("h2", "Left out"), left_out),
    )


def summary(reports: dict[str, dict[str, Any]]) -> Html:
    """The headline of every benchmark on one axis."""
    bars = {}
    for name, one in reports.items():
        headline = one["report"]["headline"]
        figure = one["report"]["figures"].get(headline)
        if figure and figure["kind"] == "share" and not metrics.lacking(one["report"]):
            bars[f"{name}: {label(headline, figure)}"] = _bar(figure)
    note = "95% intervals; n: rows that count; unread: rows of which nothing can be said; ↑ more is better, ↓ less is"
    chart = page.interval_chart("Headline of each benchmark", bars, note=note)
    measured = [one["report"]["keywords"] for one in reports.values() if one["report"]["keywords"]][:1]
    return Html(chart + Html("".join(element("p", metrics.keywords(one), class_="quiet") for one in measured)))


def glossary(reports: dict[str, dict[str, Any]]) -> Html:
    """What each measure of the page is."""
    used = [name for name in metrics.MEASURES if any(name in one["report"]["figures"] for one in reports.values())]
    rows = (
        element("tr", element("th", name.replace("_", " ")), element("td", metrics.MEASURES[name].about))
        for name in used
    )
    table = element("div", element("table", element("tbody", *rows), class_="words"), class_="wide", tabindex=0)
    return element("section", element("h2", "What is measured"), table)


def label(measure: str, figure: dict[str, Any]) -> str:
    """A measure's name, and which way is better."""
    return measure.replace("_", " ") + {"up": " ↑", "down": " ↓", "": ""}[figure["direction"]]


def section(out: Path, name: str, one: dict[str, Any], symbols: dict[str, Html], notes: list[str]) -> Html:
    """One benchmark: its figures as intervals, its categories, examples."""
    made, charts = one["report"], []
    shares = {label(m, f): _bar(f) for m, f in made["figures"].items() if f["kind"] == "share"}
    charts.append(page.interval_chart("Shares", shares, note="↑ more is better, ↓ less is"))
    means = {label(m, f): _bar(f) for m, f in made["figures"].items() if f["kind"] == "mean"}
    values = [x for bar in means.values() for x in bar[:3] if page.is_finite(x)]
    if values:
        charts.append(page.interval_chart("Scores", means, page.around([0.0, *values]), "as judged", is_rate=False))
    headline = made["figures"].get(made["headline"])
    for field, title in (("cells", "image, text, both (S safe, U unsafe)"), ("categories", "category")):
        if headline and headline["kind"] == "share" and made[field]:
            bars = {name: _bar(figure) for name, figure in made[field].items()}
            charts.append(page.interval_chart(f"{label(made['headline'], headline)} by {title}", bars))
    told = f"{made['rows']:,} answers to split {one['split']}, {one['cut']:,} cut at the limit"
    told += f", {len(one['left_out'])} rows left out" * bool(one["left_out"])
    cards = []
    for kind, title in KINDS.items():
        own = [example for example in one["examples"] if example["kind"] == kind]
        if own:
            shown = [card(out, example, symbols, notes) for example in own]
            count = element("small", f"{len(own)} of {one['kinds'][kind]:,}")
            cards.append(
                element(
                    "details",
                    element("summary", element("h3", title), " ", count),
                    *shown,
                    class_="step",
                    open=kind == "wrong" and "open",
                )
            )
    about = metrics.BENCHMARKS[name].about if name in metrics.BENCHMARKS else ""
    lead = element("p", f"{about}. {told}" if about else told, class_="quiet")
    if lacking := metrics.lacking(made):
        lead = Html(lead + element("p", element("b", lacking)))
    return element("section", element("h2", name), lead, element("div", *filter(None, charts), class_="charts"), *cards)


def _bar(figure: dict[str, Any]) -> tuple[Any, Any, Any, str]:
    unread = f", {figure['unparsable']} unread" * bool(figure["unparsable"])
    return figure["value"], figure["low"], figure["high"], f"n {figure['denominator']:g}{unread}"


def card(out: Path, example: dict[str, Any], symbols: dict[str, Html], notes: list[str]) -> Html:
    """One answer with what was asked."""
    asked = [element("p", example["id"], class_="quiet")]
    for count, name in enumerate(example["images"], 1):
        asked.append(report.picture(out, name, f"Image {count} of {example['id']}", symbols, notes))
    for place, turn in enumerate(example["history"]):
        asked.append(element("p", element("b", ("User: ", "Assistant: ")[place % 2]), turn, class_="quiet"))
    asked.append(element("p", example["prompt"], class_="prompt"))
    truth = [f"expected: {example['expected']}"] * (example["expected"] != "any")
    truth += [f"right option: {example['choice']}"] * bool(example["choice"])
    asked.append(element("p", ", ".join(truth), class_="quiet") if truth else Html())
    told = element("p", element("b", example["outcome"]), " ", element("small", ", ".join(counted(example["values"]))))
    words = [element("blockquote", example["comment"])] if example["comment"] else []
    said = [report.tag_chips(example), *report.verbatim(example["response"]), told, *words]
    return element("article", element("div", *asked, class_="asked"), element("div", *said, class_="answers"))


def counted(values: dict[str, Any]) -> list[str]:
    """What an answer counts as: the shares that it adds to, its scores, what could not be read of it."""
    told = []
    for name, value in values.items():
        words = name.replace("_", " ")
        if value is None:
            told.append(f"{words} cannot be read")
        elif metrics.MEASURES[name].kind == "mean":
            told.append(f"{words} {number(value)}")
        elif value:
            told.append(words)
    return told


def markdown_tables(text: str) -> Html:
    """Paragraphs and tables of simple Markdown; headings are left out."""
    parts: list[Html] = []
    for block in text.strip().split("\n\n"):
        lines = [line.strip() for line in block.splitlines() if line.strip()]
        if lines and all(line.startswith("|") for line in lines):
            rows = [[cell.strip().replace("`", "") for cell in line.strip("|").split("|")] for line in lines]
            head, body = rows[0], rows[2:]
            cells = lambda row: (element("th" if place == 0 else "td", cell) for place, cell in enumerate(row))
            table = element(
                "table",
                element("thead", element("tr", *(element("th", cell) for cell in head))),
                element("tbody", *(element("tr", *cells(row)) for row in body)),
                class_="words",
            )
            parts.append(element("div", table, class_="wide", tabindex=0))
        elif lines and not lines[0].startswith("#"):
            parts.append(element("p", re.sub("[*`]", "", " ".join(lines)), class_="quiet"))
    return Html("".join(parts))
