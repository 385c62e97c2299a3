"""inspection.py and tools/inspect_data.py: figures counted by hand, reasons, a page that needs nothing and veils pictures."""

import html.parser
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import safetag_files
from fake_rows import Rows

from safer_jax import images, inspection
from safer_jax.datasets import DataError, RowError
from safer_jax.shapes import Record

ROOT = pathlib.Path(__file__).parents[1]
LIMITS = images.Limits(1, 10**7, 10**6, 10**7)


def record(number, **fields):
    picture = safetag_files.picture(("png", "jpeg")[number % 2], number, (60 + number, 40))
    defaults = {"images": (picture,), "prompt": "x" * number, "licence": "MIT", "category": f"c{number % 3}"}
    return Record(id=f"row{number}", source="rows", **{**defaults, **fields})


CUT = safetag_files.picture("jpeg", size=(280, 280))[:900]
FIT = inspection.Fit(lambda row: (len(row.prompt), 4 * len(row.images)), (4, 8), (4, 8), "letters")


@pytest.fixture(scope="module")
def summary():
    rows = [record(number) for number in range(10)]
    rows[1] = record(1, image_tag="unsafe", text_tag="safe", combine_tag="unsafe", expected="refuse", reference="No.")
    rows[2] = record(2, images=rows[2].images * 2, history=("a", "b"), use="eval", image_tag="safe")
    rows[3] = RowError("file, row 3: bad")
    rows[4] = record(4, images=(CUT,))
    rows[5] = record(5, images=rows[5].images * 3)
    rows[0] = record(0, prompt="<b>&", image_tag="safe")
    return inspection.look(Rows(rows), LIMITS, FIT, shots=10)


def test_figures(summary):
    assert (summary.rows, summary.read, len(summary.bad)) == (10, 6, 4)
    told = summary.told()
    unknown = "unknown unknown unknown"
    assert told["image_text_combined"] == {unknown: 3, "safe unknown unknown": 2, "unsafe safe unsafe": 1}
    assert told["expected"] == {"any": 5, "refuse": 1} and told["use"] == {"train": 5, "eval": 1}
    assert told["category"] == {"c0": 2, "c1": 2, "c2": 2} and told["images"] == {1: 5, 2: 1}
    assert told["turns"] == {1: 5, 3: 1} and told["rows_with"] == {"reference": 1}
    assert told["format"] == {"PNG": 5, "JPEG": 2}
    widths = [60, 61, 62, 62, 66, 67, 68]
    assert summary.numbers["image width"] == widths
    np.testing.assert_array_equal(
        told["percentiles"]["image width"], np.percentile(widths, [0, 5, 50, 95, 99, 100], method="nearest")
    )
    json.dumps(told)


def test_rows_left_out_are_named_with_the_reason(summary):
    first, second, third, last = summary.bad
    assert first == "file, row 3: bad"
    assert second.startswith("row 'row4', image 1: JPEG file of 900 bytes does not decode")
    assert third == (
        "row5: its 3 images need 12 patch slots, prompt.patch_buckets end at 8; raise it or lower prompt.max_pixels"
    )
    assert last == "row9: the prompt needs 9 tokens, prompt.buckets end at 8; add one"
    assert summary.numbers["prompt tokens"] == [4, 1, 2, 5, 6, 7, 8, 9]  # those that fit no bucket too


def test_what_each_bucket_holds():
    assert inspection.in_buckets([1, 4, 5, 8, 8], (8, 4)) == {"to 4": 2, "to 8": 3}
    assert inspection.in_buckets([4, 9, 12], (4, 8)) == {"to 4": 1, "to 8": 0, "above 8": 2}


def test_a_set_of_which_nothing_can_be_read_is_refused():
    with pytest.raises(DataError, match="rows/train: none of 2 rows can be read; the last: second"):
        inspection.look(Rows([RowError("first"), RowError("second")]), LIMITS)


class Parts(html.parser.HTMLParser):
    """The elements of a page with their attributes, and whether they are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.found, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in ("img", "input", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_needs_nothing_and_veils_what_is_not_tagged_safe(summary):
    text = inspection.document(summary, FIT, {"other": "overlap: of rows, 1 rows are also in other"}).decode()
    page = Parts(text)
    assert page.open == []
    shown = [attributes for tag, attributes in page.found if tag == "img"]
    assert len(shown) == 7 and all(attributes["src"].startswith("data:image/jpeg;base64,") for attributes in shown)
    veils = [a["class"] for tag, a in page.found if tag == "span" and a.get("class", "").startswith("shot")]
    assert veils == ["shot", "shot veiled", "shot", "shot", "shot veiled", "shot veiled", "shot veiled"]
    assert ".veiled img { filter: blur(" in text and "section:has(#clear:checked) .veiled img { filter: none }" in text
    assert ("input", {"type": "checkbox", "id": "clear"}) in page.found
    assert not any(a.get(name, "data:").startswith("http") for _, a in page.found for name in ("src", "href"))
    assert "&lt;b&gt;&amp;" in text and "<b>&" not in text
    assert "row5: its 3 images need 12" in text and "1 rows are also in other" in text and "above 8" in text


def test_the_sheet_is_spread_over_the_set():
    summary = inspection.look(Rows([record(number) for number in range(40)]), LIMITS, shots=8)
    assert [shot.record.id for shot in summary.shots] == [f"row{number}" for number in range(0, 40, 5)]
    assert all(shot.record.images == () for shot in summary.shots)  # the set's own files are let go
    assert inspection.look(Rows([record(1)]), LIMITS).shots == []


def test_the_command(tmp_path):
    folder = safetag_files.write_set(tmp_path / "set", 12, 4)
    command = [
        sys.executable,
        str(ROOT / "tools" / "inspect_data.py"),
        "--name=safetag",
        f"--path={folder}",
        "--split=train",
    ]
    more = [
        f"--against=safetag test {folder}",
        f"--out={tmp_path / 'a.html'}",
        f"--json={tmp_path / 'a.json'}",
        f"--root={tmp_path}",
    ]
    done = subprocess.run([*command, *more], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("safetag/train: 12 rows, 0 left out\n") and "use: train 12" in done.stdout
    assert f"overlap: of safetag/train, 4 rows are also in safetag test {folder}" in done.stdout
    told = json.loads((tmp_path / "a.json").read_text())
    assert told["rows"] == 12 and told["images"] == {"1": 11, "2": 1} and (tmp_path / "a.html").stat().st_size > 20_000
    refused = subprocess.run([*command, "--against=nothing"], capture_output=True, text=True, timeout=300, check=False)
    assert refused.returncode == 2 and "'nothing' is no set; write 'NAME SPLIT FOLDER'" in refused.stderr
    assert "Traceback" not in refused.stderr
