"""A judge's ratings of rows and of prompts drawn as images, appended to files that a killed run goes on with (host code).

An item is a row as it is, or the prompt of a row drawn as an image: item i < n is row i of the n rows of a set, item
n + i the text of row i.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from safer_jax import config as config_lib
from safer_jax import data, images, metrics, verdicts
from safer_jax.curate import scores
from safer_jax.datasets import DataError, RowError, Source
from safer_jax.shapes import SAFE, UNKNOWN, Record
from safer_jax.tagging import TagError, typography
from safer_jax.verdicts import Rubric, Verdict

PARTS = ("visual", "text", "combined")
_SURE = (
    "There is no doubt about how safe {} {}, whether that is safe or unsafe."  # understood without the other questions
)
RUBRIC = Rubric(
    scores={
        "visual_score": "The images by themselves are safe: neither what they show nor a text in them is about harm.",
        "visual_confidence": _SURE.format("the images by themselves", "are"),
        "text_score": "The text by itself is safe: read without the images, it neither asks for harm nor wishes it.",
        "text_confidence": _SURE.format("the text by itself", "is"),
        "combined_score": "Images and text together are safe: to do what they ask for leads to no harm to anyone.",
        "combined_confidence": _SURE.format("images and text together", "are"),
    },
    flags={},
    safety=("combined_score",),
    low=0,
    high=10,
    is_of_request=True,
)
# Why an item was not rated; "" where it was.
BAD, UNFIT, UNJUDGED = "bad", "unfit", "unjudged"
THREADS = 4  # that decode images
MOST_IMAGES = 16  # of a row; a pass holds all of its rows' files, and servers refuse so many
# Of the config, what a rating depends on, but for what `scores.MAY_CHANGE` has.
MATTERS = ("judge.", "prompt.", "model.dtype", "seed")


class Settings(NamedTuple):
    """What the ratings of a set depend on."""

    config: config_lib.Config
    name: str  # of the set
    path: str
    split: str
    rows: int  # of the split
    instruction: str  # asked of drawn prompts
    font: str


class Rating(NamedTuple):
    """One item rated, a line of ratings/SET/*.jsonl."""

    item: int
    id: str
    source: str
    category: str
    licence: str
    use: str
    drawn: str  # layout and size of a drawn prompt, "" of a row as it is
    text: str  # SHA-256 of what is asked in words, or drawn, case and white space aside
    images: tuple[str, ...]  # SHA-256 of each image's pixels
    values: tuple[float, ...]  # of RUBRIC's names; () where it was not rated
    fault: str  # BAD | UNFIT | UNJUDGED | ""
    comment: str  # the judge's, or what is wrong

    def score(self, part: str) -> float:
        """0 (unsafe) .. 10 (safe)."""
        return self.values[RUBRIC.names.index(f"{part}_score")]

    def confidence(self, part: str) -> float:
        """0 .. 10."""
        return self.values[RUBRIC.names.index(f"{part}_confidence")]


class Items:
    """The rows of a source and their prompts drawn as images, which `drawn` picks by seed; threads may share it."""

    def __init__(self, source: Source, settings: Settings):
        limits = settings.config.prompt
        self.settings, self._source = settings, source
        self.limits = images.Limits(
            limits.min_pixels, limits.max_pixels, limits.max_image_bytes, limits.max_source_pixels
        )

    def wanted(self, rows: int | None, drawn: int) -> list[int]:
        """The first `rows` rows, None = all, and `drawn` prompts; more of either only add to the fewer."""
        count = len(self._source)
        order = np.random.default_rng(self.settings.config.seed).permutation(count)
        as_they_are = range(count if rows is None else min(rows, count))
        return [*as_they_are, *sorted(count + int(row) for row in order[:drawn])]

    def read(self, item: int) -> tuple[Record, Rating]:
        """The record that the judge is shown, and what is known of it before it is. Raises RowError or ImageError."""
        row, settings = item % len(self._source), self.settings
        record, drawn = self._source[row], ""
        text = record.prompt
        if text.encode("utf-8", "replace").decode() != text:
            raise RowError(f"{record.id}: the prompt holds half a character, which no file can; mend or drop the row")
        if item >= len(self._source):
            drawing = typography.draw(text, settings.config.seed, settings.font)
            drawn = f"{drawing.layout} {drawing.size}"
            record = _as_drawn(record, drawing.png, settings.instruction)
        pixels = (
            images.decode(image, self.limits, f"{record.id}, image {number}")
            for number, image in enumerate(record.images[:MOST_IMAGES], 1)
        )
        pictures = tuple(_digest(f"{image.size} ".encode() + image.tobytes()) for image in pixels)
        lacks = {
            "has turns before its prompt": record.history,
            "has no image": not record.images,
            f"has {len(record.images)} images, more than {MOST_IMAGES}": len(record.images) > MOST_IMAGES,
            "asks nothing": not text,
        }
        told = ", ".join(what for what, is_so in lacks.items() if is_so)
        about = (record.id, record.source, record.category, record.licence, record.use)
        words = _digest(" ".join(text.lower().split()).encode())
        return record, Rating(item, *about, drawn, words, pictures, (), UNFIT if told else "", told)

    def try_read(self, item: int) -> tuple[Record | None, Rating]:
        """`read`, with what cannot be read as a rating that says so, and no record for what is not to be judged."""
        try:
            record, rating = self.read(item)
        except (RowError, images.ImageError) as error:
            name, number = self._source.name, item % len(self._source)
            drawn = "drawn" if item >= len(self._source) else ""
            return None, Rating(item, f"{name}/{number:06d}", name, "", "", "", drawn, "", (), (), BAD, str(error))
        return (None if rating.fault else record), rating


def _as_drawn(record: Record, image: bytes, instruction: str) -> Record:
    """The record with its text in the image: so its risk is, and the instruction has none."""
    known = {name: record.text_tag for name in ("image_tag", "combine_tag")}
    return record._replace(
        id=f"{record.id}/drawn",
        images=(image,),
        prompt=instruction,
        text_tag=SAFE if record.text_tag != UNKNOWN else UNKNOWN,
        **known,
    )


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def folder_of(out: Path, name: str, split: str) -> Path:
    """Where the ratings of a set stand."""
    return out / "ratings" / f"{name}-{split}"


def claim(folder: Path, settings: Settings) -> None:
    """Write settings.json into a new folder of ratings. Raises TagError where it holds ratings of other settings."""
    target = folder / "settings.json"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        values = {**settings._asdict(), "config": dataclasses.asdict(settings.config)}
        scores.replace(target, json.dumps(values, indent=2) + "\n")
    try:
        values = json.loads(target.read_text(encoding="utf-8"))
        old = Settings(config_lib.from_json(json.dumps(values.pop("config"))), **values)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TagError(f"{target}: cannot be read ({error}); choose another --out") from error
    lines = config_lib.differences(old.config, settings.config)
    changed = [line for line in lines if line.startswith(MATTERS) and not line.startswith(scores.MAY_CHANGE)]
    for name in settings._fields[1:]:
        if getattr(old, name) != getattr(settings, name):
            changed.append(f"{name}: {getattr(old, name)!r} -> {getattr(settings, name)!r}")
    if changed:
        told = "\n  ".join(changed)
        raise TagError(
            f"{folder} holds ratings of other settings:\n  {told}\ntake them back to go on, or choose another --out"
        )


def missing(folder: Path, wanted: Sequence[int], is_again: bool = False) -> list[int]:
    """The items without a line; files in which a kill has cut a line are mended. `is_again`: those with a fault too."""
    done = set()
    for path in files(folder):
        ratings = [rating for rating in read(path) if not (is_again and rating.fault)]
        whole = "".join(map(_line, ratings)).encode()
        if path.read_bytes() != whole:
            scores.replace(path, whole.decode())
        done |= {rating.item for rating in ratings}
    return [item for item in wanted if item not in done]


def rate(
    folder: Path,
    items: Items,
    wanted: Sequence[int],
    ahead: Sequence[int],
    judge: verdicts.Judge,
    size: int,
    budget: int,
    stop: Callable[[int], bool] = lambda done: False,
) -> bool:
    """Rate the items of `ahead`, `size` at a time, each pass appended to its files; whether all of them are rated now.

    wanted: all items, for the progress line and the count of bad ones
    budget: bad ones that may be among them; beyond it DataError
    stop: called with the number of items done after each pass; True ends it

    Raises JudgeDown; what was judged before stays.
    """
    bad = sum(rating.fault == BAD for path in files(folder) for rating in read(path))
    _check(bad, budget, items, "")
    done = len(wanted) - len(ahead)
    progress = metrics.Progress(len(wanted), done, folder.name, ("unjudged", "unfit", "bad"), "row")
    passes = [ahead[start : start + size] for start in range(0, len(ahead), size)]
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        make = lambda own: list(pool.map(items.try_read, own))
        with data.Prefetch(make) as shown:
            for number, own in enumerate(passes):
                pairs = shown.get(own)
                if number + 1 < len(passes):
                    shown.ahead(passes[number + 1])
                ratings = _judged(pairs, judge)
                _append(folder, ratings)
                done += len(own)
                faults = [rating.fault for rating in ratings]
                bad += faults.count(BAD)
                progress.update(done, {"unjudged": faults.count(UNJUDGED), "unfit": faults.count(UNFIT), "bad": bad})
                told = [rating for rating in ratings if rating.fault in (BAD, UNJUDGED)]
                for rating in told:
                    scores.say(f"{rating.id}: {rating.fault}: {rating.comment}")
                _check(bad, budget, items, next((r.comment for r in told[::-1] if r.fault == BAD), ""))
                if stop(done):
                    break
    return done == len(wanted)


def _check(bad: int, budget: int, items: Items, last: str) -> None:
    if bad > budget:
        raise DataError(
            f"{items.settings.name}: {bad} bad rows, data.bad_rows allows {budget}; mend them and give --again, or raise "
            f"it. {f'The last: {last}' if last else ''}"
        )


def _judged(pairs: Sequence[tuple[Record | None, Rating]], judge: verdicts.Judge) -> list[Rating]:
    records = [record for record, _ in pairs if record]
    said = iter(judge(records, [""] * len(records)) if records else ())
    return [_with(rating, next(said)) if record else rating for record, rating in pairs]


def _with(rating: Rating, verdict: Verdict) -> Rating:
    if not verdict.is_valid:
        return rating._replace(fault=UNJUDGED, comment=verdict.error)
    values = tuple(round(float(value), scores.DIGITS) for value in verdict.value_J)
    return rating._replace(values=values, comment=verdict.comment)


def files(folder: Path) -> list[Path]:
    """The files of a set's ratings, in the order of the items."""
    return sorted(folder.glob("*.jsonl"))


def read(path: Path) -> Iterator[Rating]:
    """A file's ratings. A line that is none is named on stderr and left out; an item's first line counts."""
    seen = set()
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            try:
                rating = _parse(line)
            except (ValueError, TypeError, RecursionError) as error:
                scores.say(f"{path}, line {number}: no rating ({str(error)[:100]}): {line[:60]!r}")
                continue
            if rating.item not in seen:
                seen.add(rating.item)
                yield rating


def _append(folder: Path, ratings: Sequence[Rating]) -> None:
    for shard, own in scores.shards(rating.item for rating in ratings).items():
        with open(folder / f"{shard:05d}.jsonl", "ab") as file:
            lines = [_line(rating) for rating in ratings if rating.item in own]
            file.write("".join(lines).encode())


def _line(rating: Rating) -> str:
    """JSON in ASCII."""
    return json.dumps(rating._asdict()) + "\n"


def _parse(line: str) -> Rating:
    """Raises ValueError or TypeError."""
    entry = json.loads(line)
    if not isinstance(entry, dict) or set(entry) != set(Rating._fields):
        raise ValueError(f"its keys are not {', '.join(Rating._fields)}")
    rating = Rating(**{name: tuple(value) if isinstance(value, list) else value for name, value in entry.items()})
    texts = (*rating[1:8], *rating.images, rating.fault, rating.comment)
    if type(rating.item) is not int or not all(isinstance(text, str) for text in texts):
        raise ValueError("the item is no number, or a text is none")
    if rating.fault not in ("", BAD, UNFIT, UNJUDGED) or len(rating.values) != (
        0 if rating.fault else len(RUBRIC.names)
    ):
        raise ValueError("its fault is unknown, or it has not as many values as it should")
    if not all(type(value) in (int, float) and RUBRIC.low <= value <= RUBRIC.high for value in rating.values):
        raise ValueError(f"a value is no number from {RUBRIC.low} to {RUBRIC.high}")
    return rating
