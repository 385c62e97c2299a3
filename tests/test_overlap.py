"""overlap.py: rows, prompts, images and copies of images that two sets share; what is remembered, and its limits."""

import io
import threading

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetag_files
from fake_rows import Rows
from PIL import Image, ImageDraw, ImageEnhance, ImageFont

from safer_jax import images, overlap
from safer_jax.datasets import RowError
from safer_jax.shapes import Record


def record(name, pictures=(), prompt="", **fields):
    return Record(id=name, source="rows", images=tuple(pictures), prompt=prompt or name, **fields)


def scene(seed: int) -> Image.Image:
    """Something like a photograph: blobs of light on a slope, and grain."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:300, 0:400] / 300
    light = rng.uniform(-60, 60) * x + rng.uniform(-60, 60) * y + 120
    for _ in range(14):
        at_x, at_y, wide, strength = (
            rng.uniform(0, 1.3),
            rng.uniform(0, 1),
            rng.uniform(0.05, 0.25),
            rng.uniform(-90, 90),
        )
        light = light + strength * np.exp(-((x - at_x) ** 2 + (y - at_y) ** 2) / wide**2)
    colour = light[..., None] * rng.uniform(0.7, 1.1, 3) + rng.normal(0, 4, (300, 400, 3))
    return Image.fromarray(np.clip(colour, 0, 255).astype(np.uint8))


def page(seed: int) -> Image.Image:
    """A page of words: all of these have one layout."""
    words = [
        "ladder",
        "puddle",
        "note",
        "garden",
        "kettle",
        "window",
        "pencil",
        "river",
        "market",
        "stone",
        "cloud",
        "basket",
    ]
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (380, 380), "white")
    text = "\n".join(" ".join(rng.choice(words, 2)) for _ in range(4)) + "\n1.\n2.\n3."
    ImageDraw.Draw(image).multiline_text((10, 10), text, "black", ImageFont.load_default(size=32), spacing=12)
    return image


def file(image: Image.Image, form: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


COPIES = {
    "encoded anew": lambda image: file(image, quality=40),
    "as PNG": lambda image: file(image, "PNG"),
    "half the size": lambda image: file(image.resize((image.width // 2, image.height // 2)), quality=80),
    "larger": lambda image: file(image.resize((image.width * 2, image.height * 2)), quality=90),
    "another aspect": lambda image: file(image.resize((336, 336)), quality=90),
    "brighter": lambda image: file(ImageEnhance.Brightness(image).enhance(1.2), quality=90),
    "darker": lambda image: file(ImageEnhance.Brightness(image).enhance(0.6), quality=90),
    "less contrast": lambda image: file(ImageEnhance.Contrast(image).enhance(0.7), quality=90),
    "grey": lambda image: file(image.convert("L"), quality=90),
    "with alpha": lambda image: file(image.convert("RGBA"), "PNG"),
    "turned by EXIF": lambda image: file(
        image.transpose(Image.Transpose.ROTATE_90), quality=90, exif=b"Exif\0\0" + TURN
    ),
}
TURN = Image.Exif()
TURN[0x0112] = 6
TURN = TURN.tobytes().removeprefix(b"Exif\0\0")
PICTURES = {"photograph": scene, "page": page}


@pytest.fixture(scope="module")
def originals():
    pictures = {f"{kind} {seed}": draw(seed) for kind, draw in PICTURES.items() for seed in range(40)}
    return pictures, overlap.prints(Rows([record(name, [file(p, quality=92)]) for name, p in pictures.items()]))


@pytest.mark.parametrize("change", COPIES)
def test_copies_look_alike(change, originals):
    pictures, known = originals
    copies = [record(f"copy of {name}", [COPIES[change](pictures[name])]) for name in list(pictures)[::5]]
    found = overlap.compare(known, overlap.prints(Rows(copies)))
    assert sorted(found.alike) == sorted((copy.id.removeprefix("copy of "), copy.id) for copy in copies)
    assert found.images == found.rows == found.prompts == ()


@pytest.mark.parametrize("kind", PICTURES)
def test_other_pictures_do_not(kind, originals):
    _, known = originals
    others = [record(f"other {seed}", [file(PICTURES[kind](seed), quality=92)]) for seed in range(100, 160)]
    assert overlap.compare(known, overlap.prints(Rows(others))).alike == ()


def test_the_limits_stand_clear_of_both_sides(originals):
    """Also says where the numbers beside NEAR and ALIKE come from."""
    pictures, _ = originals
    looks = {name: overlap.look(file(picture, quality=92)) for name, picture in pictures.items()}
    photographs = overlap._table([value for name, value in looks.items() if name.startswith("photograph")])
    apart = overlap.distance(photographs.hash, photographs.hash)[np.triu_indices(40, 1)]
    copies = [
        overlap.distance(overlap.look(make(pictures[name])).hash[None], looks[name].hash[None]).item()
        for make in COPIES.values()
        for name in list(pictures)[::5]
    ]
    assert np.max(copies) <= overlap.NEAR - 2 and apart.min() >= overlap.NEAR + 4
    pages = overlap._unit(overlap._table([value for name, value in looks.items() if name.startswith("page")]).grey)
    assert (pages @ pages.T)[np.triu_indices(40, 1)].max() < overlap.ALIKE  # though their hashes are near:
    table = overlap._table([value for name, value in looks.items() if name.startswith("page")])
    assert (overlap.distance(table.hash, table.hash)[np.triu_indices(40, 1)] <= overlap.NEAR).mean() > 0.1


def test_distance_counts_bits():
    first = np.array([[0, 0], [2**64 - 1, 1]], np.uint64)
    np.testing.assert_array_equal(overlap.distance(first, np.array([[3, 0]], np.uint64)), [[2], [63]])
    pair = np.array([[0, 0]], np.uint64), np.array([[2**64 - 1, 2**64 - 1]], np.uint64)
    assert overlap.distance(*pair) == 128


def test_rows_images_and_prompts():
    first = [
        record("a0", [b"a"], "What is this?"),
        record("a1", [b"b", b"c"], "Why?"),
        record("a2", [b"f"], "When?", history=("Who?", "You.")),
    ]
    second = [
        record("b0", [b"a"], " what  is THIS?"),
        record("b1", [b"d"], "What is this?"),
        record("b2", [b"e", b"c", b"b"], "Who?"),
        record("b3", [b"f"], "When?", history=("Who?", "Me.")),
        RowError("bad"),
    ]
    found = overlap.between(Rows(first), Rows(second))
    assert found.rows == (("a0", "b0"),)
    assert found.images == (("a0", "b0"), ("a1", "b2"), ("a2", "b3"))
    assert found.prompts == (("a0", "b0"), ("a0", "b1"), ("a2", "b3"))
    assert found.counts == {"shared_rows": 1, "shared_images": 3, "shared_alike": 0, "shared_prompts": 3}
    assert found.line("train", "test") == (
        "overlap: of test, 1 rows are also in train, 3 share an image with it, 0 have one that looks alike, 3 share the "
        "prompt (such as b0 = a0)"
    )
    assert overlap.between(Rows(first), Rows([])).counts == dict.fromkeys(found.counts, 0)


def test_what_shows_nothing_is_alike_only_by_its_bytes():
    flat = [file(Image.new("RGB", size, colour)) for size, colour in (((90, 90), "white"), ((80, 80), "white"))]
    first = Rows([record("a", flat[:1]), record("b", [b"no image"])])
    found = overlap.between(first, Rows([record("c", flat[1:]), record("d", flat[:1]), record("e", [b"nor this"])]))
    assert found.alike == () and found.images == (("a", "d"),)
    assert overlap.look(b"no image") is None


def test_the_same_file_is_no_look_alike_as_well():
    same = file(scene(1))
    found = overlap.between(Rows([record("a", [same])]), Rows([record("b", [same])]))
    assert found.images == (("a", "b"),) and found.alike == ()


def test_a_picture_is_decoded_once_and_remembered_by_its_content(tmp_path, monkeypatch):
    rows = [record(f"r{i}", [file(scene(i % 3))]) for i in range(9)] + [record("bad", [b"x"])]
    decoded = []
    look = overlap.look
    monkeypatch.setattr(overlap, "look", lambda data, limits: decoded.append(data) or look(data, limits))
    first = overlap.prints(Rows(rows), tmp_path, threads=1)
    assert len(decoded) == 4
    again = overlap.prints(Rows(rows), tmp_path, threads=1)
    assert len(decoded) == 4
    assert again.pictures()[1] == first.pictures()[1]
    for one, other in zip(first.pictures()[0], again.pictures()[0], strict=True):
        np.testing.assert_array_equal(one, other)
    rows[0] = record("r0", [file(scene(7))])  # other content under the old name
    overlap.prints(Rows(rows), tmp_path, threads=1)
    assert len(decoded) == 5
    (kept,) = (tmp_path / "looks").iterdir()
    kept.write_bytes(kept.read_bytes()[:200])
    overlap.prints(Rows(rows), tmp_path, threads=1)
    assert len(decoded) == 10
    overlap.prints(Rows(rows), tmp_path, looks=False)
    assert len(decoded) == 10


def test_order_of_threads_does_not_matter():
    rows = [record(f"r{i:02d}", [file(scene(i % 5))]) for i in range(40)]
    one, many = overlap.Prints("one"), overlap.Prints("many")
    for row in rows:
        one.add(row)
    seen = many.along(lambda row: row.id)
    threads = [threading.Thread(target=lambda part=part: [seen(row) for row in rows[part::4]]) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert one.rows() == many.rows() and one.pictures()[1] == many.pictures()[1]
    np.testing.assert_array_equal(one.pictures()[0].hash, many.pictures()[0].hash)


def test_many_pictures_are_compared_block_by_block(monkeypatch):
    rng = np.random.default_rng(0)
    names = [f"r{i:04d}" for i in range(500)]
    table = overlap.Look(rng.integers(0, 2**63, (500, 2), np.uint64), rng.integers(0, 256, (500, 1024), np.uint8))

    class Made:
        def pictures(self):
            return table, names

    whole = overlap._alike(Made(), Made())
    assert whole == [(name, name) for name in names]
    monkeypatch.setattr(overlap, "BLOCK", 16)
    assert overlap._alike(Made(), Made()) == whole


def test_photographs(tmp_path):
    folder = safetag_files.published(tmp_path)
    rows = [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    files = {image["bytes"] for row in rows for image in row["images"]}
    pictures = [images.decode(data, overlap.LIMITS) for data in sorted(files)]
    known = overlap.prints(Rows([record(f"{i}", [data]) for i, data in enumerate(sorted(files))]))
    copies = overlap.prints(Rows([record(f"{i} again", [file(p, quality=45)]) for i, p in enumerate(pictures)]))
    found = overlap.compare(known, copies)
    assert {b for _, b in found.alike} == {f"{i} again" for i in range(len(pictures)) if overlap.look(sorted(files)[i])}
