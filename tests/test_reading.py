"""datasets/reading.py and datasets/arguments.py: order, the bound, errors; the words that all tools share."""

import threading
import time

import pytest

from safer_jax.datasets import arguments, reading


def test_values_come_in_order_and_no_more_than_the_bound_are_under_way():
    lock, begun, taken, most = threading.Lock(), 0, 0, 0

    def slow(index):
        nonlocal begun, most
        with lock:
            begun += 1
            most = max(most, begun - taken)
        time.sleep(0.002 * (index % 3))
        return index

    for expected, value in enumerate(reading.ahead(slow, range(60), threads=3, each=2)):
        assert value == expected
        with lock:
            taken += 1
    assert taken == 60 and 3 <= most <= 7, "two for each of three threads, and the one that is being taken"


def test_an_error_is_raised_in_its_place_and_the_rest_is_let_be():
    seen = []

    def read(index):
        seen.append(index)
        time.sleep(0.002)
        return 1 // (5 - index)

    values = reading.ahead(read, range(1000), threads=2)
    with pytest.raises(ZeroDivisionError):
        for number, _ in enumerate(values):
            assert number < 5
    assert len(seen) < 20
    assert list(reading.ahead(read, range(0), threads=2)) == []


def test_progress_tells_rate_and_time_left(monkeypatch, capsys):
    now = iter([0.0, 1.0, 6.0, 7.0, 12.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    progress = reading.Progress("set", 1000, done=100)
    assert list(progress.of("abcd")) == list("abcd")
    assert capsys.readouterr().err.splitlines() == [
        "set: 102 of 1,000 rows, 0 a second, 2,694 s left",
        "set: 104 of 1,000 rows, 0 a second, 2,688 s left",
    ]


def test_the_words_for_a_set(tmp_path, capsys):
    words = ["--name=demo", "--split=train"]
    args = arguments.parser().parse_args(words)
    assert (args.path, args.threads, args.max_image_bytes, args.root) == ("", 4, 20_000_000, "~/.cache/safer_jax")
    for wrong, told in (
        ("--threads=0", "argument --threads: '0' is no whole number of at least 1"),
        ("--threads=-1", "'-1' is no whole number of at least 1"),
        ("--max-source-pixels=1e6", "'1e6' is no whole number of at least 1"),
        ("--name=dema", "argument --name: invalid choice: 'dema'"),
    ):
        with pytest.raises(SystemExit):
            arguments.parser().parse_args([*words, wrong])
        assert told in capsys.readouterr().err
