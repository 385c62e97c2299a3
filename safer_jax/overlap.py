"""What two data sets share: the same row, the same image, an image that looks alike, the same prompt (host code).

A row that is trained on and then evaluated on measures nothing. Images are compared by SHA-256 and by sight: a difference
hash of 128 bits, and where two of these are near, the correlation of 32 x 32 grey values, for pages of text in one layout
have one hash. Copies that were encoded anew, resized or made brighter are found; crops are not, and a mirrored picture is
another one. A set is read once, row by row; a picture takes 1.8 KB of memory, 2.9 KB while sets are compared.
"""

import hashlib
import os
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from safer_jax import images
from safer_jax.datasets import RowError, Source, reading
from safer_jax.shapes import Record

NEAR = 10  # of 128 bits; copies differ in 0 to 8, different photographs in 19 and more (tests/test_overlap.py)
ALIKE = 0.97  # correlation; copies of photographs have 0.98 and more, pages of other text in one layout up to 0.97
SIDE = 32  # pixels a side that are compared
FLAT = 2.0  # grey levels, standard deviation; below it there is nothing to see
LIMITS = images.Limits(1, 50_000_000, 20_000_000, 50_000_000)
BLOCK = 1024  # pictures compared at once with all others
EXAMPLES = 3


class Look(NamedTuple):
    """What a picture looks like, or a table of them with a leading axis."""

    hash: np.ndarray  # uint64 [2], one bit for each of 8 x 8 steps to the right, then down: True where it gets brighter
    grey: np.ndarray  # uint8 [SIDE * SIDE]


class Overlap(NamedTuple):
    """Pairs of record ids (of the first set, of the second), at most one of a kind for each row of the second."""

    rows: tuple[tuple[str, str], ...]  # same prompt and same images
    images: tuple[tuple[str, str], ...]  # an image in common
    alike: tuple[tuple[str, str], ...]  # no image in common, but one that looks alike
    prompts: tuple[tuple[str, str], ...]  # same prompt, case and white space aside

    @property
    def counts(self) -> dict[str, int]:
        """How many rows of the second set each kind holds."""
        return {f"shared_{kind}": len(pairs) for kind, pairs in self._asdict().items()}

    def line(self, first: str, second: str) -> str:
        """One line for people, with examples of the worst kind."""
        rows, pictures, alike, prompts = (f"{len(pairs):,}" for pairs in self)
        worst = next((pairs for pairs in self[:3] if pairs), ())
        examples = f" (such as {', '.join(f'{b} = {a}' for a, b in worst[:EXAMPLES])})" if worst else ""
        return (
            f"overlap: of {second}, {rows} rows are also in {first}, {pictures} share an image with it, {alike} have one that "
            f"looks alike, {prompts} share the prompt{examples}"
        )


class Prints:
    """Fingerprints of the rows of one set; `add` may be called by several threads, in any order.

    `root`: pictures that were looked at before are remembered in a file below it, by the SHA-256 of the image, so that a
    large set is decoded for this once. None = nothing is kept. `looks` False = no picture is decoded at all.
    """

    def __init__(self, name: str, root: str | Path | None = None, limits: images.Limits = LIMITS, looks: bool = True):
        self.name, self._limits, self._looks = name, limits, looks
        self._rows: list[tuple[str, bytes, bytes, list[bytes]]] = []  # id, of the row, of the prompt, of each image
        self._seen: dict[bytes, Look | None] = {}  # by the image's SHA-256; None = it shows nothing
        self._lock, self._path, self._known = threading.Lock(), None, {}
        if root is not None and looks:
            key = hashlib.sha256(name.encode()).hexdigest()[:16]
            self._path = Path(root).expanduser() / "looks" / f"{key}-{SIDE}.npz"
            self._known = _load(self._path)

    def add(self, record: Record) -> None:
        """Remember one row. An image that does not decode counts by its bytes alone."""
        pictures = [hashlib.sha256(image).digest()[:16] for image in record.images]
        prompt = hashlib.sha256(" ".join(record.prompt.lower().split()).encode()).digest()[:16]
        turns = [" ".join(turn.lower().split()).encode() for turn in record.history]
        row = hashlib.sha256(b"\0".join([b"".join(pictures), prompt, *turns])).digest()[:16]
        for digest, data in zip(pictures, record.images, strict=True) if self._looks else ():
            if digest not in self._seen:
                found = self._known[digest] if digest in self._known else look(data, self._limits)
                self._seen[digest] = found  # of two threads with the same picture either result will do
        with self._lock:
            self._rows.append((record.id, row, prompt, pictures))

    def along(self, function: Callable[[Record], Any]) -> Callable[[Record], Any]:
        """The same function, which also adds the record: so that a set need not be read twice."""

        def both(record: Record) -> Any:
            self.add(record)
            return function(record)

        return both

    def save(self) -> None:
        """Write the file under `root`, if there is anything new."""
        if self._path is None or self._seen.keys() <= self._known.keys():
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        table = _table(list(self._seen.values()))
        with tempfile.NamedTemporaryFile(dir=self._path.parent, suffix=".partial", delete=False) as file:
            digests = np.frombuffer(b"".join(self._seen), np.uint8).reshape(-1, 16)
            is_flat = np.array([value is None for value in self._seen.values()])
            np.savez(file, digest=digests, is_flat=is_flat, **table._asdict())
        os.replace(file.name, self._path)

    def rows(self) -> list[tuple[str, bytes, bytes, list[bytes]]]:
        """(id, hash of the row, of the prompt, of each image), in the order of the ids."""
        return sorted(self._rows)

    def pictures(self) -> tuple[Look, list[str]]:
        """Every picture that shows something, once, and the id of the first row that has it."""
        owner: dict[bytes, str] = {}
        for name, _, _, pictures in self.rows():
            for digest in pictures:
                if self._seen.get(digest) is not None:
                    owner.setdefault(digest, name)
        return _table([self._seen[digest] for digest in owner]), list(owner.values())


def look(data: bytes, limits: images.Limits = LIMITS) -> Look | None:
    """What the picture looks like; None where it does not decode or is of one colour."""
    try:
        small = images.thumbnail(data, limits, 2 * SIDE).convert("L")
    except images.ImageError:
        return None
    grey = np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BOX))
    if grey.std() < FLAT:
        return None
    right = np.asarray(small.resize((9, 8), Image.Resampling.BOX)).astype(np.int16)
    down = np.asarray(small.resize((8, 9), Image.Resampling.BOX)).astype(np.int16)
    bits = np.concatenate([(np.diff(right, axis=1) > 0).ravel(), (np.diff(down, axis=0) > 0).ravel()])
    return Look(np.packbits(bits).view(np.uint64), grey.ravel())


def prints(source: Source, root: str | Path | None = None, looks: bool = True, threads: int = 4) -> Prints:
    """Read a whole set once, a bounded number of rows at a time. A row that cannot be read is passed over."""
    made = Prints(source.name, root, looks=looks)

    def add(index: int) -> None:
        try:
            made.add(source[index])
        except RowError:
            return  # whoever measures the set names it

    for _ in reading.ahead(add, range(len(source)), threads):
        pass
    made.save()
    return made


def compare(first: Prints, second: Prints) -> Overlap:
    """What the rows of the second set share with the first."""
    by_row, by_prompt, by_image = {}, {}, {}
    for name, row, prompt, pictures in first.rows():
        by_row.setdefault(row, name)
        by_prompt.setdefault(prompt, name)
        for picture in pictures:
            by_image.setdefault(picture, name)
    rows, prompts, shared = [], [], []
    for name, row, prompt, pictures in second.rows():
        if row in by_row:
            rows.append((by_row[row], name))
        if prompt in by_prompt:
            prompts.append((by_prompt[prompt], name))
        if picture := next((picture for picture in pictures if picture in by_image), None):
            shared.append((by_image[picture], name))
    exact = {name for _, name in shared}
    near = [(a, b) for a, b in _alike(first, second) if b not in exact]
    return Overlap(tuple(rows), tuple(shared), tuple(near), tuple(prompts))


def between(first: Source, second: Source, looks: bool = True) -> Overlap:
    """Read two sets and compare them."""
    return compare(prints(first, looks=looks), prints(second, looks=looks))


def _alike(first: Prints, second: Prints) -> list[tuple[str, str]]:
    """For each row of the second set that has one: the row of the first with the picture that is most like one of its."""
    (theirs, owners), (ours, names) = first.pictures(), second.pictures()
    found: dict[str, tuple[float, str]] = {}
    if not owners or not names:
        return []
    for start in range(0, len(names), BLOCK):
        block = slice(start, start + BLOCK)
        for other in range(0, len(owners), 8 * BLOCK):
            against = slice(other, other + 8 * BLOCK)
            near = distance(ours.hash[block], theirs.hash[against]) <= NEAR
            mine, yours = np.flatnonzero(near.any(1)), np.flatnonzero(near.any(0))
            if not len(mine):
                continue
            same = _unit(ours.grey[block][mine]) @ _unit(theirs.grey[against][yours]).T
            same[~near[np.ix_(mine, yours)]] = -1
            for place, (index, value) in enumerate(zip(same.argmax(1), same.max(1))):
                name = names[start + mine[place]]
                if value >= ALIKE and value > found.get(name, (0.0, ""))[0]:
                    found[name] = (float(value), owners[other + yours[index]])
    return [(found[name][1], name) for name in sorted(found)]


def distance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """uint8 [n, m], in how many bits each of n hashes differs from each of m; uint64 [n, 2] and [m, 2]."""
    return sum(np.bitwise_count(first[:, None, word] ^ second[None, :, word]) for word in range(2))


def _unit(grey: np.ndarray) -> np.ndarray:
    """float32, each row with mean 0 and length 1, so that a product is a correlation."""
    centred = grey.astype(np.float32) - grey.mean(1, keepdims=True, dtype=np.float32)
    return centred / np.linalg.norm(centred, axis=1, keepdims=True)


def _table(looks: Sequence[Look | None]) -> Look:
    empty = Look(np.zeros(2, np.uint64), np.zeros(SIDE * SIDE, np.uint8))
    columns = zip(*(look or empty for look in looks)) if looks else ([empty.hash][:0], [empty.grey][:0])
    hashes, grey = (np.array(column) for column in columns)
    return Look(hashes.reshape(-1, 2).astype(np.uint64), grey.reshape(-1, SIDE * SIDE).astype(np.uint8))


def _load(path: Path) -> dict[bytes, Look | None]:
    """What was remembered; nothing where there is no such file or it is damaged: then it is made anew."""
    if not path.is_file():
        return {}
    try:
        with np.load(path, allow_pickle=False) as file:
            digest, is_flat, hashes, grey = (file[name] for name in ("digest", "is_flat", "hash", "grey"))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        print(f"{path}: damaged ({error}), made anew", file=sys.stderr)
        return {}
    looks = (None if flat else Look(h, g) for flat, h, g in zip(is_flat, hashes, grey, strict=True))
    return {bytes(key): value for key, value in zip(digest, looks, strict=True)}
