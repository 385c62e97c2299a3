"""HoliSafe-Bench (arXiv 2506.04704): people tagged image, question and the two together (host code).

It is published as a JSON file with a folder of images; the hub makes parquet files of it, with the images inside, and
what its branch `refs/convert/parquet` holds is read too. `subcategory` and the image's own kind of harm are left.
"""

import itertools
from pathlib import Path

from safer_jax.datasets import Source, files, parquet
from safer_jax.shapes import SAFE, UNSAFE, Record

LICENCE = "gated, research only"
SPLITS = ("test",)
LETTERS = {"S": SAFE, "U": UNSAFE}
TYPES = {"".join(letters): letters for letters in itertools.product(LETTERS, repeat=3)}
IMAGE_SAFE = {True: SAFE, False: UNSAFE}
COLUMNS = {"id": parquet.NAME, "image": parquet.IMAGE, "query": parquet.TEXT, "type": parquet.TEXT}
EXTRAS = {"category": parquet.TEXT, "image_safe": parquet.FLAG}


def source(folder: str | Path, split: str) -> Source:
    """The rows of "test" of whichever form `folder` holds. Raises DataError for what cannot be read."""
    return (Parquet if parquet.is_in(folder) else Json)(folder, split)


class Json(files.Rows):
    """The rows of `holisafe_bench.json` and `images/CATEGORY/SUBCATEGORY/FILE` (or a zip), in `folder`.

    Raises DataError for files that are missing or damaged, and on access RowError for a row whose values are wrong,
    such as an image's own label against the first letter of `type`.
    """

    def __init__(self, folder: str | Path, split: str):
        files.check_split("holisafe", split, SPLITS)
        path = files.find(folder, "holisafe_bench.json")
        table = files.table(path, ("id", "image", "query", "type"))
        self._images = files.Images(files.find(folder, "images", "images.zip"))
        super().__init__("holisafe", split, table, path)

    def _record(self, row: files.Row, index: int) -> Record:
        image = self._images.read(row.text("image").removeprefix("images/"), row.where)
        return _record(row, (image,))


class Parquet(files.Rows):
    """The same rows of `test/*.parquet` or `test-*.parquet` in `folder`, its `default/` or its `data/`. Raises likewise."""

    def __init__(self, folder: str | Path, split: str):
        files.check_split("holisafe", split, SPLITS)
        config = "default" if parquet.configs(folder, split) == ["default"] else ""
        paths = parquet.paths(folder, split, config)
        table = parquet.Table({"": paths}, parquet.wants("holisafe", COLUMNS, EXTRAS))
        super().__init__("holisafe", split, table, paths[0])

    def _record(self, row: files.Row, index: int) -> Record:
        return _record(row, parquet.images(row, "image"))


def _record(row: files.Row, images: tuple[bytes, ...]) -> Record:
    image_tag, text_tag, combine_tag = (LETTERS[letter] for letter in row.of("type", TYPES))
    if row.fields.get("image_safe") is not None and row.of("image_safe", IMAGE_SAFE) != image_tag:
        row.refuse("image_safe", row.get("image_safe"), f"type is {row.get('type')}; correct one or drop the row")
    return Record(
        id=f"holisafe/test/{row.own_id('id')}",
        source="holisafe",
        images=images,
        prompt=row.text("query"),
        image_tag=image_tag,
        text_tag=text_tag,
        combine_tag=combine_tag,
        expected="comply" if combine_tag == SAFE else "refuse",
        category=row.text_if_any("category"),
        licence=LICENCE,
        use="eval",
    )
