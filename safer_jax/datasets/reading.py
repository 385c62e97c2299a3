"""Many rows read at once, in order and a bounded number ahead, and a line of how far that is (host code)."""

import collections
import concurrent.futures
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any


def ahead(function: Callable[[int], Any], indices: Iterable[int], threads: int, each: int = 4) -> Iterator[Any]:
    """function of each index, in order; at most `each` values a thread are under way or wait."""
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        waiting: collections.deque[concurrent.futures.Future] = collections.deque()
        try:
            for index in indices:
                waiting.append(pool.submit(function, index))
                if len(waiting) >= each * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # after an error nobody waits for the rest
            for value in waiting:
                value.cancel()


class Progress:
    """A line on stderr every few seconds: how far, how fast, how long yet. `done` were there before."""

    def __init__(self, name: str, total: int, done: int = 0, unit: str = "rows"):
        self._name, self._total, self._done, self._unit, self._before = name, total, done, unit, done
        self._begin = self._said = time.monotonic()

    def add(self, count: int = 1) -> None:
        """So many more are done."""
        self._done += count
        now = time.monotonic()
        if now - self._said > 5:
            rate = (self._done - self._before) / (now - self._begin)
            told = f"{self._done:,} of {self._total:,} {self._unit}, {rate:,.0f} a second"
            print(f"{self._name}: {told}, {(self._total - self._done) / rate:,.0f} s left", file=sys.stderr, flush=True)
            self._said = now

    def of(self, values: Iterable[Any]) -> Iterator[Any]:
        """The same values, each counted."""
        for value in values:
            yield value
            self.add()
