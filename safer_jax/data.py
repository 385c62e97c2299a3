"""From data sets to the rows of a step: sources, usable rows, the global order of draws, prefetch (host code).

The order of draws is a function of (rows, weights, seed) alone: draw number i is the same row whatever the batch size or the
number of processes, so one integer, the cursor, is all that a checkpoint has to keep.
"""

import concurrent.futures
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

import grain
import numpy as np

from safer_jax import config, images, measured, prompts
from safer_jax.datasets import DataError, RowError, Source, adapters, mixture, reading
from safer_jax.shapes import Prompts, Record


def load(data: config.Data, split: str) -> Source:
    """The rows of a split of the set that `data.name` names. Raises DataError for a set that cannot be read.

    Of a mixture the split to train on is `data.mixture`, that to evaluate on `data.eval_sets`.
    """
    if data.name == "mixture":
        sets = {data.train_split: data.mixture, data.eval_split: data.eval_sets}
        if split not in sets:
            raise DataError(f"a mixture has no split {split!r}, only {' and '.join(sets)}; correct the split")
        return mixture.load(sets[split], split == data.train_split, data.root)
    return adapters.load(data.name, data.path, split, data.root)


class Usable(NamedTuple):
    """The rows of a source that a run can use, and what each needs. n rows."""

    row_n: np.ndarray  # int64, index into the source
    tokens_n: np.ndarray  # int32, prompt tokens
    patches_n: np.ndarray  # int32, patch slots
    dropped: tuple[str, ...]  # why each other row is left out
    is_told_n: np.ndarray  # bool, True where the row says what is asked of it (`tells`)

    @property
    def rows(self) -> list[int]:
        """The indices as plain integers."""
        return self.row_n.tolist()


def usable(
    source: Source,
    size: Callable[[Record], tuple[int, int]],
    max_tokens: int,
    max_patches: int,
    budget: int,
    is_training: bool = False,
    threads: int = 4,
    train_on_eval: bool = False,
    tells: Callable[[Record], bool] = lambda record: True,
) -> Usable:
    """Measure every row once and leave out those that cannot be used, each named on stderr.

    `size` gives a record's (prompt tokens, patch slots), as `measured.Sizes` does; a row is bad if reading or measuring it
    fails, or if it needs more than `max_tokens` or `max_patches`: nothing is ever cut to fit. The sets of a mixture are
    measured one by one, each with the whole budget. Raises DataError beyond `budget` bad rows, when nothing is left, and
    for a record of use "eval" if `is_training`, unless `train_on_eval`, which says so on stderr instead.
    """
    if parts := getattr(source, "parts", ()):
        rest = (size, max_tokens, max_patches, budget, is_training, threads, train_on_eval, tells)
        each = [usable(part.rows, *rest) for part in parts]
        _tell_mixture(parts, each, is_training)
        return _joined(parts, each)

    def measure(index: int) -> tuple[int, int, int, bool, bool] | str:
        try:
            record = source[index]
            if is_training and not train_on_eval:
                _refuse_eval(record)
            tokens, patches = size(record)
        except (RowError, prompts.PromptError, images.ImageError) as error:
            return str(error)
        too_long = measured.over(record, tokens, patches, max_tokens, max_patches)
        return too_long or (index, tokens, patches, tells(record), record.use != "train")

    kept, dropped = [], []
    results = reading.ahead(measure, range(len(source)), threads)
    for index, result in enumerate(reading.Progress(source.name, len(source)).of(results)):
        if isinstance(result, str):
            dropped.append(result)
            _leave_out(source.name, dropped, index, budget)
        else:
            kept.append(result)
    if not kept:
        raise DataError(f"{source.name}: no usable row of {len(source)}; correct data.path or the split's name")
    row_n, tokens_n, patches_n, is_told_n, is_eval_n = np.array(kept, np.int64).T
    if is_training and is_eval_n.any():
        _warn_of_eval(source.name, is_eval_n.sum())
    return Usable(row_n, tokens_n.astype(np.int32), patches_n.astype(np.int32), tuple(dropped), is_told_n.astype(bool))


def _joined(parts: Sequence[mixture.Part], each: Sequence[Usable]) -> Usable:
    """The rows of all sets by their number in the mixture."""
    row_n = np.concatenate([part.start + found.row_n for part, found in zip(parts, each, strict=True)])
    join = lambda field: np.concatenate([getattr(found, field) for found in each])
    dropped = tuple(reason for found in each for reason in found.dropped)
    return Usable(row_n, join("tokens_n"), join("patches_n"), dropped, join("is_told_n"))


def _leave_out(name: str, dropped: Sequence[str], index: int, budget: int) -> None:
    """Say why the last of `dropped` is left out. Raises DataError where that is one too many."""
    print(f"{name}: left out, {dropped[-1]}", file=sys.stderr, flush=True)
    if len(dropped) > budget:
        raise DataError(
            f"{name}: {len(dropped)} bad rows in the first {index + 1}, data.bad_rows allows {budget}; "
            f"mend them or raise it. The last: {dropped[-1]}"
        )


def _refuse_eval(record: Record) -> None:
    if record.use != "train":
        raise DataError(
            f"{record.id}: for {record.use} only, not for training; correct data.train_split or data.mixture "
            "(data.train_on_eval = True trains on it all the same)"
        )


def _warn_of_eval(name: str, count: int) -> None:
    print(
        f"WARNING: data.train_on_eval = True: {count} rows of {name} are for evaluation only and will be "
        "trained on; results on them, or on their test split, mean nothing",
        file=sys.stderr,
        flush=True,
    )


def told(source: Source, found: Usable, what: str, fix: str, is_needed: bool) -> np.ndarray:
    """int64: the usable rows that say what they should (`what`); how many of each set do not is said on stderr.

    Without `is_needed` that is all, and every row is returned. With it a set of which no row says it is refused.
    Raises DataError.
    """
    parts = getattr(source, "parts", ()) or (mixture.Part(source, 0, 1),)
    owner_n = np.searchsorted([part.start for part in parts], found.row_n, side="right") - 1
    for number, part in enumerate(parts):
        rows_n, is_told_n = found.row_n[owner_n == number], found.is_told_n[owner_n == number]
        if is_told_n.all():
            continue
        count, name = int((~is_told_n).sum()), part.rows.name
        if is_needed and count == len(rows_n):
            raise DataError(f"{name}: none of {count:,} rows has {what}: no answer can be rewarded; {fix}")
        example = source[int(rows_n[~is_told_n][0])].id
        left_out = "they are left out" if is_needed else "on these the judge's word alone counts"
        print(
            f"WARNING: {name}: {count:,} of {len(rows_n):,} rows ({count / len(rows_n):.1%}), such as {example}, lack {what}; "
            f"{left_out}: {fix}",
            file=sys.stderr,
            flush=True,
        )
    return found.row_n[found.is_told_n] if is_needed else found.row_n


def _tell_mixture(parts: Sequence[mixture.Part], each: Sequence[Usable], is_training: bool) -> None:
    """A line for each set: its rows, and in training its share of the draws."""
    total = sum(part.weight for part in parts)
    for part, found in zip(parts, each, strict=True):
        share = f", {float(part.weight / total):.1%} of the draws" if is_training else ""
        left_out = f", {len(found.dropped):,} left out" if found.dropped else ""
        print(f"mixture: {part.rows.name} {len(found.row_n):,} rows{left_out}{share}", file=sys.stderr, flush=True)


class Order(NamedTuple):
    """The endless global order of draws: every row once an epoch, each epoch in another order."""

    dataset: Any  # draw number -> row index, by []
    size: int  # rows of an epoch


class Draws(NamedTuple):
    """Consecutive draws of the order, or one process's part of them. n draws."""

    row_n: np.ndarray  # int64, index into the source
    epoch_n: np.ndarray  # int64, from 0
    draw_n: np.ndarray  # int64, the number of the draw in the global order


def order(
    rows: Sequence[int] | np.ndarray, seed: int, shuffle: bool = True, parts: Sequence[mixture.Part] = ()
) -> Order:
    """The order in which `rows` are drawn; without `shuffle` as they stand. Raises DataError if there are none.

    With the `parts` of a mixture each set is drawn in an order of its own, over and over, and the sets take turns by
    weight; an epoch then is as many draws as there are rows. A set with none of the rows has no turns (`usable` refuses
    it, but not every set has references for a warm start).
    """
    rows = np.asarray(rows, np.int64)
    if not len(rows):
        raise DataError("no rows to draw from: correct data.path or the split's name")
    if parts:
        return Order(_Interleaved(rows, seed, shuffle, parts), len(rows))
    dataset = grain.MapDataset.source(rows).seed(seed)
    if shuffle:
        dataset = dataset.shuffle()
    return Order(dataset.repeat(), len(rows))


class _Interleaved:
    """Draw number -> row index of a mixture: `mixture.Turns` says which set, its own order which row."""

    def __init__(self, rows: np.ndarray, seed: int, shuffle: bool, parts: Sequence[mixture.Part]):
        owner = np.searchsorted([part.start for part in parts], rows, side="right") - 1
        own = [rows[owner == number] for number in range(len(parts))]
        held = [number for number, chosen in enumerate(own) if len(chosen)]
        self._orders = [order(own[number], seed + number, shuffle).dataset for number in held]
        self._turns = mixture.Turns(mixture.shares([parts[number].weight for number in held]))

    def __getitem__(self, draw: int) -> int:
        number, place = self._turns[draw]
        return self._orders[number][place]


def draws(order: Order, cursor: int, n: int, process: int = 0, processes: int = 1) -> Draws:
    """Draws cursor .. cursor + n - 1; of these, with several processes, the contiguous share of one of them."""
    if cursor < 0 or n < 1 or processes < 1 or not 0 <= process < processes or n % processes:
        raise DataError(
            f"cannot draw {n} rows from cursor {cursor} for process {process} of {processes}: "
            "the number of prompts of a step must divide by the processes"
        )
    share = n // processes
    number = np.arange(cursor + process * share, cursor + (process + 1) * share, dtype=np.int64)
    row = np.array([order.dataset[int(draw)] for draw in number], np.int64)
    return Draws(row, number // order.size, number)


def read(source: Source, rows: Sequence[int], function: Callable[[Record], Any], threads: int = 4) -> list[Any]:
    """function(record) of each row, in order, on several threads: decoding an image lets the others run."""
    return list(reading.ahead(lambda i: function(source[int(rows[i])]), range(len(rows)), threads))


class Asked(NamedTuple):
    """What one step asks: this process's records, each encoded, and the prompts that hold them, row for row."""

    records: list[Record]
    encoded: list[prompts.Encoded]
    prompts: Prompts


class Feed:
    """Rows of one source to prompts, at shapes chosen from the whole batch, so that all processes choose the same."""

    def __init__(self, source: Source, usable: Usable, processor: prompts.Processor, settings: config.Prompt):
        self.source, self.usable, self.processor, self.settings = source, usable, processor, settings
        self._needs = {row: need for row, *need in zip(usable.rows, usable.tokens_n, usable.patches_n, strict=True)}

    def ask(self, rows: Sequence[int], draws: Sequence[int], process: int = 0, processes: int = 1) -> Asked:
        """Encode this process's contiguous share of a global batch of `rows`, drawn as numbers `draws`.

        Raises PromptError where a row does not fit, DataError where the batch does not divide by the processes.
        """
        if len(rows) % processes:
            raise DataError(f"{len(rows)} rows do not divide by {processes} processes; change the rows of a step")
        tokens, patches = np.max([self._needs[int(row)] for row in rows], axis=0)
        prompt_slots = prompts.bucket(tokens, self.settings.buckets)
        patch_slots = prompts.bucket(patches, self.settings.patch_buckets, "prompt.patch_buckets")
        share = len(rows) // processes
        own = slice(process * share, (process + 1) * share)
        both = read(self.source, rows[own], lambda record: (record, self.processor.encode(record)))
        records, encoded = (list(column) for column in zip(*both, strict=True))
        collated = prompts.collate(encoded, draws[own], prompt_slots, patch_slots, self.processor.geometry)
        return Asked(records, encoded, collated)

    def exchange(self, asked: Asked, other: Asked, pairs: Sequence[tuple[int, int]]) -> Asked:
        """`asked` with row i replaced by row j of `other` for every (i, j), at the larger of both shapes."""
        rows = [(asked, i) for i in range(len(asked.records))]
        for i, j in pairs:
            rows[i] = (other, j)
        records, encoded = [of.records[i] for of, i in rows], [of.encoded[i] for of, i in rows]
        draw_P = [of.prompts.draw_P[i] for of, i in rows]
        prompt_slots = max(part.prompts.token_PS.shape[1] for part in (asked, other))
        patch_slots = max(part.prompts.segment_PX.shape[1] for part in (asked, other))
        collated = prompts.collate(encoded, draw_P, prompt_slots, patch_slots, self.processor.geometry)
        return Asked(records, encoded, collated)


class Prefetch:
    """Makes the next value in the background while the present one is used.

        with Prefetch(make) as batches:
            batches.ahead(cursor)         # starts make(cursor)
            batch = batches.get(cursor)   # waits for it; raises here what make raised

    The guess may be wrong: `get` with other arguments than `ahead`'s drops the value and makes the right one.
    """

    def __init__(self, make: Callable[..., Any]):
        self._make = make
        self._pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._wanted: tuple[Any, ...] | None = None
        self._value: concurrent.futures.Future | None = None

    def ahead(self, *arguments: Any) -> None:
        """Start making the value for these arguments; an earlier guess that was not collected is dropped."""
        self._drop()
        self._wanted, self._value = arguments, self._pool.submit(self._make, *arguments)

    def get(self, *arguments: Any) -> Any:
        """The value for these arguments, from the background if it was asked for there."""
        if self._value is not None and self._wanted == arguments:
            value, self._value = self._value, None
            return value.result()
        self._drop()
        return self._make(*arguments)

    def _drop(self) -> None:
        if self._value is not None:
            self._value.cancel()
            self._value = None

    def close(self) -> None:
        """End the background thread; a value under way is waited for and dropped."""
        self._drop()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
