"""data.py: usable rows within a budget, draws that depend on the cursor alone, prefetch, overlap."""

import dataclasses
import threading

import numpy as np
import pytest
import safetag_files
from fake_rows import Rows

from safer_jax import config, data, images, prompts
from safer_jax.datasets import DataError, RowError, mixture
from safer_jax.shapes import Record


def record(number: int, **fields) -> Record:
    return Record(**{"id": f"row{number}", "source": "rows", "images": (), "prompt": "x" * number, **fields})


def size(row: Record) -> tuple[int, int]:
    return len(row.prompt), 4 * len(row.images)


def settings(**fields) -> config.Data:
    defaults = {
        "name": "safetag",
        "path": "",
        "train_split": "train",
        "eval_split": "test",
        "mixture": (),
        "eval_sets": (),
        "train_on_eval": False,
        "eval_rows": 0,
        "bad_rows": 0,
        "root": "",
    }
    return config.Data(**{**defaults, **fields})


def test_load_goes_by_the_configs_word(tmp_path):
    safetag_files.write_set(tmp_path)
    assert len(data.load(settings(path=str(tmp_path)), "train")) == 24
    assert len(data.load(settings(path=str(tmp_path)), "test")) == 8
    with pytest.raises(DataError, match="data.path is empty"):
        data.load(settings(), "train")
    with pytest.raises(DataError, match="data.name 'safetg' is not known; write one of demo, safetag"):
        data.load(dataclasses.replace(settings(), name="safetg"), "train")


def test_usable_measures_rows_and_leaves_out_bad_ones_by_name(capsys):
    records = [record(number) for number in range(300)]
    records[3] = RowError("file, row 3, column prompt: nothing")
    records[250] = record(250, images=(b"", b"", b""))
    found = data.usable(Rows(records), size, max_tokens=290, max_patches=8, budget=11)
    kept = [i for i in range(291) if i not in (3, 250)]
    np.testing.assert_array_equal(found.row_n, kept)
    np.testing.assert_array_equal(found.tokens_n, kept)
    assert not found.patches_n.any()
    assert len(found.dropped) == 11
    errors = capsys.readouterr().err
    assert "rows/train: left out, file, row 3, column prompt: nothing" in errors
    assert "row250: its 3 images need 12 patch slots, prompt.patch_buckets end at 8; raise it" in errors
    assert "row291: the prompt needs 291 tokens, prompt.buckets end at 290" in errors


def test_usable_stops_beyond_the_budget():
    with pytest.raises(
        DataError, match="rows/train: 3 bad rows in the first 8, data.bad_rows allows 2.*The last: row7"
    ):
        data.usable(Rows([record(number) for number in range(20)]), size, max_tokens=4, max_patches=8, budget=2)
    with pytest.raises(DataError, match="rows/train: no usable row of 2"):
        data.usable(Rows([record(9), record(9)]), size, max_tokens=4, max_patches=8, budget=2)


def test_usable_takes_errors_of_prompts_and_images_for_bad_rows_but_no_others():
    def measure(row: Record) -> tuple[int, int]:
        if len(row.prompt) > 2:
            raise {3: prompts.PromptError, 4: images.ImageError, 5: KeyError}[len(row.prompt)]("no")
        return size(row)

    found = data.usable(Rows([record(number) for number in range(5)]), measure, 9, 9, budget=2)
    assert found.dropped == ("no", "no")
    with pytest.raises(KeyError):
        data.usable(Rows([record(number) for number in range(6)]), measure, 9, 9, budget=9)


def test_records_for_evaluation_are_refused_in_training(tmp_path):
    source = data.load(settings(path=str(safetag_files.write_set(tmp_path))), "test")
    assert len(data.usable(source, size, 99, 99, budget=0).row_n) == 8
    with pytest.raises(DataError, match="safetag/test/000000: for eval only, not for training; correct"):
        data.usable(source, size, 99, 99, budget=8, is_training=True)


def test_every_epoch_draws_each_row_once_in_another_order():
    rows = np.arange(10, 47)
    got = data.draws(data.order(rows, seed=1), 0, 3 * 37)
    np.testing.assert_array_equal(got.epoch_n, np.repeat([0, 1, 2], 37))
    np.testing.assert_array_equal(got.draw_n, np.arange(111))
    epochs = got.row_n.reshape(3, 37)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(rows, (3, 1)))
    for first, second in ((0, 1), (1, 2), (0, 2)):
        assert (epochs[first] != epochs[second]).any()


def test_draws_depend_on_rows_and_seed_alone():
    rows = np.arange(50)
    one = data.draws(data.order(rows, seed=1), 0, 48).row_n
    np.testing.assert_array_equal(one, data.draws(data.order(rows.tolist(), seed=1), 0, 48).row_n)
    assert (one != data.draws(data.order(rows, seed=2), 0, 48).row_n).any()
    plain = data.draws(data.order(rows, seed=1, shuffle=False), 0, 52)
    np.testing.assert_array_equal(plain.row_n, [*range(50), 0, 1])


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_draws_are_the_same_whatever_the_batch_and_the_processes(processes):
    whole = data.draws(data.order(np.arange(23), seed=5), 0, 96)
    order = data.order(np.arange(23), seed=5)
    for n in (4, 8, 32):
        parts = [
            data.draws(order, cursor, n, process, processes)
            for cursor in range(0, 96, n)
            for process in range(processes)
        ]
        for field in data.Draws._fields:
            np.testing.assert_array_equal(
                np.concatenate([getattr(part, field) for part in parts]), getattr(whole, field)
            )


def test_a_run_resumed_at_a_cursor_goes_on_as_if_it_had_not_stopped():
    through = data.draws(data.order(np.arange(31), seed=9), 0, 100)
    resumed = data.draws(data.order(np.arange(31), seed=9), 57, 43)
    np.testing.assert_array_equal(resumed.row_n, through.row_n[57:])
    np.testing.assert_array_equal(resumed.epoch_n, through.epoch_n[57:])


def test_orders_and_draws_that_cannot_be_are_refused():
    with pytest.raises(DataError, match="no rows to draw from"):
        data.order([], seed=0)
    order = data.order([1, 2], seed=0)
    for cursor, n, process, processes in ((-1, 2, 0, 1), (0, 0, 0, 1), (0, 3, 0, 2), (0, 2, 2, 2)):
        with pytest.raises(DataError, match=f"cannot draw {n} rows from cursor {cursor}"):
            data.draws(order, cursor, n, process, processes)


def test_read_keeps_the_order_and_passes_errors_on():
    source = Rows([record(number) for number in range(300)])
    rows = np.random.default_rng(0).permutation(300)
    assert data.read(source, rows, lambda row: len(row.prompt)) == rows.tolist()
    with pytest.raises(ZeroDivisionError):
        data.read(source, rows, lambda row: 1 // len(row.prompt))


def test_prefetch_works_ahead_in_another_thread():
    begun, done = threading.Event(), threading.Event()

    def make(cursor: int) -> tuple[int, str]:
        begun.set()
        assert done.wait(10)
        return cursor, threading.current_thread().name

    with data.Prefetch(make) as batches:
        batches.ahead(3)
        assert begun.wait(10)
        done.set()
        cursor, thread = batches.get(3)
        assert cursor == 3 and thread.startswith("prefetch")
        assert batches.get(4) == (4, threading.current_thread().name)


def test_prefetch_drops_a_wrong_guess():
    made = []
    with data.Prefetch(lambda *key: made.append(key) or key) as batches:
        batches.ahead(1, "a")
        assert batches.get(2, "a") == (2, "a")
        batches.ahead(3, "a")
        assert batches.get(3, "a") == (3, "a")
    assert made.count((3, "a")) == 1


def test_prefetch_raises_in_the_caller_and_goes_on():
    def make(number: int) -> int:
        if number == 2:
            raise RowError("row 2 is bad")
        return number

    with data.Prefetch(make) as batches:
        batches.ahead(2)
        with pytest.raises(RowError, match="row 2 is bad"):
            batches.get(2)
        batches.ahead(5)
        assert batches.get(5) == 5


def test_rows_that_say_nothing_are_counted_by_set_or_the_set_is_refused(capsys):
    def of(*sets):
        rows = [[record(n + 1, combine_tag=tag) for n, tag in enumerate(tags)] for tags in sets]
        whole = mixture.Source([(Rows(held), 1) for held in rows])
        tells = lambda row: row.combine_tag == "safe"
        return whole, data.usable(whole, size, 99, 99, budget=0, tells=tells)

    source, found = of(["safe"] * 3, ["safe", "unknown", "unknown", "safe"])
    assert data.told(source, found, "a tag", "tag it", is_needed=True).tolist() == [0, 1, 2, 3, 6]
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("WARNING")]
    assert warnings == ["WARNING: rows/train: 2 of 4 rows (50.0%), such as row2, lack a tag; they are left out: tag it"]
    assert data.told(source, found, "a tag", "tag it", is_needed=False).tolist() == list(range(7))
    assert "such as row2, lack a tag; on these the judge's word alone counts: tag it" in capsys.readouterr().err
    source, found = of(["safe"] * 3, ["unknown"] * 2)
    with pytest.raises(DataError, match="rows/train: none of 2 rows has a tag: no answer can be rewarded; tag it"):
        data.told(source, found, "a tag", "tag it", is_needed=True)
    assert len(data.told(source, found, "a tag", "tag it", is_needed=False)) == 5
