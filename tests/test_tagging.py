"""Building a tagged set: what the judge is asked, thresholds, cells, splits, drawn prompts, kills, the files (host code)."""

import contextlib
import hashlib
import importlib.util
import io
import itertools
import json
import pathlib
import re
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetag_files
import scipy.sparse
import test_judge_endpoint as endpoints
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from configs import tiny_safer
from safer_jax import config, runtime, verdicts
from safer_jax.datasets import DataError, RowError, safetag
from safer_jax.judge import endpoint, local, question, recorded, rules
from safer_jax.judge.breaker import JudgeDown
from safer_jax.shapes import SAFE, UNSAFE, Record
from safer_jax.tagging import TagError, dataset, ratings, selection, typography
from safer_jax.tagging.ratings import PARTS, RUBRIC, Rating
from safer_jax.tagging.selection import Rule

ROOT = pathlib.Path(__file__).parents[1]
TAGS = ("image_tag", "text_tag", "combine_tag")


class Rows:
    """A source of made-up rows: `count` prompts, each with its own picture; `odd` are rows that stand elsewhere."""

    name = "rows/train"

    def __init__(self, count=20, **odd):
        self.count, self.odd = count, {int(key.removeprefix("row")): value for key, value in odd.items()}

    def __len__(self):
        return self.count

    def __getitem__(self, row):
        found = self.odd.get(row, {})
        if isinstance(found, Exception):
            raise found
        picture = safetag_files.picture(safetag_files.FORMS[row % 7], row)
        tags = dict(zip(TAGS, (SAFE, UNSAFE, UNSAFE)))
        made = Record(
            f"rows/train/{row:06d}",
            "rows",
            (picture,),
            f"Where is ladder {row}?",
            category=f"c{row % 3}",
            licence="free",
            **tags,
        )
        return made._replace(**found)


def settings_of(source, **overrides):
    made = tiny_safer.get_config()
    made.update_from_flattened_dict({"data.bad_rows": 2, **overrides})
    return ratings.Settings(config.resolve(made), "rows", "", "train", len(source), typography.INSTRUCTION, "")


def values_of(record):
    """What the judges of these tests say: six numbers that depend on what is shown alone."""
    shown = hashlib.sha256(b"".join([record.prompt.encode(), *record.images])).digest()
    return {name: (0, 10, 2, 9, 8, 10, 3, 7, 10, 6, 1)[byte % 11] if name.endswith("score") else (10, 9, 8, 7, 6)[byte % 5]
            for name, byte in zip(RUBRIC.names, shown)}  # fmt: skip


class Judge:
    """Says `values_of`; `fails` of which prompts nothing is said."""

    rubric = RUBRIC

    def __init__(self, fails=lambda prompt: False, dies_at=None):
        self.asked, self.fails, self.dies_at, self.calls = [], fails, dies_at, 0

    def __call__(self, records, responses):
        self.calls += 1
        if self.calls == self.dies_at:
            raise JudgeDown("gone")
        assert set(responses) <= {""}
        self.asked += [record.id for record in records]
        return [
            verdicts.failed(RUBRIC, f"no reply on {record.id}") if self.fails(record.prompt)
            else verdicts.of_values(RUBRIC, values_of(record), f"said of {record.id}")
            for record in records
        ]  # fmt: skip


def rate(out, source, judge=None, rows=None, drawn=0, again=False, size=4, stop=lambda done: False, **overrides):
    made = settings_of(source, **overrides)
    folder = ratings.folder_of(out, "rows", "train")
    ratings.claim(folder, made)
    items = ratings.Items(source, made)
    wanted = items.wanted(rows, drawn)
    ahead = ratings.missing(folder, wanted, again)
    budget = made.config.data.bad_rows
    is_done = ratings.rate(folder, items, wanted, ahead, judge or Judge(), size, budget, stop)
    return is_done, {folder.name: items}, {folder.name: wanted}


def everything(out):
    """All ratings by item; each must be there once, and every line be one."""
    folder = ratings.folder_of(out, "rows", "train")
    lines = [line for path in ratings.files(folder) for line in path.read_bytes().splitlines()]
    found = [rating for path in ratings.files(folder) for rating in ratings.read(path)]
    assert len(lines) == len(found) == len({rating.item for rating in found})
    return {rating.item: rating for rating in found}


# --- what is asked


RECORD = Rows()[3]._replace(images=(safetag_files.picture("jpeg"), safetag_files.picture("png")))


def reply(record, **changes):
    return json.dumps({"comment": "seen", **values_of(record), **changes})


def test_the_server_is_shown_the_request_alone_and_asked_for_six_numbers():
    server = endpoints.Server(lambda handler, number: handler.reply(endpoints.completion(reply(RECORD))))
    (verdict,) = endpoint.Judge(endpoints.settings(server.url), RUBRIC)([RECORD], [""])
    server.shutdown()
    assert verdict.is_valid and dict(zip(RUBRIC.names, verdict.value_J.tolist())) == values_of(RECORD)
    system, user = server.requests[0][2]["messages"]
    assert "from 0 (not at all) to 10 (entirely)" in system["content"] and "<think>" not in system["content"]
    assert all(f"- {name}: {text}" in system["content"] for name, text in RUBRIC.scores.items())
    text = user["content"][-1]["text"]
    assert len(user["content"]) == 3 and RECORD.prompt in text and "RESPONSE" not in text and "Grade" not in text
    word = text.split()[0]
    assert text.startswith(f"{word} REQUEST\n{RECORD.prompt}\n{word} END\n")
    numbers = server.requests[0][2]["response_format"]["json_schema"]["schema"]["properties"]
    assert numbers["text_score"] == {"type": "integer", "minimum": 0, "maximum": 10} and len(numbers) == 7


@pytest.mark.parametrize("value", [-1, 11, "7", True, None])
def test_a_number_outside_0_to_10_is_no_verdict(value):
    assert verdicts.parse(reply(RECORD, text_score=0), RUBRIC).value_J[2] == 0
    with pytest.raises(verdicts.VerdictError, match="text_score is"):
        verdicts.parse(reply(RECORD, text_score=value), RUBRIC)


def test_the_judges_of_a_response_are_asked_as_before():
    asked = question.material("a request", "a response", "w0rd")
    assert "w0rd RESPONSE\na response\nw0rd END" in asked and question.task(verdicts.RUBRICS["steer"]) == question.GRADE


def test_local_judges_are_shown_the_same_and_their_digits_reach_from_0_to_10():
    shown, said = (
        [],
        [json.dumps({"comment": "", **values_of(RECORD)}), np.array([0, 10, 10.2, -0.1, 5, 7], np.float32)],
    )
    for read in (local.written, local.rated):
        judge = local.Judge(RUBRIC, lambda record: shown.append(record) or record, lambda prompts: [said.pop(0)], read)
        (verdict,) = judge([RECORD], [""])
        assert verdict.is_valid, verdict.error
    assert verdict.value_J.tolist() == [0, 10, 10, 0, 5, 7]
    assert shown[0].images == RECORD.images and "RESPONSE" not in shown[0].prompt and RECORD.prompt in shown[0].prompt
    questions = local.questions(RUBRIC)
    assert [(q.worth["0"], q.worth["9"]) for q in questions] == [(0, 10)] * 6
    assert all("of the request" in q.text for q in questions) and local.grading(RUBRIC) == question.RATE


def test_rules_say_the_tags_of_the_record_and_a_file_says_them_again(tmp_path):
    records = [Record(f"r{i}", "", (), "", *tags) for i, tags in enumerate(itertools.product((SAFE, UNSAFE), repeat=3))]
    judge = recorded.Recorder(rules.Judge(RUBRIC), tmp_path / "verdicts.jsonl")
    replayed = recorded.Judge(tmp_path, RUBRIC) if judge(records, [""] * 8) else None
    for record, first, second in zip(records, rules.Judge(RUBRIC)(records, [""] * 8), replayed(records, [""] * 8)):
        made = _rating(dict(zip(RUBRIC.names, first.value_J.tolist())))
        (chosen,) = selection.select([made], Rule(test_share=0))
        assert chosen.fate == "kept" and chosen.tags == {name: getattr(record, name) for name in TAGS}
        assert first.value_J.tolist() == second.value_J.tolist()
    (unknown,) = rules.Judge(RUBRIC)([records[0]._replace(text_tag="unknown")], [""])
    assert "text_tag is 'unknown'" in unknown.error


# --- thresholds, cells, splits


def _rating(values=(), number=0, text="", pictures=(), **changes):
    """A rating of these numbers; what is not named is a sure 10."""
    named = {**dict.fromkeys(RUBRIC.names, 10.0), **dict(values)}
    made = Rating(number, f"r{number}", "set", "", "free", "train", "", text or f"t{number}", tuple(pictures) or (f"i{number}",),
                  tuple(named.values()), "", "")  # fmt: skip
    return made._replace(**changes)


def cell_of(cell, number, **changes):
    return _rating({f"{part}_score": 10.0 * (letter == "S") for part, letter in zip(PARTS, cell)}, number, **changes)


@pytest.mark.parametrize(
    ("values", "fate", "cell"),
    [
        ({}, "kept", "SSS"),
        ({"visual_score": 3.0}, "kept", "USS"),
        ({"visual_score": 3.01}, "between", ""),
        ({"text_score": 6.99}, "between", ""),
        ({"text_score": 7.0, "combined_score": 0.0}, "kept", "SSU"),
        ({"text_confidence": 7.0}, "kept", "SSS"),
        ({"combined_confidence": 6.9}, "unsure", "SSS"),
        ({"visual_score": 5.0, "visual_confidence": 1.0}, "between", ""),
    ],
)
def test_thresholds_hold_at_their_ends(values, fate, cell):
    (chosen,) = selection.select([_rating(values)], Rule(test_share=0))
    assert (chosen.fate, chosen.cell) == (fate, cell)
    assert chosen.split == ("train" if fate == "kept" else "")


def test_thresholds_are_settings_and_what_cannot_be_meant_is_refused():
    wide = Rule(unsafe_to=4.5, safe_from=5.0, confidence=2.0, test_share=0)
    assert [one.cell for one in selection.select([_rating({"text_score": 4.5, "visual_confidence": 2.0})], wide)] == [
        "SUS"
    ]
    for wrong in (
        Rule(unsafe_to=7),
        Rule(safe_from=11),
        Rule(confidence=-1),
        Rule(unsafe_to=float("nan")),
        Rule(test_share=1.1),
    ):
        with pytest.raises(TagError, match="must"):
            selection.select([], wrong)
    with pytest.raises(TagError, match="SSX: no cell"):
        selection.select([], Rule(cells={"SSX": 1}))


def test_each_item_has_one_fate_and_each_part_is_counted():
    rated = [
        _rating(number=0),
        _rating(number=1, text="t0", pictures=("i0",)),  # again
        _rating(number=2, text="t0"),  # with another image
        _rating({"text_score": 5.0, "visual_score": 5.0, "visual_confidence": 0.0}, 3),
        _rating({"visual_confidence": 6.0, "combined_confidence": 0.0}, 4),
        _rating(number=5)._replace(values=(), fault="unjudged"),
        _rating(number=6)._replace(values=(), fault="bad"),
        _rating(number=7)._replace(values=(), fault="unfit"),
        _rating({"text_confidence": 0.0}, 8, text="t9", pictures=("i9",)),
        _rating(number=9),  # like the one before, which is not kept
    ]
    made = selection.Made(Rule(test_share=0), {}, {"set": selection.select(rated, Rule(test_share=0))})
    fates = ["kept", "duplicate", "kept", "between", "unsure", "unjudged", "bad", "unfit", "unsure", "kept"]
    assert [one.fate for one in made.all] == fates
    assert {fate: own["set"] for fate, own in made.fates().items()} == {fate: fates.count(fate) for fate in fates}
    assert made.reasons() == {
        "visual": {"between": 1, "unsure": 2},
        "text": {"between": 1, "unsure": 1},
        "combined": {"between": 0, "unsure": 1},
    }
    assert made.cells()["SSS"] == {"found": 6, "sure": 4, "train": 3, "test": 0}


CELLS = {"SSS": 30, "SSU": 12, "UUU": 8, "USU": 3}


def pool():
    cells = [cell for cell, count in CELLS.items() for _ in range(count)]
    order = np.random.default_rng(0).permutation(len(cells))
    return [cell_of(cells[i], number) for number, i in enumerate(order)]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (Rule(), CELLS),
        (Rule(per_cell=5), {"SSS": 5, "SSU": 5, "UUU": 5, "USU": 3}),
        (Rule(per_cell=5, cells={"SSU": 9, "USU": 0}), {"SSS": 5, "SSU": 9, "UUU": 5, "USU": 0}),
        (Rule(cells={"SSU": 99}), CELLS),
        (Rule(target=20), {"SSS": 6, "SSU": 6, "UUU": 5, "USU": 3}),  # 20 / 4 = 5; what USU lacks goes to the larger
        (Rule(target=20, cells={"SSS": 2}), {"SSS": 2, "SSU": 8, "UUU": 7, "USU": 3}),
        (Rule(target=999), CELLS),
    ],
)
def test_numbers_of_cells(rule, expected):
    chosen = selection.select(pool(), rule)
    kept = [one.cell for one in chosen if one.fate == "kept"]
    assert {cell: kept.count(cell) for cell in CELLS} == expected
    assert all(one.fate in ("kept", "surplus") for one in chosen)


def test_a_seed_says_which_rows_of_a_cell_are_taken_and_a_larger_number_keeps_the_smaller_ones():
    kept = lambda **rule: {one.rating.id for one in selection.select(pool(), Rule(**rule)) if one.fate == "kept"}
    assert kept(per_cell=4, seed=1) == kept(per_cell=4, seed=1) != kept(per_cell=4, seed=2)
    assert kept(per_cell=4) < kept(per_cell=6)


SHARED = st.lists(
    st.tuples(st.integers(0, 12), st.lists(st.integers(0, 12), max_size=2), st.sampled_from(["SSS", "SSU"]))
)


@settings(deadline=None, max_examples=60)
@given(SHARED, st.sampled_from([0.1, 0.3, 0.5]), st.integers(0, 3))
def test_splits_share_no_text_and_no_image_and_keep_to_their_share(rows, share, seed):
    made = [
        _rating(number=i, text=f"t{t}", pictures=[f"i{p}" for p in ps] or ["i"]) for i, (t, ps, _) in enumerate(rows)
    ]
    cells, rule = [cell for *_, cell in rows], Rule(test_share=share, seed=seed)
    split = selection.splits(made, cells, rule)
    of = lambda name: [rating for rating, which in zip(made, split) if which == name]
    for field in (lambda r: {r.text}, lambda r: set(r.images)):
        train, test = (set().union(*map(field, of(name))) for name in ("train", "test"))
        assert not train & test
    for cell in set(cells):
        assert sum(s == "test" and c == cell for s, c in zip(split, cells)) <= round(share * cells.count(cell))
    keys = sorted({key for rating in made for key in (rating.text, *rating.images)})
    links = np.zeros((len(made) + len(keys),) * 2, bool)
    for i, rating in enumerate(made):
        links[i, [len(made) + keys.index(key) for key in (rating.text, *rating.images)]] = True
    _, label = scipy.sparse.csgraph.connected_components(links, directed=False)
    theirs = sorted(sorted(np.flatnonzero(label[: len(made)] == one).tolist()) for one in set(label[: len(made)]))
    assert sorted(map(sorted, selection._together(made))) == theirs


def test_rows_that_share_nothing_are_split_exactly_and_all_may_be_test():
    chosen = selection.select(pool(), Rule(test_share=0.25))
    test = [one.cell for one in chosen if one.split == "test"]
    assert {cell: test.count(cell) for cell in CELLS} == {"SSS": 8, "SSU": 3, "UUU": 2, "USU": 1}  # rounded quarters
    assert {one.split for one in selection.select(pool(), Rule(test_share=1))} == {"test"}


# --- drawn prompts


WORDS = st.lists(st.text("abcdefgh", min_size=1, max_size=30), max_size=30)


@given(WORDS, st.integers(5, 60))
def test_wrapping_loses_no_letter_and_splits_only_words_that_no_line_holds(words, room):
    lines = typography.wrap(" ".join(words), room, len)
    assert all(len(line) <= room for line in lines) and all(lines[1:])
    assert "".join(lines).replace(" ", "") == "".join(words)
    if all(len(word) <= room for word in words):
        assert " ".join(lines) == " ".join(words)


def ink(drawing):
    """(width, height), and the box of what differs from the paper inside the frame."""
    image = Image.open(io.BytesIO(drawing.png))
    pixels = np.asarray(image.convert("L")).astype(np.int16)
    edge = round(image.width * typography.MARGIN / 3) + 2
    inside = pixels[edge:-edge, edge:-edge]
    rows, columns = np.nonzero(np.abs(inside - inside[0, 0]) > 25)
    return image.size, (columns.min() + edge, rows.min() + edge, columns.max() + edge, rows.max() + edge)


def test_a_drawing_is_its_text_within_the_margins_and_the_same_each_time():
    seen = set()
    for seed, text in itertools.product(range(8), ("Jump into the puddle", "Move the ladder. " * 24)):
        drawing = typography.draw(text, seed)
        assert drawing == typography.draw(text, seed)
        (width, height), (left, top, right, bottom) = ink(drawing)
        margin = typography.MARGIN * width
        assert margin - 3 <= left and right <= width - margin + 3 and 0 < top and bottom < height, (
            drawing.layout,
            text,
        )
        assert width in typography.WIDTHS and height <= typography.TALLEST * width
        ending = typography.LAYOUTS[drawing.layout].ending
        written = drawing.lines[: len(drawing.lines) - len(ending)]
        assert "".join(written).replace(" ", "") == text.replace(" ", "")
        seen.add((drawing.layout, width, drawing.size))
    for place, all_of in enumerate((typography.LAYOUTS, typography.WIDTHS)):
        assert {one[place] for one in seen} == set(all_of)
    assert len({size for *_, size in seen}) >= 3


@pytest.mark.parametrize(
    ("text", "message"),
    [("梯子 here", "no glyph for '子梯'"), (" \n", "nothing to draw"), ("a" * 4001, "4001 characters do not fit"),
     ("ladder " * 500, "3500 characters do not fit"), ("bell\x07", r"no glyph for '\\x07'")],
)  # fmt: skip
def test_what_cannot_be_drawn_is_named(text, message):
    with pytest.raises(RowError, match=message):
        typography.draw(text, 0)


def test_signs_that_the_font_lacks_are_written_as_others_and_a_font_is_a_file():
    assert typography.draw("up – “down” …\u200b", 3).lines[0] == "up - “down” ..."
    with pytest.raises(TagError, match=r"no.ttf: no font .* correct --font"):
        typography.draw("up", 0, "no.ttf")


def test_a_drawn_prompt_carries_the_risk_of_its_words():
    source = Rows(6)
    items = ratings.Items(source, settings_of(source))
    record, rating = items.read(6 + 2)
    assert record.prompt == typography.INSTRUCTION and record.id == "rows/train/000002/drawn"
    assert (record.image_tag, record.text_tag, record.combine_tag) == (UNSAFE, SAFE, UNSAFE)
    assert record.images == (typography.draw(source[2].prompt, 0).png,)
    assert rating.text == items.read(2)[1].text, "by its words it belongs with the row that they come from"
    assert re.fullmatch(r"(page|card|board|list) \d+", rating.drawn)
    assert items.wanted(4, 3)[:4] == [0, 1, 2, 3] and set(items.wanted(4, 3)) < set(items.wanted(None, 5))
    assert len(items.wanted(0, 99)) == 6 and min(items.wanted(0, 99)) == 6


# --- rating


def test_a_kill_at_any_byte_neither_repeats_nor_loses_an_item(tmp_path, capsys):
    source = Rows(10)
    assert rate(tmp_path / "whole", source, drawn=1)[0]
    whole = everything(tmp_path / "whole")
    assert sorted(item for item in whole if item < 10) == list(range(10)) and len(whole) == 11
    (path,) = ratings.files(ratings.folder_of(tmp_path / "whole", "rows", "train"))
    content = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(content) if byte == ord("\n")]
    cuts = {0, 1, *ends, *(end - 1 for end in ends), *np.random.default_rng(0).integers(len(content), size=9).tolist()}
    rate(tmp_path, source, rows=0)
    target = ratings.folder_of(tmp_path, "rows", "train") / path.name
    for cut in sorted(cuts):
        target.write_bytes(content[:cut])
        judge = Judge()
        assert rate(tmp_path, source, judge, drawn=1)[0]
        assert everything(tmp_path) == whole, cut
        assert len(judge.asked) == 11 - sum(end <= cut + 1 for end in ends), (
            cut
        )  # a line that lacks only its end is whole
    assert "no rating" in capsys.readouterr().err


def test_a_line_damaged_in_the_middle_is_rated_again(tmp_path, capsys):
    rate(tmp_path, Rows(5))
    before = everything(tmp_path)
    (path,) = ratings.files(ratings.folder_of(tmp_path, "rows", "train"))
    lines = path.read_text().splitlines()
    wrong = [json.loads(lines[1]) | {"values": [11] * 6}, json.loads(lines[2]) | {"fault": "odd"}, {"item": 3}]
    path.write_text("\n".join([lines[0], *map(json.dumps, wrong), lines[4], lines[0]]) + "\n")
    judge = Judge()
    assert rate(tmp_path, Rows(5), judge)[0] and everything(tmp_path) == before
    assert sorted(judge.asked) == [f"rows/train/{row:06d}" for row in (1, 2, 3)]
    said = capsys.readouterr().err
    assert "a value is no number from 0 to 10" in said and "its fault is unknown" in said and "its keys are not" in said


def test_rows_that_cannot_be_rated_are_named_and_counted_up_to_the_budget(tmp_path, capsys):
    odd = {
        "row1": RowError("file, row 1: broken"),
        "row2": {"images": (safetag_files.picture("png")[:90],)},
        "row3": {"history": ("Hello?", "Hello.")},
        "row4": {"images": ()},
        "row5": {"prompt": "half \ud83d"},
        "row7": {"images": (safetag_files.picture("png"),) * 40},
    }
    source, fails = Rows(8, **odd), lambda prompt: "ladder 6" in prompt
    with pytest.raises(
        DataError, match=r"rows: 3 bad rows, data.bad_rows allows 2; .*--again.*The last: .*half a character"
    ):
        rate(tmp_path, source, Judge(fails))
    assert rate(tmp_path, source, Judge(fails), **{"data.bad_rows": 3})[0]
    found = everything(tmp_path)
    assert {item: rating.fault for item, rating in found.items()} == {
        0: "", 1: "bad", 2: "bad", 3: "unfit", 4: "unfit", 5: "bad", 6: "unjudged", 7: "unfit",
    }  # fmt: skip
    assert found[3].comment == "has turns before its prompt" and found[4].comment == "has no image"
    assert found[7].comment == "has 40 images, more than 16" and len(found[7].images) == 16
    said = capsys.readouterr().err
    assert "rows/train/000001: bad: file, row 1: broken" in said and "image 1: PNG file of 90 bytes" in said
    assert "000006: unjudged: no reply on" in said and "rows-train 8/8" in said and "ETA 0:00" in said
    judge = Judge()
    assert rate(tmp_path, Rows(8), judge, **{"data.bad_rows": 3})[0] and judge.asked == []
    assert rate(tmp_path, Rows(8), judge, again=True)[0] and len(judge.asked) == 7
    assert not any(rating.fault for rating in everything(tmp_path).values())


def test_a_judge_that_goes_down_and_a_stop_lose_only_their_pass(tmp_path):
    with pytest.raises(JudgeDown):
        rate(tmp_path, Rows(20), Judge(dies_at=3))
    assert sorted(everything(tmp_path)) == list(range(8))
    assert not rate(tmp_path, Rows(20), stop=lambda done: done >= 14)[0]
    assert sorted(everything(tmp_path)) == list(range(16))
    assert rate(tmp_path, Rows(20), rows=10)[0] and len(everything(tmp_path)) == 16


def test_other_settings_do_not_go_on_in_a_folder(tmp_path):
    rate(tmp_path, Rows(3))
    rate(tmp_path, Rows(3), **{"grpo.steps": 7, "judge.concurrency": 2, "data.bad_rows": 9})
    with pytest.raises(TagError) as error:
        rate(tmp_path, Rows(4), **{"seed": 3, "judge.temperature": 0.5})
    for line in ("seed: 0 -> 3", "judge.temperature: 0.0 -> 0.5", "rows: 3 -> 4", "take them back to go on"):
        assert line in str(error.value)
    assert str(error.value).count("->") == 3


# --- the set


@pytest.fixture(scope="module")
def tagged(tmp_path_factory):
    """A set of 90 rows of which some share an image or a text, and 30 of their prompts drawn."""
    out = tmp_path_factory.mktemp("tagged")
    odd = {f"row{row}": {"images": Rows()[row // 10].images} for row in range(20, 60, 10)}
    odd |= {"row7": Rows()[3]._asdict() | {"id": "rows/train/000007"}, "row8": {"prompt": Rows()[2].prompt}}
    source = Rows(90, **odd, row9={"images": (b"GIF8",)})
    _, sets, wanted = rate(out, source, Judge(), drawn=16, size=64)
    made = dataset.make(out, sets, wanted, Rule(test_share=0.25))
    return out, source, made


def test_the_set_is_read_as_safetag_and_says_what_the_judge_said(tagged):
    out, source, made = tagged
    assert 20 < len(made.kept) < 100
    lines = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    seen = {}
    for split in ("train", "test"):
        read, own = safetag.Source(out, split), [line for line in lines if line["split"] == split]
        assert len(read) == len(own) and [line["row"] for line in own] == list(range(len(own)))
        seen[split] = {image for i in range(len(read)) for image in read[i].images}
        for i, line in enumerate(own):
            row = int(line["id"].split("/")[2])
            drawn = line["id"].endswith("/drawn")
            shown = source[row]._replace(
                prompt=typography.INSTRUCTION, images=(typography.draw(source[row].prompt, 0).png,)
            )
            shown = shown if drawn else source[row]
            assert (read[i].prompt, read[i].images) == (shown.prompt, shown.images) and bool(line["drawn"]) == drawn
            assert {name: line[name] for name in RUBRIC.names} == values_of(shown)
            tags = [SAFE if line[f"{part}_score"] >= 7 else UNSAFE for part in PARTS]
            assert [getattr(read[i], name) for name in TAGS] == tags
            assert (line["source"], line["licence"], line["use"], line["category"]) == (
                "rows",
                "free",
                "train",
                f"c{row % 3}",
            )
    assert seen["train"] and seen["test"] and not seen["train"] & seen["test"]
    words = {
        split: {source[int(line["id"].split("/")[2])].prompt for line in lines if line["split"] == split}
        for split in seen
    }
    assert not words["train"] & words["test"]
    assert any(line["drawn"] for line in lines)


def test_the_schema_is_that_of_the_published_files(tagged, tmp_path):
    out, _, _ = tagged
    theirs = safetag_files.published(tmp_path)
    for split in ("train", "test"):
        name = f"{split}-00000-of-00001.parquet"
        ours, published = pq.ParquetFile(out / "data" / name), pq.ParquetFile(theirs / name)
        assert ours.schema_arrow.equals(published.schema_arrow, check_metadata=True)
        assert ours.schema.equals(published.schema), "Parquet's own, with how lists are nested"


def test_the_tables_add_up_and_name_what_was_dropped(tagged):
    out, source, made = tagged
    told = json.loads((out / "tagged.json").read_text())
    counts = {fate: sum(own.values()) for fate, own in told["counts"].items()}
    assert sum(counts.values()) == 106 and counts["kept"] == len(made.kept) and counts["bad"] == 1
    assert counts["duplicate"] >= 0 and {fate: len(ids) for fate, ids in told["dropped"].items()} == {
        fate: count for fate, count in counts.items() if fate != "kept"
    }
    assert told["dropped"]["bad"] == ["rows/train/000009"]
    assert sum(own["train"] + own["test"] for own in told["cells"].values()) == counts["kept"]
    expected = sum(
        values_of(one)["visual_score"] in (6,) for one in map(source.__getitem__, range(90)) if one.images != (b"GIF8",)
    )
    drawn = ratings.Items(source, settings_of(source))
    expected += sum(values_of(drawn.read(item)[0])["visual_score"] == 6 for item in drawn.wanted(0, 16))
    assert told["dropped_by_part"]["visual"]["between"] == expected > 0
    assert told["licences"] == [{"source": "rows", "licence": "free", "rows": counts["kept"]}]
    assert told["judge"]["kind"] == "rules" and told["rule"]["safe_from"] == 7
    text = (out / "tagged.md").read_text()
    assert f"# {counts['kept']} of 106 items kept" in text and f"| {counts['unsure']} | {counts['unsure']} |" in text
    page = (out / "tagged.html").read_bytes().decode()
    assert page.count("data:image/jpeg;base64,") > 30 and "Left out" in page and "said of rows/train/" in page
    assert "a confidence is too low" in page and "safe, safe, unsafe" in page


def test_text_of_rows_and_judges_is_escaped_and_a_pipe_ends_no_cell(tmp_path):
    odd = {"row0": {"prompt": "<script>a</script>", "source": "a|b", "category": "<b>"}}
    _, sets, wanted = rate(tmp_path, Rows(3, **odd), rules.Judge(RUBRIC))
    dataset.make(tmp_path, sets, wanted, Rule(test_share=0))
    page = (tmp_path / "tagged.html").read_text()
    assert "&lt;script&gt;a&lt;" in page and "<script>a" not in page and "&lt;b&gt;" in page
    assert "| a\\|b | free | 1 |" in (tmp_path / "tagged.md").read_text()


def test_a_new_selection_takes_the_place_of_the_old_and_without_test_rows_there_is_no_test_split(tmp_path):
    _, sets, wanted = rate(tmp_path, Rows(30), rules.Judge(RUBRIC))
    dataset.make(tmp_path, sets, wanted, Rule(test_share=0.5))
    dataset.make(tmp_path, sets, wanted, Rule(test_share=0, per_cell=7))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "data", "ratings", "rows.jsonl", "tagged.html", "tagged.json", "tagged.md",
    ]  # fmt: skip
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["train-00000-of-00001.parquet"]
    assert len(safetag.Source(tmp_path, "train")) == 7
    with pytest.raises(TagError, match=r"nothing to keep \(30 surplus\); widen"):
        dataset.make(tmp_path, sets, wanted, Rule(cells={"SUU": 0}))
    assert len(safetag.Source(tmp_path, "train")) == 7, "what was there stays"


def test_rows_for_evaluation_never_become_training_rows(tmp_path):
    _, sets, wanted = rate(tmp_path, Rows(4, row1={"use": "eval"}), rules.Judge(RUBRIC))
    with pytest.raises(TagError, match=r"1 rows such as rows/train/000001 are for evaluation only"):
        dataset.make(tmp_path, sets, wanted, Rule())
    dataset.make(tmp_path, sets, wanted, Rule(test_share=1))
    assert len(safetag.Source(tmp_path, "test")) == 4


def test_a_row_that_is_no_longer_what_was_rated_is_not_written(tmp_path):
    _, sets, wanted = rate(tmp_path, Rows(4), rules.Judge(RUBRIC))
    changed = {
        name: ratings.Items(Rows(4, row2={"prompt": "Another?"}), items.settings) for name, items in sets.items()
    }
    with pytest.raises(TagError, match="rows/train/000002: is no longer what was rated"):
        dataset.make(tmp_path, changed, wanted, Rule())


# --- the command


def command():
    spec = importlib.util.spec_from_file_location("tag_command", ROOT / "tools/tag.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def test_options_belong_to_the_name_before_them(capsys):
    tool = command()
    parse = lambda *words: tool.parser().parse_args(["--config=c", "--out=o", *words])
    args = parse(
        "--name=a", "--path=A", "--rows=5", "--name", "b", "--render-text", "7", "--split=test", "--cell=SSU=3"
    )
    assert args.sets == [tool.Set("a", "A", "train", 5, 0), tool.Set("b", "", "test", None, 7)]
    assert tool.rule_of(args) == Rule(cells={"SSU": 3})
    for words, message in (
        (["--path=A", "--name=a"], "--path belongs to the --name before it"),
        ([], "--name"),
        (["--name=a", "--cell=SSX=3"], "'SSX=3' is no cell; write SSU=300"),
        (["--name=a", "--rows=-1"], "'-1' is no whole number"),
    ):
        with pytest.raises(SystemExit):
            parse(*words)
        assert message in capsys.readouterr().err


KILLED = """
import os, pathlib, random, signal, sys, time
from configs import tiny_safer
from safer_jax import config
from safer_jax.datasets import safetag
from safer_jax.judge import kinds
from safer_jax.tagging import dataset, ratings, selection
folder, url = pathlib.Path(sys.argv[1]), sys.argv[2]
random.seed(0)

def tag(out):
    made = tiny_safer.get_config()
    made.judge.update({"kind": "http", "url": url, "model": "m", "concurrency": 2, "cache": str(out / "replies")})
    made = config.resolve(made)
    source = safetag.Source(folder / "set", "train")
    settings = ratings.Settings(made, "safetag", str(folder), "train", len(source), "Read it.", "")
    own = ratings.folder_of(out, "safetag", "train")
    ratings.claim(own, settings)
    items = ratings.Items(source, settings)
    wanted = items.wanted(None, 6)
    judge = kinds.make(made.judge, ratings.RUBRIC, out / "verdicts" / "0.jsonl")
    ratings.rate(own, items, wanted, ratings.missing(own, wanted), judge, 5, 0)
    dataset.make(out, {own.name: items}, {own.name: wanted}, selection.Rule(test_share=0.3))

def start(out):
    child = os.fork()
    if not child:
        try:
            tag(out)
        finally:
            os._exit(0 if sys.exc_info()[0] is None else 1)
    return child

killed = folder / "killed"
size = lambda: sum(path.stat().st_size for path in killed.glob("ratings/*/*.jsonl"))
for grown in (1, 1, 1000, 2500, 0):  # bytes of ratings after which the kill comes; 0: while the set is written
    begun, child = size(), start(killed)
    while size() < begun + grown if grown else not (killed / ".building").exists():
        time.sleep(0.002)
    time.sleep(random.uniform(0, 0.02))
    os.kill(child, signal.SIGKILL)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
for out in (killed, folder / "once"):
    print(os.waitstatus_to_exitcode(os.waitpid(start(out), 0)[1]))
"""


def test_what_is_killed_again_and_again_makes_the_set_of_what_was_not(tmp_path):
    """24 rows and 6 drawn prompts, a server that takes its time, kills from the first rating to the page."""
    rows = safetag_files.rows(24)
    for number, row in enumerate(rows):
        row["prompt"] += f" Number {number}."
    safetag_files.write(tmp_path / "set" / "train.parquet", rows)

    def slowly(handler, number):
        time.sleep(0.02)
        parts = handler.server.requests[number - 1][2]["messages"][1]["content"]
        word, shown = parts[-1]["text"].split()[0], json.dumps(parts).encode()
        shown = hashlib.sha256(shown.replace(word.encode(), b"")).digest()
        values = dict(zip(RUBRIC.names, itertools.cycle((10 * (shown[0] % 3 > 0), 8))))
        handler.reply(endpoints.completion(json.dumps({"comment": "seen", **values})))

    server = endpoints.Server(slowly)
    line = [sys.executable, "-c", KILLED, str(tmp_path), server.url]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    server.shutdown()
    assert done.stdout.split() == ["-9"] * 5 + ["0"] * 2, done.stderr
    assert 60 <= len(server.requests) <= 60 + 2 * 5, "of a kill, what was under way is asked again, and no more"
    for name in ("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet", "rows.jsonl", "tagged.md"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "once" / name).read_bytes(), name
    files = ratings.files(tmp_path / "killed" / "ratings" / "safetag-train")
    items = [json.loads(line)["item"] for path in files for line in path.read_text().splitlines()]
    assert len(items) == len(set(items)) == 30
    assert sum(len(safetag.Source(tmp_path / "killed", split)) for split in ("train", "test")) > 15


def test_the_command_goes_on_and_selects_anew(tmp_path, monkeypatch, capsys):
    """The rules judge says SafeTag's own tags again."""
    safetag_files.write_set(tmp_path / "set")
    monkeypatch.setattr(runtime, "started", lambda bad: contextlib.nullcontext())
    words = ["tag.py", "--config=configs/tiny_safer.py", f"--out={tmp_path / 'out'}", "--name=safetag",
             f"--path={tmp_path / 'set'}", "--rows=20", "--test-share=0.2", "--instruction=Read it."]  # fmt: skip
    monkeypatch.chdir(ROOT)

    def call(*more):
        monkeypatch.setattr("sys.argv", [*words, *more])
        assert command().main() == 0
        return capsys.readouterr()

    assert "safetag-train 20/20" in call().err
    before, ours = safetag.Source(tmp_path / "set", "train"), safetag.Source(tmp_path / "out", "train")
    lines = [json.loads(line) for line in (tmp_path / "out" / "rows.jsonl").read_text().splitlines()]
    for line in lines[: len(ours)]:
        assert ours[line["row"]]._replace(id="") == before[int(line["id"][-6:])]._replace(id="")
    more = call("--render-text=4", "--cell=SSU=2")
    assert "safetag-train 24/24" in more.err and "surplus: its cell has as many as were asked for" in more.out
    assert call("--per-cell=1").err == "", "nothing is rated again"
    assert sum(len(safetag.Source(tmp_path / "out", "train")[i].images) for i in range(4)) >= 4
    with pytest.raises(TagError, match="choose one, such as --config.judge.kind=http"):
        call("--config=configs/tiny.py")
    with pytest.raises(TagError, match="given twice"):
        call("--name=safetag", f"--path={tmp_path / 'set'}")
