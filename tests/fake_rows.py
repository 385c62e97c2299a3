"""A source made of given records, for tests that need no files."""

from collections.abc import Sequence

from safer_jax.shapes import Record


class Rows:
    """Rows as they are given; an exception among them is raised when it is read."""

    def __init__(self, records: Sequence[Record | Exception], name: str = "rows/train"):
        self.records, self.name = records, name

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        if isinstance(self.records[index], Exception):
            raise self.records[index]
        return self.records[index]
