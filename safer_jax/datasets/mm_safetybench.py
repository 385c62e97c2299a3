"""MM-SafetyBench (arXiv 2311.17600) in PKU-Alignment's parquet files, or as its authors give it (host code).

Both forms have the same scenarios, questions and splits (`mm_safetybench_official` tells what those are), and a row has
the same id in both. Scenarios keep their published names, of which the first is misspelt.
"""

from pathlib import Path

from safer_jax.datasets import DataError, Source, files, mm_safetybench_official, parquet
from safer_jax.shapes import SAFE, UNKNOWN, UNSAFE, Record

LICENCE = mm_safetybench_official.LICENCE
SPLITS = ("SD", "SD_TYPO", "TYPO", "Text_only")
SCENARIOS = (  # in the authors' order
    "Illegal_Activitiy",
    "HateSpeech",
    "Malware_Generation",
    "Physical_Harm",
    "EconomicHarm",
    "Fraud",
    "Sex",
    "Political_Lobbying",
    "Privacy_Violence",
    "Legal_Opinion",
    "Financial_Advice",
    "Health_Consultation",
    "Gov_Decision",
)
TEXTS = {"id": parquet.NAME, "question": parquet.TEXT}


def source(folder: str | Path, split: str) -> Source:
    """The rows of a split of whichever form `folder` holds. Raises DataError for what cannot be read."""
    return (Parquet if parquet.is_in(folder) else mm_safetybench_official.Source)(folder, split)


class Parquet(files.Rows):
    """The rows of one split of all 13 scenarios, `SCENARIO/SPLIT.parquet` in `folder` or its `data/`.

    Raises DataError for files that are missing, damaged or of another schema, and on access RowError for a row whose
    values are wrong.
    """

    def __init__(self, folder: str | Path, split: str):
        files.check_split("mm_safetybench", split, SPLITS)
        found = parquet.configs(folder, split)
        missing = [name for name in SCENARIOS if name not in found]
        if len(missing) == len(SCENARIOS):
            raise DataError(
                f"{folder}: no scenario has a file of split {split!r}, such as {SCENARIOS[0]}/{split}.parquet; correct data.path"
            )
        if missing:
            raise DataError(
                f"{folder}: split {split!r} has no {', '.join(missing)}, it has {', '.join(found) or 'no scenario'}; get "
                "the missing ones, under the names that they are published with: a rate is of all 13"
            )
        parts = {name: parquet.paths(folder, split, name) for name in SCENARIOS}
        self._split, self._has_image = split, split != "Text_only"
        columns = {**TEXTS, "image": parquet.IMAGE} if self._has_image else TEXTS
        table = parquet.Table(parts, parquet.wants("mm_safetybench", columns))
        super().__init__("mm_safetybench", split, table, parts[SCENARIOS[0]][0])

    def _record(self, row: files.Row, index: int) -> Record:
        scenario = row.key.partition("/")[0]
        return Record(
            id=f"mm_safetybench/{self._split}/{SCENARIOS.index(scenario) + 1:02d}-{row.own_id('id')}",
            source="mm_safetybench",
            images=parquet.images(row, "image") if self._has_image else (),
            prompt=row.text("question"),
            image_tag=UNSAFE if self._has_image else UNKNOWN,
            text_tag=SAFE if self._has_image else UNSAFE,
            combine_tag=UNSAFE,
            expected="refuse",
            category=scenario,
            licence=LICENCE,
            use="eval",
        )
