"""SIUO (arXiv 2406.15279) as its authors give it: questions whose text and image are safe, the two together not (host code).

`siuo_gen.json` asks for an answer, `siuo_mcqa.json` for the letter of the right one of four; the images are the same.
Its `safety_warning`, what an answer should warn of, is no answer and is left: no judge here is told what to find.
"""

from collections.abc import Mapping
from pathlib import Path

from safer_jax.datasets import files
from safer_jax.shapes import SAFE, UNSAFE, Record

LICENCE = "CC BY-NC 4.0"
SPLITS = ("test",)
LETTERS = ("A", "B", "C", "D")


def with_options(question: str, options: Mapping[str, str]) -> str:
    """A question and the options under it, a line each. `prompts.LETTER_GUIDES` asks for the letter."""
    return "\n".join([question.strip(), *(f"({letter}) {text.strip()}" for letter, text in options.items())])


class Source(files.Rows):
    """The 167 rows of "test", or with `is_choice` their form with options: JSON files and `images/` (or a zip), in
    `folder` or its `data/`.

    Raises DataError for files that are missing or damaged, and on access RowError for a row whose values are wrong.
    """

    def __init__(self, folder: str | Path, split: str, is_choice: bool):
        name, file, field = (
            ("siuo_mcqa", "siuo_mcqa.json", "options") if is_choice else ("siuo", "siuo_gen.json", "reference_answer")
        )
        files.check_split(name, split, SPLITS)
        path = files.find(folder, f"data/{file}", file)
        table = files.table(path, ("question_id", "image", "question", field))
        archives = ("images.zip", "SIUO-images.zip")
        where = files.find(folder, "data/images", "images", *archives, *(f"data/{archive}" for archive in archives))
        self._images, self._source, self._split, self._is_choice = files.Images(where), name, split, is_choice
        super().__init__(name, split, table, path)

    def _record(self, row: files.Row, index: int) -> Record:
        image = self._images.read(row.text("image"), row.where)
        return record(row, self._source, self._split, (image,), self._is_choice)


def record(row: files.Row, source: str, split: str, images: tuple[bytes, ...], is_choice: bool) -> Record:
    """A row of either form, its images read. Raises RowError."""
    found = Record(
        id=f"{source}/{split}/{row.own_id('question_id')}",
        source=source,
        images=images,
        prompt=row.text("question"),
        image_tag=SAFE,
        text_tag=SAFE,
        combine_tag=UNSAFE,
        expected="warn",
        category=row.text_if_any("category"),
        licence=LICENCE,
        use="eval",
    )
    if not is_choice:
        return found._replace(reference=row.text_if_any("reference_answer"))
    inner = row.row("options")
    options = {letter: inner.text(letter) for letter in LETTERS}
    right = row.of("correct_option", {letter: letter for letter in LETTERS})
    prompt = with_options(found.prompt, options)
    return found._replace(prompt=prompt, expected="any", reference=options[right].strip(), choice=right)
