"""The page of a selection: quality against instability with the box, what was kept of what, examples (host code).

Everything read is untrusted text: `page.element` escapes each string which is not already markup.
"""

import math
from pathlib import Path
from typing import NamedTuple

from safer_jax import images, page, report
from safer_jax.curate.box import FATES, KEPT, Selection
from safer_jax.curate.scores import Group
from safer_jax.page import Html, element, number
from safer_jax.shapes import Record

BARS = 20  # names in a bar chart; the others are one bar
SIDE = 448  # pixels; images are reduced to this


class Example(NamedTuple):
    """A prompt to show."""

    group: Group  # with its responses
    fate: str
    record: Record


def document(title: str, folder: Path, made: Selection, examples: list[Example]) -> bytes:
    """The whole page. `folder`: where the scores are."""
    return page.document(title, _head(title, folder, made), _charts(made), _counts(made), _cards(made, examples))


def _head(title: str, folder: Path, made: Selection) -> Html:
    settings, box = made.settings, made.box
    config, judge = settings.config, settings.config.judge
    rule = f"quality {box.q_low:g} to {box.q_high:g}, instability from {number(made.i_min)}"
    facts = {
        "Data": f"{config.data.name} {config.data.path}".strip() + f", split {config.data.train_split}",
        "Policy": settings.policy,
        "Answers": f"{settings.rollouts} a prompt at T = {settings.temperature:g}; {made.unjudged:,} unjudged",
        "Judge": " ".join(word for word in (judge.kind, judge.model, judge.path) if word),
        "Score": f"the judge's part of scheme {config.reward.scheme}, 1 to 10",
        "Rule": "drawn at random" if box.is_random else rule,
        "Target size": f"{box.target:,}{', balanced by category' * box.is_balanced}" if box.target else "none",
        "Scores": str(folder),
    }
    entries = (element("div", element("dt", name), element("dd", value)) for name, value in facts.items())
    kept = element("b", f"{len(made.kept):,} of {len(made.groups):,}")
    return element(
        "header",
        element("h1", title),
        element("dl", *entries, class_="facts"),
        element("p", kept, " prompts kept", class_="lead"),
    )


def _charts(made: Selection) -> Html:
    clouds: dict[str, list[tuple[float, float]]] = {"kept": [], "left out": []}
    for group, fate in zip(made.groups, made.fates, strict=True):
        if not group.is_set_aside:
            clouds["kept" if fate == KEPT else "left out"].append((group.quality, group.instability))
    box = None if made.box.is_random else (made.box.q_low, made.box.q_high, made.i_min, math.inf)
    note = "mean and standard deviation of the scores of a prompt's answers; a larger dot is more prompts"
    charts = [
        page.scatter("Instability over quality", clouds, ("quality", "instability"), box, note),
        page.bar_chart("Kept per category", _bars(made, "category"), "prompts kept of those scored"),
        page.bar_chart("Kept per source", _bars(made, "source"), "prompts kept of those scored"),
        page.bar_chart("Kept per licence", _bars(made, "licence"), "prompts kept of those scored"),
    ]
    return element("section", element("h2", "The box"), element("div", *charts, class_="charts"))


def _bars(made: Selection, name: str) -> dict[str, tuple[int, int]]:
    counts = {word or "none given": pair for word, pair in made.tally(name).items()}
    bars, rest = dict(list(counts.items())[:BARS]), list(counts.values())[BARS:]
    if rest:
        bars[f"{len(rest)} others"] = tuple(map(sum, zip(*rest)))
    return bars


def _counts(made: Selection) -> Html:
    rows = []
    for fate, count in made.counts.items():
        cells = (element("td", f"{count:,}"), element("td", number(count / len(made.groups), is_rate=True)))
        rows.append(element("tr", element("th", f"{fate}: {FATES[fate]}", scope="row"), *cells))
    head = element("tr", element("td"), *(element("th", text, scope="col") for text in ("Prompts", "Share")))
    shared = made.overlap
    told = (
        f"Overlap with the evaluation split: {len(shared.rows):,} rows with its prompt and images, "
        f"{len(shared.images):,} with an image of it. selection.json names all prompts kept, set aside and overlapping."
    )
    table = element("table", element("thead", head), element("tbody", *rows))
    body = (element("div", table, class_="wide", tabindex=0), element("p", told, class_="quiet"))
    return element("section", element("h2", "What became of the prompts"), *body)


def _cards(made: Selection, examples: list[Example]) -> Html:
    prompt = made.settings.config.prompt
    limits = images.Limits(prompt.min_pixels, prompt.max_pixels, prompt.max_image_bytes, prompt.max_source_pixels)
    parts = []
    for title, is_kept in (("Kept", True), ("Left out", False)):
        cards = [_card(example, limits) for example in examples if (example.fate == KEPT) == is_kept]
        if cards:
            parts.append(element("section", element("h2", f"{title}, some examples"), *cards))
    return Html("".join(parts))


def _card(example: Example, limits: images.Limits) -> Html:
    """One prompt and its answers, best first; the best and the worst are unfolded."""
    group, fate, record = example
    asked = [element("p", element("b", fate), f" {record.id}", class_="quiet")]
    asked += [
        page.picture(data, limits, SIDE, f"image {count} of {record.id}") for count, data in enumerate(record.images, 1)
    ]
    about = " · ".join(word for word in (record.source, record.category, record.licence) if word)
    figures = f"quality {number(group.quality)}, instability {number(group.instability)}"
    asked += [element("p", record.prompt, class_="prompt"), element("p", about, class_="quiet")]
    asked += [element("p", element("b", figures))]
    order = sorted(range(len(group.scores)), key=lambda k: math.inf if group.scores[k] is None else -group.scores[k])
    answers = []
    for place, k in enumerate(order):
        score = "unjudged" if group.scores[k] is None else f"score {page.plain(group.scores[k])}"
        safety = element("small", f" · safety {page.plain(group.safety[k])}") if group.safety[k] is not None else ""
        comment = element("p", group.comments[k], class_="quiet") if group.comments[k] else ""
        summary = element("summary", element("b", score), safety)
        is_open = place in (0, len(order) - 1) and "open"
        answers.append(element("details", summary, *report.verbatim(group.responses[k]), comment, open=is_open))
    return element("article", element("div", *asked, class_="asked"), element("div", *answers, class_="answers"))
