"""The tagged set in the form of SafeTag-VL-3K, where each row comes from, what was left out, and a page (host code).

data/{train,test}-00000-of-00001.parquet   prompt, images, text_tag, image_tag, combine_tag
rows.jsonl                                 of each row of these, in order: id, source, licence, what the judge said
tagged.json, tagged.md, tagged.html        the rule, the cells, what was dropped and why
"""

import collections
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from safer_jax.curate import box
from safer_jax.judge import question
from safer_jax.tagging import TagError, overview, ratings
from safer_jax.tagging.ratings import RUBRIC, Items, Rating
from safer_jax.tagging.selection import CELLS, FATES, KEPT, TEST, TRAIN, Chosen, Made, Rule, select

GROUP = 64  # rows of a row group
EXAMPLES = 40  # of those kept that the page shows, and of those left out
_TEXT = {"dtype": "string", "_type": "Value"}
_IMAGES = {"feature": {"_type": "Image"}, "_type": "List"}
_TAGS = ("text_tag", "image_tag", "combine_tag")
_FEATURES = {"prompt": _TEXT, "images": _IMAGES, **dict.fromkeys(_TAGS, _TEXT)}
# What the hub's libraries write for SafeTag-VL-3K, their own description of it included.
SCHEMA = pa.schema(
    [
        ("prompt", pa.string()),
        ("images", pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))),
        *((name, pa.string()) for name in _TAGS),
    ],
    metadata={"huggingface": json.dumps({"info": {"features": _FEATURES}})},
)


def make(out: Path, sets: Mapping[str, Items], wanted: Mapping[str, Sequence[int]], rule: Rule) -> Made:
    """Select from the ratings in `out` and write the set there, in place of what an earlier call wrote.

    sets, wanted: what the items of a set are and which of them count, by the name of its folder in `out`/ratings.
    Raises TagError, and DataError or ImageError for rows that can no longer be read.
    """
    found = {name: _ratings(out, name, wanted[name]) for name in sets}
    chosen = iter(select([rating for own in found.values() for rating in own], rule))
    made = Made(rule, _judge(sets), {name: [next(chosen) for _ in own] for name, own in found.items()})
    _check(made)
    partial = out / ".building"
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "data").mkdir(parents=True)
    with open(partial / "rows.jsonl", "w", encoding="utf-8") as file:
        for split in (TRAIN, TEST):
            write(partial / "data" / f"{split}-00000-of-00001.parquet", _rows(made, sets, split))
            own = (one for one in made.kept if one.split == split)
            file.writelines(_line(one, row) for row, one in enumerate(own))
    (partial / "tagged.json").write_text(json.dumps(_told(made), indent=1) + "\n", encoding="utf-8")
    (partial / "tagged.md").write_text(overview.markdown(made), encoding="utf-8", errors="replace")
    limits = next(iter(sets.values())).limits
    page = overview.document(out.resolve().name, made, _examples(out, made, sets), limits)
    (partial / "tagged.html").write_bytes(page)
    shutil.rmtree(out / "data", ignore_errors=True)  # a kill between here and the end is mended by the next call
    for path in partial.iterdir():
        os.replace(path, out / path.name)
    partial.rmdir()
    return made


def write(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    """Rows of SafeTag's columns to a parquet file, a group at a time; no file where there is no row."""
    group = list(itertools.islice(rows, GROUP))
    if not group:
        return
    with pq.ParquetWriter(path, SCHEMA) as writer:
        while group:
            writer.write_table(pa.Table.from_pylist(group, SCHEMA))
            group = list(itertools.islice(rows, GROUP))


def _ratings(out: Path, name: str, wanted: Sequence[int]) -> list[Rating]:
    """In the order of the items, without the judge's words, which would fill the memory."""
    asked = set(wanted)
    every = (rating for path in ratings.files(out / "ratings" / name) for rating in ratings.read(path))
    found = [rating._replace(comment="") for rating in every if rating.item in asked]
    return sorted(found, key=lambda rating: rating.item)


def _judge(sets: Mapping[str, Items]) -> dict[str, str]:
    """Who rated, and what was asked."""
    settings = next(iter(sets.values())).settings
    judge = settings.config.judge
    asked = hashlib.sha256(question.instruction(RUBRIC).encode()).hexdigest()[:16]
    told = {"kind": judge.kind, "model": judge.model, "path": judge.path, "question_sha256": asked}
    return {**told, "instruction": settings.instruction, "font": settings.font}


def _check(made: Made) -> None:
    if not made.kept:
        counted = ", ".join(f"{sum(counts.values())} {fate}" for fate, counts in made.fates().items())
        raise TagError(
            f"nothing to keep ({counted or 'no items'}); widen the thresholds, tag more rows, or, where there "
            "was no verdict, mend the judge and give --again"
        )
    held = [one.rating.id for one in made.kept if one.rating.use != "train"]
    if held and made.rule.test_share < 1:
        raise TagError(
            f"{len(held)} rows such as {held[0]} are for evaluation only, not for training; choose another split, or give "
            "--test-share=1, which writes no training split"
        )


def _rows(made: Made, sets: Mapping[str, Items], split: str) -> Iterator[dict[str, Any]]:
    for name, own in made.chosen.items():
        for one in own:
            if one.split == split:
                record, now = sets[name].read(one.rating.item)
                if (now.id, now.text, now.images) != (one.rating.id, one.rating.text, one.rating.images):
                    raise TagError(f"{one.rating.id}: is no longer what was rated; choose another --out")
                files = [{"bytes": data, "path": None} for data in record.images]
                yield {"prompt": record.prompt, "images": files, **one.tags}


def _line(one: Chosen, row: int) -> str:
    rating = one.rating
    about = {name: getattr(rating, name) for name in ("id", "source", "category", "licence", "use", "drawn")}
    values = dict(zip(RUBRIC.names, rating.values, strict=True))
    return json.dumps({"split": one.split, "row": row, **about, "cell": one.cell, **values}) + "\n"


def _told(made: Made) -> dict[str, Any]:
    return {
        "judge": made.judge,
        "rule": made.rule._asdict(),
        "counts": made.fates(),
        "cells": made.cells(),
        "dropped_by_part": made.reasons(),
        "licences": [dict(zip(("source", "licence", "rows"), row, strict=True)) for row in made.licences()],
        "dropped": {
            fate: [one.rating.id for one in made.all if one.fate == fate] for fate in made.fates() if fate != KEPT
        },
    }


def _examples(out: Path, made: Made, sets: Mapping[str, Items]) -> list[overview.Example]:
    """Of those kept some of each cell, then of those left out some of each reason; with the judge's words."""
    by_cell: dict[str, list] = {cell: [] for cell in CELLS}
    by_fate: dict[str, list] = {fate: [] for fate in FATES}
    for name, own in made.chosen.items():
        for one in own:
            if one.rating.images:
                (by_cell[one.cell] if one.fate == KEPT else by_fate[one.fate]).append((name, one))
    for own in (*by_cell.values(), *by_fate.values()):
        own.sort(key=lambda pair: box.digest(pair[1].rating.id))
    shown = [*_in_turn(by_cell), *_in_turn(by_fate)]
    places = collections.defaultdict(set)
    for name, one in shown:
        places[name].add(one.rating.item)
    words = {
        (name, rating.item): rating.comment
        for name, own in places.items()
        for path in ratings.files(out / "ratings" / name)
        for rating in ratings.read(path)
        if rating.item in own
    }
    return [
        overview.Example(one, words[name, one.rating.item], *sets[name].read(one.rating.item)[:1])
        for name, one in shown
    ]


def _in_turn(groups: Mapping[str, list]) -> list:
    """The first of each group, then the second of each, EXAMPLES in all, group by group."""
    taken = sorted((place, group) for group, own in enumerate(groups.values()) for place in range(len(own)))[:EXAMPLES]
    lists = list(groups.values())
    return [lists[group][place] for place, group in sorted(taken, key=lambda pair: pair[::-1])]
