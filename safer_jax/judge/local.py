"""Judges whose model runs beside the policy: what it is asked, and what becomes of what it says (host code).

The model itself is a function that is given as an argument, for this package knows no devices. There are two forms:

    local   it writes a verdict in JSON, as a judge behind a server does
    score   it is asked one question after another, and a score is the expected value of its answer: nothing is parsed
"""

import concurrent.futures
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from safer_jax import verdicts
from safer_jax.judge import question
from safer_jax.prompts import Encoded, PromptError
from safer_jax.shapes import Record
from safer_jax.verdicts import Rubric, Verdict, VerdictError

THREADS = 4  # that decode images; while one does, the others run
READY = "I have read it."  # the judge's turn between the material and a question
_FENCE = re.compile(r"\s*```(?:json)?\s*(.*?)\s*```\s*", re.DOTALL)  # chat models like to frame JSON so


class Question(NamedTuple):
    """A user's turn about the material, and what each of its answers is worth."""

    text: str
    worth: dict[str, float]


class Judge:
    """Asks a model about every attempt.

    encode: a record to a prompt; PromptError for one that cannot be asked, which is no verdict then
    ask: prompts to what the model says of each. Every call of the judge calls it once, with no prompt too, since it may
        be a collective of all processes.
    read: what is said to a verdict; VerdictError where it is none. `written` or `rated`.
    """

    def __init__(
        self,
        rubric: Rubric,
        encode: Callable[[Record], Encoded],
        ask: Callable[[Sequence[Encoded]], Sequence[Any]],
        read: Callable[[Any, Rubric], Verdict],
    ):
        self.rubric, self._encode, self._ask, self._read = rubric, encode, ask, read

    def __call__(self, records: Sequence[Record], responses: Sequence[str]) -> list[Verdict]:
        pairs = list(zip(records, responses, strict=True))
        with concurrent.futures.ThreadPoolExecutor(THREADS, thread_name_prefix="judge") as pool:
            encoded = list(pool.map(lambda pair: self._try(*pair), pairs))
        said = iter(self._ask([prompt for prompt in encoded if not isinstance(prompt, PromptError)]))
        return [
            self._verdict(record, prompt if isinstance(prompt, PromptError) else next(said))
            for record, prompt in zip(records, encoded, strict=True)
        ]

    def _try(self, record: Record, response: str) -> Encoded | PromptError:
        try:
            return self._encode(asked(record, response, self.rubric.is_of_request))
        except PromptError as error:
            return error

    def _verdict(self, record: Record, said: Any) -> Verdict:
        try:
            if isinstance(said, PromptError):
                raise said
            return self._read(said, self.rubric)
        except (PromptError, VerdictError) as error:
            return verdicts.failed(self.rubric, f"record {record.id!r}: {error}", said if isinstance(said, str) else "")


def asked(record: Record, response: str, is_of_request: bool = False) -> Record:
    """What the judge is shown of an attempt: the record's images, and all that was said as material.

    The word that marks them off is a hash of both, so no text can hold it, and equal attempts are asked in equal words.
    """
    request = question.request(record)
    word = hashlib.sha256(json.dumps([request, response]).encode()).hexdigest()[:16]
    return record._replace(prompt=question.material(request, response, word, is_of_request), history=())


def written(text: str | None, rubric: Rubric) -> Verdict:
    """The verdict in what the judge wrote; None is a text that the length limit cut. Raises VerdictError."""
    if text is None:
        raise VerdictError("the verdict is cut at judge.max_tokens; raise it")
    framed = _FENCE.fullmatch(text)
    return verdicts.parse(framed[1] if framed else text, rubric)._replace(raw=text)


def grading(rubric: Rubric) -> str:
    """The system text of the form `score`: how to grade. What is asked comes behind the material."""
    return question.task(rubric)


def questions(rubric: Rubric) -> list[Question]:
    """The J questions of the form `score`, in the order of the rubric's names.

    Ten is two tokens to Qwen's tokenizer, so a score is asked for as a digit: 0..9 stand for 1..10, 0..6 for -3..3.
    """
    what = "request" if rubric.is_of_request else "response"
    score = f"How true is this of the {what}? {{}} Reply with one digit, 0 (not at all) to {{}} (entirely), and nothing else."
    flag = f"Is this true of the {what}? {{}} Reply with one word, yes or no, and nothing else."
    return [
        *(
            Question(score.format(text, len(digits) - 1), digits)
            for text, digits in ((text, _digits(*rubric.range(name))) for name, text in rubric.scores.items())
        ),
        *(Question(flag.format(text), {"yes": 1.0, "no": 0.0}) for text in rubric.flags.values()),
    ]


def _digits(low: int, high: int) -> dict[str, float]:
    """The digits by which a score is asked for, and what each is worth: a step each, or nine steps where it has more."""
    steps = min(high - low, 9)
    return {str(digit): low + (high - low) * digit / steps for digit in range(steps + 1)}


def spellings(answer: str) -> tuple[str, ...]:
    """How a judge may write an answer: with a space before it or none, with a capital or none."""
    words = dict.fromkeys((answer, answer.capitalize()))
    return tuple(space + word for word in words for space in ("", " "))


def rated(value_J: np.ndarray, rubric: Rubric) -> Verdict:
    """The verdict of expected values. Raises VerdictError where one is not finite."""
    if not np.isfinite(value_J).all():
        raise VerdictError("the judge's logits are not finite; run it with model.dtype = 'float32'")
    low_J, high_J = np.array([rubric.range(name) for name in rubric.names]).T
    return Verdict(np.clip(value_J, low_J, high_J).astype(np.float32))  # probabilities add up to 1 but for rounding
