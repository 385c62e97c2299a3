"""MMStar (arXiv 2403.20330) from its parquet file: 1,500 multiple choices that need the image, general ability (host code).

A question ends in its options ("Options: A: ..., B: ..."). The request for a letter is the prompt's guide, as for every
multiple choice (`prompts.LETTER_GUIDES`), so VLMEvalKit's own ("Please select the correct answer ...") is not put below.
"""

from pathlib import Path

from safer_jax.datasets import files, parquet
from safer_jax.shapes import Record

LICENCE = "none stated"
SPLITS = ("val",)
COLUMNS = {
    "index": parquet.NAME,
    "question": parquet.TEXT,
    "image": parquet.IMAGE,
    "answer": parquet.TEXT,
    "category": parquet.TEXT,
    "l2_category": parquet.TEXT,
}
CHOICES = {letter: letter for letter in "ABCD"}


class Source(files.Rows):
    """The rows of "val", all there are: `mmstar.parquet`, or `val*.parquet`, in `folder` or its `data/`.

    Raises DataError for a file that is missing, damaged or of another schema, and on access RowError for a row whose
    values are wrong.
    """

    def __init__(self, folder: str | Path, split: str):
        files.check_split("mmstar", split, SPLITS)
        root = Path(folder).expanduser()
        is_published = any((place / "mmstar.parquet").is_file() for place in (root, root / "data"))
        paths = parquet.paths(root, "mmstar" if is_published else split)
        super().__init__("mmstar", split, parquet.Table({"": paths}, parquet.wants("mmstar", COLUMNS)), paths[0])
        self._split = split

    def _record(self, row: files.Row, index: int) -> Record:
        return Record(
            id=f"mmstar/{self._split}/{row.own_id('index')}",
            source="mmstar",
            images=parquet.images(row, "image"),
            prompt=row.text("question").strip(),
            expected="comply",
            category=f"{row.text('category')} / {row.text('l2_category')}",
            licence=LICENCE,
            use="eval",
            choice=row.of("answer", CHOICES),
        )
