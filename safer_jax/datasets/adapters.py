"""The data sets that `data.name` may say, and how a split of one is opened (host code).

A set's module is imported when the set is opened: whoever only asks for names pays nothing. Every module has its
`LICENCE`, and `Source(folder, split)` or, where a set is published in two forms, a function that tells them apart.
"""

import importlib
from pathlib import Path
from typing import NamedTuple

from safer_jax.datasets import DataError, Source


class Adapter(NamedTuple):
    """One data set: `splits` that it is published with, () where any name may be meant; `use` "train" if a split of it
    may be trained on, else "eval"; `about` in one line."""

    module: str  # of this package
    splits: tuple[str, ...]
    use: str
    about: str
    opens: str = "Source"  # in the module, called with (folder, split)

    @property
    def licence(self) -> str:
        """As the set's publishers state it."""
        return self._module().LICENCE

    def open(self, folder: str | Path, split: str) -> Source:
        """The rows of a split of the set in `folder`. Raises DataError for what cannot be read."""
        return getattr(self._module(), self.opens)(folder, split)

    def _module(self):
        return importlib.import_module(f"safer_jax.datasets.{self.module}")


TRAINED = ("train", "test")
FORMS = ("SD", "SD_TYPO", "TYPO", "Text_only")
ADAPTERS = {
    "demo": Adapter("demo", TRAINED, "train", "the built-in set of drawn scenes, made at first use"),
    "safetag": Adapter("safetag", TRAINED, "train", "SafeTag-VL-3K: a question, its images and three tags a row"),
    "curated": Adapter("curated", (), "train", "what tools/curate.py select wrote from any other set"),
    "spa_vl": Adapter(
        "spa_vl", ("train", "validation", "test", "harm", "help"), "train", "SPA-VL: preferred and rejected answers"
    ),
    "beavertails_v": Adapter(
        "beavertails_v", ("train", "evaluation"), "train", "BeaverTails-V, either set of that name: answers marked safe"
    ),
    "vlguard": Adapter("vlguard", TRAINED, "train", "VLGuard: safe and unsafe instructions to safe and unsafe images"),
    "figstep": Adapter("figstep", ("test", "tiny"), "eval", "FigStep: harmful requests drawn as pictures"),
    "mm_safetybench": Adapter(
        "mm_safetybench", FORMS, "eval", "MM-SafetyBench: harmful requests moved into a picture, 13 scenarios", "source"
    ),
    "siuo": Adapter("siuo", ("test",), "eval", "SIUO: safe image, safe question, unsafe together", "answers"),
    "siuo_mcqa": Adapter("siuo", ("test",), "eval", "SIUO with four options, one of them safe", "choices"),
    "mssbench": Adapter("mssbench", ("chat", "embodied"), "eval", "MSSBench: one text, safe or not by its image"),
    "mossbench": Adapter("mossbench", ("test",), "eval", "MOSSBench: harmless questions that look harmful"),
    "holisafe": Adapter(
        "holisafe", ("test",), "eval", "HoliSafe-Bench: people's labels of image, text and both", "source"
    ),
    "vlsbench": Adapter("vlsbench", ("test",), "eval", "VLSBench: harm that only the image shows"),
    "mmstar": Adapter("mmstar", ("val",), "eval", "MMStar: general ability by multiple choice"),
}


def load(name: str, folder: str, split: str, root: str = "") -> Source:
    """The rows of a split of the set `name` in `folder`; the demo set is made under `root` where `folder` is empty.

    `folder` may also be a prepared copy of the set, on disk or in a bucket, which is copied to `root` first.
    Raises DataError for an unknown name, an empty folder, a copy of another set and whatever the set's adapter refuses.
    """
    from safer_jax.datasets import prepared

    if name not in ADAPTERS:
        raise DataError(f"data.name {name!r} is not known; write one of {', '.join(ADAPTERS)}")
    if not folder and name == "demo":
        from safer_jax.datasets import demo

        folder = demo.build(root)
    if not folder:
        raise DataError(f"data.path is empty: set it to the folder of {name!r} ({ADAPTERS[name].about})")
    place = prepared.stage(folder, split, root) if "://" in str(folder) else Path(folder).expanduser()
    if not prepared.is_in(place):
        return ADAPTERS[name].open(place, split)
    source = prepared.Source(place, split)
    if source.of != name:
        raise DataError(f"{folder}: was prepared from {source.of!r}, not from {name!r}; correct the name or the folder")
    return source
