"""What a data set holds, before it is trained on: figures, reasons to leave rows out, and a contact sheet (host code)."""

import base64
import collections
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from safer_jax import images, measured, overlap, page
from safer_jax.datasets import DataError, RowError, Source, reading
from safer_jax.page import Html, element, number
from safer_jax.shapes import SAFE, TAGS, Record

BARS = 20  # categories that the page names one by one
REASONS = 40  # rows left out that the page names
SIDE = 220  # pixels a side of a picture on the page
PERCENTILES = (0, 5, 50, 95, 99, 100)
MODALITIES = {"image": "image_tag", "text": "text_tag", "combined": "combine_tag"}


class Fit(NamedTuple):
    """Slots that prompts are padded to: the buckets, and a record's need of them."""

    size: Callable[[Record], tuple[int, int]]  # (tokens, patch slots); raises ValueError
    tokens: Sequence[int]
    patches: Sequence[int]
    tokenizer: str  # what people know it by


class Shot(NamedTuple):
    """A row on the contact sheet."""

    record: Record  # without its images
    pictures: list[str]  # JPEG as data addresses


class Summary:
    """Figures of the rows that were looked at; `add` by one thread."""

    def __init__(self, name: str, rows: int):
        self.name, self.rows, self.read = name, rows, 0
        self.words: dict[str, collections.Counter] = {
            name: collections.Counter()
            for name in ("tags", "expected", "category", "source", "licence", "use", "format", "images", "turns")
        }
        self.has: collections.Counter = collections.Counter()
        self.bad: list[str] = []
        self.numbers: dict[str, list[int]] = collections.defaultdict(list)
        self.shots: list[Shot] = []

    def add(self, seen: "Seen | str") -> None:
        if isinstance(seen, str):
            self.bad.append(seen)
            return
        for name, value in seen.needs.items():
            self.numbers[name].append(value)  # also of a row that fits no bucket: that says which one to add
        if seen.reason:
            self.bad.append(seen.reason)
            return
        record, self.read = seen.record, self.read + 1
        self.words["tags"][tuple(getattr(record, name) for name in MODALITIES.values())] += 1
        for name in ("expected", "category", "source", "licence", "use"):
            self.words[name][getattr(record, name) or "none given"] += 1
        self.words["images"][len(seen.extents)] += 1
        self.words["turns"][1 + len(record.history)] += 1
        self.words["format"].update(seen.formats)
        self.has.update(name for name in ("reference", "flawed", "reflection", "choice") if getattr(record, name))
        self.numbers["prompt characters"].append(len(record.prompt))
        self.numbers["image width"] += [width for width, _ in seen.extents]
        self.numbers["image height"] += [height for _, height in seen.extents]
        self.numbers["image bytes"] += seen.bytes
        if seen.shot is not None:
            self.shots.append(seen.shot)

    def percentiles(self) -> dict[str, list[int]]:
        """PERCENTILES of each number that was seen."""
        return {
            name: np.percentile(values, PERCENTILES, method="nearest").astype(int).tolist()
            for name, values in self.numbers.items()
            if values
        }

    def told(self) -> dict[str, Any]:
        """All figures as JSON has them."""
        tags = {" ".join(key): count for key, count in self.words["tags"].most_common()}
        words = {name: dict(counts.most_common()) for name, counts in self.words.items() if name != "tags"}
        return {
            "name": self.name,
            "rows": self.rows,
            "left_out": self.bad,
            "image_text_combined": tags,
            **words,
            "rows_with": dict(self.has),
            "percentiles": {"of": PERCENTILES, **self.percentiles()},
        }


class Seen(NamedTuple):
    """What was learnt of one row; nothing in it grows with its images."""

    record: Record  # without images
    extents: list[tuple[int, int]]  # (width, height)
    bytes: list[int]
    formats: list[str]
    needs: dict[str, int]
    shot: Shot | None
    reason: str  # why training would leave the row out, though it can be read


def look(
    source: Source,
    limits: images.Limits,
    fit: Fit | None = None,
    shots: int = 0,
    prints: overlap.Prints | None = None,
    threads: int = 4,
) -> Summary:
    """Read every row once, a bounded number at a time. Rows that cannot be used are named with the reason.

    With `fit` a row is left out that fits no bucket, as training would; `shots` rows, evenly spread, come on the sheet.
    """
    summary = Summary(source.name, len(source))
    gap = max(1, len(source) // shots) if shots else 0

    def see(index: int) -> Seen | str:
        try:
            record = source[index]
            if prints is not None:
                prints.add(record)
            is_shown = bool(gap) and index % gap == 0 and index // gap < shots
            return _see(record, limits, fit, is_shown)
        except (RowError, images.ImageError) as error:
            return str(error)

    progress = reading.Progress(source.name, len(source))
    for seen in progress.of(reading.ahead(see, range(len(source)), threads)):
        summary.add(seen)
    if not summary.read:
        raise DataError(f"{source.name}: none of {len(source)} rows can be read; the last: {summary.bad[-1]}")
    return summary


def _see(record: Record, limits: images.Limits, fit: Fit | None, is_shown: bool) -> Seen | str:
    named = [(data, f"row {record.id!r}, image {place}") for place, data in enumerate(record.images, 1)]
    extents = [images.extent(data, limits, name) for data, name in named]
    needs, reason = {}, ""
    if fit is not None:
        try:
            tokens, patches = fit.size(record)
        except ValueError as error:  # PromptError names the row
            return str(error)
        reason = measured.over(record, tokens, patches, max(fit.tokens), max(fit.patches))
        needs = {"prompt tokens": tokens, "patch slots": patches}
    bare = record._replace(images=())
    # Decoding finds a file that is cut short, so every row's images are decoded, small; the shown ones are kept.
    small = [images.thumbnail(data, limits, SIDE, name) for data, name in named]
    shot = Shot(bare, [_address(picture) for picture in small]) if is_shown else None
    kinds = [_kind(data) for data in record.images]
    return Seen(bare, extents, [len(data) for data in record.images], kinds, needs, shot, reason)


def _kind(data: bytes) -> str:
    starts = {b"\xff\xd8": "JPEG", b"\x89PNG": "PNG", b"GIF8": "GIF", b"BM": "BMP", b"RIFF": "WEBP"}
    return next((name for start, name in starts.items() if data.startswith(start)), "other")


def _address(picture: Any) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=72)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def in_buckets(values: Sequence[int], buckets: Sequence[int]) -> dict[str, int]:
    """How many values each bucket is the first to hold, and how many none does."""
    place = np.searchsorted(sorted(buckets), values)
    held = {f"to {size:,}": int((place == index).sum()) for index, size in enumerate(sorted(buckets))}
    return held | ({f"above {max(buckets):,}": beyond} if (beyond := int((place == len(buckets)).sum())) else {})


def text(summary: Summary, fit: Fit | None, overlaps: Mapping[str, str]) -> str:
    """What the terminal is told."""
    lines = [f"{summary.name}: {summary.rows:,} rows, {len(summary.bad):,} left out"]
    lines += [f"  left out: {reason}" for reason in summary.bad[:10]]
    if len(summary.bad) > 10:
        lines.append(f"  and {len(summary.bad) - 10:,} more")
    lines += ["", f"{'rows':>8}  image    text     combined"]
    lines += [f"{count:8,}  {'  '.join(f'{t:7}' for t in key)}" for key, count in summary.words["tags"].most_common()]
    for name in ("expected", "use", "licence", "source", "images", "turns", "format", "category"):
        counts = summary.words[name].most_common()
        said = ", ".join(f"{word} {count:,}" for word, count in counts[:12])
        lines.append(
            f"{_TITLES.get(name, name)}: {said}" + (f" and {len(counts) - 12} others" if len(counts) > 12 else "")
        )
    for name, count in summary.has.items():
        lines.append(f"with a {_FIELDS[name]}: {count:,}")
    lines += ["", f"{'percentile':18}" + "".join(f"{p:>12}" for p in PERCENTILES)]
    lines += [f"{name:18}" + "".join(f"{v:12,}" for v in values) for name, values in summary.percentiles().items()]
    for title, name, buckets in _fits(fit):
        held = in_buckets(summary.numbers[name], buckets)
        lines.append(f"{title}: {', '.join(f'{key}: {count:,}' for key, count in held.items())}")
    lines += overlaps.values()
    return "\n".join(lines) + "\n"


def document(summary: Summary, fit: Fit | None, overlaps: Mapping[str, str]) -> bytes:
    """One self-contained page. Pictures whose image tag is not "safe" are blurred until asked for."""
    uses = summary.words["use"]
    facts = {
        "Rows": f"{summary.rows:,}",
        "Left out": f"{len(summary.bad):,}",
        "Use": ", ".join(f"{word} {count:,}" for word, count in uses.most_common()),
        "Licence": ", ".join(summary.words["licence"]),
        "Images a row": ", ".join(f"{word}: {count:,}" for word, count in sorted(summary.words["images"].items())),
        "Formats": ", ".join(f"{word} {count:,}" for word, count in summary.words["format"].most_common()),
        "Expected": ", ".join(f"{word} {count:,}" for word, count in summary.words["expected"].most_common()),
        **{f"With a {_FIELDS[name]}": f"{count:,}" for name, count in summary.has.items()},
        **({"Tokenizer": fit.tokenizer} if fit else {}),
    }
    listed = element(
        "dl", *(element("div", element("dt", k), element("dd", v)) for k, v in facts.items()), class_="facts"
    )
    lines = [element("p", line.removeprefix("overlap: ")) for line in overlaps.values()]
    parts = [element("header", element("h1", summary.name), listed), _tags(summary), _charts(summary, fit)]
    parts += [element("section", element("h2", "Overlap"), *lines)] if lines else []
    parts += [_left_out(summary)] if summary.bad else []
    return page.document(summary.name, *parts, _sheet(summary), style=STYLE)


def _tags(summary: Summary) -> Html:
    head = ("Rows", "Share", "Image", "Text", "Combined")
    rows = []
    for key, count in summary.words["tags"].most_common():
        cells = [element("td", f"{count:,}"), element("td", number(count / summary.read, is_rate=True))]
        rows.append(element("tr", *cells, *(element("td", _chip(tag)) for tag in key)))
    return _table("Tags", head, rows)


def _charts(summary: Summary, fit: Fit | None) -> Html:
    named = [
        page.bar_chart(title, _bars(summary.words[name], summary.read), "rows of each")
        for title, name in (("Categories", "category"), ("Sources", "source"))
        if len(summary.words[name]) > 1
    ]
    for title, name, buckets in _fits(fit):
        held = in_buckets(summary.numbers[name], buckets)
        bars = {key: (count, len(summary.numbers[name])) for key, count in held.items()}
        named.append(page.bar_chart(title, bars, "rows that each bucket is the first to hold"))
    rows = []
    for name, values in summary.percentiles().items():
        cells = [element("td", f"{value:,}") for value in values]
        rows.append(element("tr", element("th", name, scope="row"), *cells))
    head = ("", *(f"{p}%" if 0 < p < 100 else "least" if p == 0 else "most" for p in PERCENTILES))
    charts = element("section", element("div", *named, class_="charts")) if named else ""
    return Html(_table("Sizes", head, rows) + charts)


def _bars(counts: collections.Counter, whole: int) -> dict[str, tuple[int, int]]:
    common = counts.most_common()
    bars = {str(word): (count, whole) for word, count in common[:BARS]}
    if rest := common[BARS:]:
        bars[f"{len(rest)} others"] = (sum(count for _, count in rest), whole)
    return bars


def _left_out(summary: Summary) -> Html:
    items = [element("li", reason) for reason in summary.bad[:REASONS]]
    more = len(summary.bad) - len(items)
    told = [element("p", f"and {more:,} more", class_="quiet")] if more else []
    return element("section", element("h2", "Left out"), element("ul", *items, class_="reasons"), *told)


def _sheet(summary: Summary) -> Html:
    if not summary.shots:
        return Html()
    cards = []
    for record, pictures in summary.shots:
        style = "shot" if record.image_tag == SAFE else "shot veiled"
        shown = [element("span", _image(src, record.id), class_=style, tabindex=0) for src in pictures]
        tags = [element("span", word, " ", _chip(getattr(record, name))) for word, name in MODALITIES.items()]
        turns = [element("p", turn, class_="turn") for turn in record.history]
        told = " · ".join(word for word in (record.category, f"expected: {record.expected}", record.use) if word)
        cards.append(
            element(
                "div",
                element("div", *shown, class_="shots"),
                *turns,
                element("p", record.prompt, class_="prompt"),
                element("p", *tags, class_="tags"),
                element("p", told, class_="quiet"),
                element("p", record.id, class_="quiet"),
                class_="card",
            )
        )
    switch = Html('<input type="checkbox" id="clear"><label for="clear">Show every picture clearly</label>')
    note = element(
        "p",
        f"{len(cards)} of {summary.rows:,} rows, evenly spread. Pictures that are not tagged safe are blurred; a click on one "
        "shows it while it has the focus.",
        class_="quiet",
    )
    return element("section", element("h2", "Contact sheet"), note, switch, element("div", *cards, class_="sheet"))


def _image(src: str, name: str) -> Html:
    return Html(element("img", src=src, alt=f"image of {name}").removesuffix("</img>"))


def _chip(tag: str) -> Html:
    return element("span", tag, class_=f"chip {tag}" if tag in TAGS else "chip")


def _table(title: str, head: Sequence[str], rows: Sequence[Html]) -> Html:
    heads = element("tr", *(element("th", name, scope="col") for name in head))
    table = element("table", element("thead", heads), element("tbody", *rows))
    return element("section", element("h2", title), element("div", table, class_="wide", tabindex=0))


def _fits(fit: Fit | None) -> list[tuple[str, str, Sequence[int]]]:
    if fit is None:
        return []
    return [
        ("Prompt tokens by bucket", "prompt tokens", fit.tokens),
        ("Patch slots by bucket", "patch slots", fit.patches),
    ]


_TITLES = {"images": "images a row", "turns": "turns a row", "format": "formats", "category": "categories"}
_FIELDS = {
    "reference": "reference response",
    "flawed": "flawed response",
    "reflection": "reflection",
    "choice": "right option",
}

STYLE = """
.charts { margin-top: 2.2rem }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(13.5rem, 1fr)); gap: 1.8rem 1.4rem; margin-top: 1.4rem }
.card { break-inside: avoid; min-width: 0; overflow-wrap: anywhere; font-size: .84rem }
.card > * + * { margin-top: .4rem } .card .prompt { font-size: .98rem; line-height: 1.35; max-height: 11em; overflow: auto }
.card .quiet { font-size: .76rem; line-height: 1.35 } .turn { color: var(--soft); border-left: 2px solid var(--rule);
  padding-left: .6rem; max-height: 6em; overflow: auto }
.shots { display: flex; flex-wrap: wrap; gap: .3rem; min-height: 8rem; align-items: flex-start }
.shot { display: block; overflow: hidden; border-radius: 3px; background: var(--panel); flex: 0 1 auto; max-width: 100% }
.shot img { display: block; max-width: 100%; max-height: 11rem } .shots:empty { min-height: 0 }
.veiled { cursor: pointer } .veiled img { filter: blur(16px) saturate(.5) }
.veiled:focus img, section:has(#clear:checked) .veiled img { filter: none }
#clear { margin: 1rem .5rem 0 0; accent-color: var(--s0) } .tags { display: flex; flex-wrap: wrap; gap: .2rem .8rem }
.tags > span { color: var(--soft); font-size: .76rem }
.chip { border: 1px solid; border-radius: 3px; padding: 0 .35rem; font-size: .76rem }
.chip.safe { color: var(--good) } .chip.unsafe { color: var(--bad) } .chip.unknown { color: var(--soft); border-style: dotted }
.reasons { padding-left: 1.1rem; font-size: .84rem } .reasons li { overflow-wrap: anywhere }
"""
