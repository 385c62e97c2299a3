"""A judge that stops the run when too many attempts of late could not be judged (host code)."""

import collections
from collections.abc import Sequence

from safer_jax import verdicts
from safer_jax.shapes import Record
from safer_jax.verdicts import Verdict


class JudgeDown(Exception):
    """Too many attempts without a verdict: says how many, and the last error."""


class Breaker:
    """Asks `judge`, and raises JudgeDown once more than `max_failed` of the last `window` attempts have no verdict.

    One failed attempt is masked and costs little; of a judge that is down a run would learn nothing and not say so. At
    most `window` attempts are asked at a time, so that an outage is seen after as many, however large the batch.
    """

    def __init__(self, judge: verdicts.Judge, max_failed: float, window: int):
        self.rubric, self._judge = judge.rubric, judge
        self._allowed, self._window = max_failed * window, window
        self._failed: collections.deque[bool] = collections.deque(maxlen=window)
        self._last_error = ""

    def __call__(self, records: Sequence[Record], responses: Sequence[str]) -> list[Verdict]:
        judged = []
        for start in range(0, len(records), self._window):
            part = slice(start, start + self._window)
            judged += self._judge(records[part], responses[part])
            self._count(judged[part])
        return judged

    def _count(self, judged: Sequence[Verdict]) -> None:
        self._failed.extend(not verdict.is_valid for verdict in judged)
        self._last_error = next((verdict.error for verdict in reversed(judged) if verdict.error), self._last_error)
        failed = sum(self._failed)
        if failed > self._allowed:  # with fewer than `window` seen too: no later verdict could make up for it
            raise JudgeDown(
                f"{failed} of the last {len(self._failed)} attempts could not be judged, judge.max_failed allows "
                f"{self._allowed:g} of {self._window}; mend the judge and start the same command again. The last: {self._last_error}"
            )
