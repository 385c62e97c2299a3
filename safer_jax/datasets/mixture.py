"""Several data sets as one: their rows one after the other, and an interleaving by weight (host code).

A set is written in the config as a line of a table, the folder last, for it may hold spaces and colons:

    data.mixture = ("2 safetag train /data/SafeTag-VL-3K", "0.5 spa_vl train gs://bucket/spa_vl")
    data.eval_sets = ("safetag test /data/SafeTag-VL-3K",)

Draw i belongs to the set that `Turns` says, a function of i and the weights alone, so a single cursor resumes a mixture.
"""

import bisect
import itertools
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from safer_jax.datasets import DataError, adapters
from safer_jax.datasets import Source as Rows
from safer_jax.shapes import Record

LONGEST = 100_000  # draws after which an interleaving begins anew
WEIGHTS = (Fraction("0.001"), Fraction(1000))  # limits of a weight; a thousandth is the finest step


class Entry(NamedTuple):
    """One set of a mixture as the config names it."""

    name: str
    split: str
    path: str
    weight: Fraction = Fraction(1)

    def __str__(self) -> str:
        return f"{self.name} {self.split} {self.path}".rstrip()


class Part(NamedTuple):
    """One set of an opened mixture: its rows are those from `start` on."""

    rows: Rows
    start: int
    weight: Fraction


class Source:
    """The rows of all sets, one set after the other. Raises IndexError beyond the end, else what the sets raise."""

    def __init__(self, sets: Sequence[tuple[Rows, Fraction]]):
        ends = list(itertools.accumulate((len(rows) for rows, _ in sets), initial=0))
        self.parts = tuple(Part(rows, start, weight) for (rows, weight), start in zip(sets, ends))
        self.name = " + ".join(rows.name for rows, _ in sets)
        self._starts, self._length = ends[:-1], ends[-1]

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name}: row {index} of {len(self)}")
        part = self.parts[bisect.bisect_right(self._starts, index) - 1]
        return part.rows[index - part.start]


def parse(line: str, is_weighed: bool) -> Entry:
    """ "0.5 demo train" -> Entry("demo", "train", "", 1/2); without `is_weighed` there is no weight in the line.

    Raises DataError, which says what the line must look like.
    """
    form = "'WEIGHT NAME SPLIT FOLDER'" if is_weighed else "'NAME SPLIT FOLDER'"
    words = line.split(maxsplit=2 + is_weighed)
    if len(words) < 2 + is_weighed:
        raise DataError(
            f"{line!r} is no set; write {form}, such as '{'2 ' * is_weighed}safetag train /data/SafeTag-VL-3K'"
        )
    weight = _weight(words.pop(0), line) if is_weighed else Fraction(1)
    name, split, path = (*words, "")[:3]
    if name not in adapters.ADAPTERS:
        known = ", ".join(adapters.ADAPTERS)
        raise DataError(f"{line!r}: no data set is named {name!r}; write {form} with a name of {known}")
    if not path and name != "demo":
        raise DataError(f"{line!r}: names no folder; write {form}")
    return Entry(name, split, path.strip(), weight)


def load(lines: Sequence[str], is_weighed: bool, root: str) -> Source:
    """Open the sets that the lines name. Raises DataError."""
    entries = [parse(line, is_weighed) for line in lines]
    if not entries:
        raise DataError("data.name 'mixture' has no sets: fill data.mixture and data.eval_sets")
    return Source([(adapters.load(e.name, e.path, e.split, root), e.weight) for e in entries])


def shares(weights: Sequence[Fraction]) -> tuple[int, ...]:
    """The smallest whole numbers in the ratio of the weights: of sum(shares) draws each set gets exactly its share."""
    scale = math.lcm(*(weight.denominator for weight in weights))
    whole = [int(weight * scale) for weight in weights]
    return tuple(share // math.gcd(*whole) for share in whole)


class Turns:
    """Which set a draw belongs to, and how often that set was drawn before: a table of one cycle of sum(shares) draws.

    Of the first n draws each set has n * share / sum of them, rounded up or down: of the sets that are not ahead the one
    whose next draw is due first takes its turn, which is always possible (Baruah et al. 1996, proportionate progress).
    """

    def __init__(self, shares: Sequence[int]):
        self._shares, cycle, done = shares, sum(shares), [0] * len(shares)
        if cycle > LONGEST:
            raise DataError(f"the weights need a cycle of {cycle:,} draws to be exact, above {LONGEST:,}; round them")
        self._turns: list[tuple[int, int]] = []
        for draw in range(cycle):
            ready = (number for number, share in enumerate(shares) if done[number] * cycle // share <= draw)
            number = min(ready, key=lambda number: -(-(done[number] + 1) * cycle // shares[number]))
            self._turns.append((number, done[number]))
            done[number] += 1

    def __getitem__(self, draw: int) -> tuple[int, int]:
        cycle, place = divmod(draw, len(self._turns))
        number, before = self._turns[place]
        return number, cycle * self._shares[number] + before


def _weight(text: str, line: str) -> Fraction:
    low, high = WEIGHTS
    try:
        weight = Fraction(text)
    except (ValueError, ZeroDivisionError):
        weight = Fraction(0)
    if not low <= weight <= high or (weight / low).denominator != 1:
        raise DataError(
            f"{line!r}: weight {text!r} is no number of {float(low):g} to {high} with at most three decimals"
        )
    return weight
