"""VLSBench (arXiv 2411.19939): the harm is in the image alone, the text does not give it away (host code).

`image_description` and `safety_reason`, which say what to find, are left: neither policy nor judge is told it.
"""

from pathlib import Path

from safer_jax.datasets import files
from safer_jax.shapes import SAFE, UNSAFE, Record

LICENCE = "Apache-2.0"
SPLITS = ("test",)


class Source(files.Rows):
    """The 2,241 rows of "test": `data.json` and `imgs.tar`, or `imgs/` unpacked, in `folder` or its `data/`.

    Raises DataError for files that are missing or damaged, and on access RowError for a row whose values are wrong.
    """

    def __init__(self, folder: str | Path, split: str):
        files.check_split("vlsbench", split, SPLITS)
        path = files.find(folder, "data.json", "data/data.json")
        table = files.table(path, ("instruction_id", "instruction", "image_path"))
        self._images = files.Images(files.find(folder, "imgs", "imgs.tar", "data/imgs", "data/imgs.tar"))
        super().__init__("vlsbench", split, table, path)

    def _record(self, row: files.Row, index: int) -> Record:
        return Record(
            id=f"vlsbench/test/{row.own_id('instruction_id')}",
            source="vlsbench",
            images=(self._images.read(row.text("image_path").removeprefix("imgs/"), row.where),),
            prompt=row.text("instruction"),
            image_tag=UNSAFE,
            text_tag=SAFE,
            combine_tag=UNSAFE,
            expected="refuse",
            category=row.text_if_any("category"),
            licence=LICENCE,
            use="eval",
        )
