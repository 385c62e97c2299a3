"""What people read of a tagged set: what was kept and what was dropped and why, as Markdown and as a page (host code).

Everything read is untrusted text: `page.element` escapes each string which is not already markup.
"""

from collections.abc import Sequence
from typing import NamedTuple

from safer_jax import images, page
from safer_jax.page import Html, element
from safer_jax.shapes import Record
from safer_jax.tagging.ratings import PARTS
from safer_jax.tagging.selection import CELLS, COMPOSITIONAL, FATES, KEPT, WORDS, Chosen, Made

SIDE = 320  # pixels; images are reduced to this
PROMPT = 240  # characters of a prompt that are shown
Table = tuple[str, list[list[str]]]  # a title, and rows of which the first is the head


class Example(NamedTuple):
    """An item to show, with what the judge said of it."""

    chosen: Chosen
    comment: str
    record: Record


def tables(made: Made) -> list[Table]:
    """What is told in numbers."""
    rule, sets = made.rule, list(made.chosen)
    counts = lambda own: [f"{count:,}" for count in own]
    fates = [[f"{f}: {FATES[f]}", *counts([*own.values(), sum(own.values())])] for f, own in made.fates().items()]
    cells = [[f"{cell}: {meaning(cell)}", *counts(own.values())] for cell, own in made.cells().items()]
    parts = [[part, *counts(own.values())] for part, own in made.reasons().items()]
    between = f"score between {rule.unsafe_to:g} and {rule.safe_from:g}"
    licences = [[source, licence or "none given", f"{count:,}"] for source, licence, count in made.licences()]
    return [
        ("What became of the items", [["", *sets, "all"], *fates]),
        ("Cells", [["image, text, together", "found", "sure", "train", "test"], *cells]),
        ("Dropped by part; an item may count twice", [["", between, f"confidence below {rule.confidence:g}"], *parts]),
        ("Licences of what is kept", [["source", "licence", "rows"], *licences]),
    ]


def meaning(cell: str) -> str:
    """SSU -> safe, safe, unsafe."""
    return ", ".join(WORDS[letter] for letter in cell)


def markdown(made: Made) -> str:
    """The tables for a terminal or a repository."""
    lines = [f"# {len(made.kept):,} of {len(made.all):,} items kept", "", f"Judge: {_judge(made)}. {_rule(made)}", ""]
    for title, (head, *rows) in tables(made):
        lines += [f"## {title}", "", _row(head), _row(["---", *["---:"] * (len(head) - 1)]), *map(_row, rows), ""]
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"


def _judge(made: Made) -> str:
    return " ".join(made.judge[name] for name in ("kind", "model", "path") if made.judge[name])


def _rule(made: Made) -> str:
    rule = made.rule
    limits = [f"{count:,} of {cell}" for cell, count in rule.cells.items()]
    limits += [f"{rule.per_cell:,} of a cell"] * bool(rule.per_cell) + [f"{rule.target:,} in all"] * bool(rule.target)
    return (
        f"Unsafe up to {rule.unsafe_to:g}, safe from {rule.safe_from:g}, all confidences from {rule.confidence:g}"
        f"{'; at most ' if limits else ''}{', '.join(limits)}."
    )


def document(title: str, made: Made, examples: Sequence[Example], limits: images.Limits) -> bytes:
    """The whole page."""
    return page.document(
        title, _head(title, made), _charts(made), *map(_table, tables(made)), _sheets(examples, limits)
    )


def _head(title: str, made: Made) -> Html:
    facts = {"Judge": _judge(made), "Rule": _rule(made), "Drawn prompts are asked": made.judge["instruction"]}
    facts |= {"Under an image": "score (confidence) of each part, 0 to 10"}
    entries = (element("div", element("dt", name), element("dd", value)) for name, value in facts.items())
    joint = sum(one.cell == COMPOSITIONAL for one in made.kept)
    lead = element("b", f"{len(made.kept):,} of {len(made.all):,}"), " items kept, ", element("b", f"{joint:,}")
    return element(
        "header",
        element("h1", title),
        element("dl", *entries, class_="facts"),
        element("p", *lead, " of them unsafe only together", class_="lead"),
    )


def _charts(made: Made) -> Html:
    cells = {meaning(cell): (own["train"] + own["test"], own["found"]) for cell, own in made.cells().items()}
    clouds: dict[str, list[tuple[float, float]]] = {"kept": [], "left out": []}
    for one in made.all:
        if not one.rating.fault:
            point = one.rating.score("combined"), one.rating.confidence("combined")
            clouds["kept" if one.fate == KEPT else "left out"].append(point)
    names = ("score together", "confidence")
    note = "0 unsafe, 10 safe; a larger dot is more items"
    charts = (
        page.bar_chart("Kept per cell", cells, "image, text, together: kept of those found by score"),
        page.scatter("What the judge says of image and text together", clouds, names, note=note),
    )
    return element("section", element("h2", "The cells"), element("div", *charts, class_="charts"))


def _table(table: Table) -> Html:
    title, (head, *rows) = table
    cells = lambda row: (element("th", row[0], scope="row"), *(element("td", cell) for cell in row[1:]))
    names = (element("th", name, scope="col", style=i == 0 and "text-align: left") for i, name in enumerate(head))
    first = element("tr", *names)
    body = element("table", element("thead", first), element("tbody", *(element("tr", *cells(row)) for row in rows)))
    return element("section", element("h2", title), element("div", body, class_="wide", tabindex=0))


def _sheets(examples: Sequence[Example], limits: images.Limits) -> Html:
    """Contact sheets: of each cell what is kept, then what is left out."""
    sheets = {
        f"Kept: {meaning(cell)}": [e for e in examples if _is_kept(e) and e.chosen.cell == cell] for cell in CELLS
    }
    sheets["Left out"] = [example for example in examples if not _is_kept(example)]
    style = "grid-template-columns: repeat(auto-fill, minmax(min(100%, 14rem), 1fr)); gap: 1.6rem 1.4rem"
    return Html(
        "".join(
            element(
                "section",
                element("h2", title),
                element("div", *(_card(example, limits) for example in own), class_="charts", style=style),
            )
            for title, own in sheets.items()
            if own
        )
    )


def _is_kept(example: Example) -> bool:
    return example.chosen.fate == KEPT


def _card(example: Example, limits: images.Limits) -> Html:
    """Images, prompt, and for each part score and confidence."""
    record, rating = example.record, example.chosen.rating
    frame = "height: 11rem; margin-bottom: .4rem"  # of one shape, so that a sheet is even
    named = ((f"image {count} of {record.id}", data) for count, data in enumerate(record.images, 1))
    pictures = [page.picture(data, limits, SIDE, name, frame) for name, data in named]
    prompt = record.prompt if len(record.prompt) <= PROMPT else f"{record.prompt[: PROMPT - 1]}…"
    said = [f"{part} {rating.score(part):g} ({rating.confidence(part):g})" for part in PARTS] if rating.values else []
    about = " · ".join(
        word for word in (record.id, record.category, rating.drawn and f"drawn as {rating.drawn}") if word
    )
    texts = [element("p", prompt, class_="prompt", style="font-size: .95rem")]
    texts += [element("p", element("small", ", ".join(said)))] if said else []
    texts += [element("p", element("small", example.comment))] if example.comment else []
    fate = [] if _is_kept(example) else [element("p", element("b", FATES[example.chosen.fate]))]
    return element(
        "figure", *pictures, *fate, *texts, element("p", about, class_="quiet"), style="overflow-wrap: anywhere"
    )
