"""A judge behind an OpenAI-compatible chat endpoint, such as vLLM or SGLang serve (host code)."""

import base64
import concurrent.futures
import email.utils
import hashlib
import http.client
import json
import os
import random
import re
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any

from safer_jax import config, verdicts
from safer_jax.judge import JudgeError, question, transport
from safer_jax.judge.cache import Cache
from safer_jax.shapes import Record
from safer_jax.verdicts import Rubric, Verdict, VerdictError

REPLY_BYTES = 1_000_000  # a verdict has a few thousand; what is longer is not read on
FIRST_WAIT, LONGEST_WAIT = (
    0.5,
    30.0,
)  # seconds before the first retry, doubling up to the longest; the server may ask for more
PASSING = (408, 429)  # and 5xx: a later request may succeed
SECRET = 8  # characters; a shorter key is a placeholder, and taking it out of texts would harm them
_TYPES = {
    rb"\xff\xd8\xff": "jpeg",
    rb"\x89PNG\r\n\x1a\n": "png",
    rb"RIFF....WEBP": "webp",
    rb"GIF8": "gif",
    rb"BM": "bmp",
}  # the formats of images.decode by their first bytes


class _Failure(Exception):
    """No reply, and why."""


class Judge:
    """Asks a server for each attempt's verdict: `settings.concurrency` requests at once, equal attempts asked once.

    The server is told the rubric's JSON schema. Replies are kept in `settings.cache` by the hash of all that was asked:
    model, texts, images and sampling settings, but not the address, so another model needs another name. An attempt is
    unjudged, and nothing is kept, where no reply comes within `settings.deadline` seconds, where the server refuses
    (statuses other than 408, 429 and 5xx are not tried again), and where the reply is no verdict.
    Raises JudgeError for a key that is not in the environment or cannot be sent, and for a cache that cannot be written.
    """

    def __init__(self, settings: config.Judge, rubric: Rubric):
        self.rubric, self._settings = rubric, settings
        self._cache = Cache(settings.cache) if settings.cache else None
        self._url = settings.url.rstrip("/") + "/chat/completions"
        self._key = _key(settings.key_env)
        self._headers = {"Content-Type": "application/json", "Connection": "close"}
        if self._key:
            self._headers["Authorization"] = f"Bearer {self._key}"

    def __call__(self, records: Sequence[Record], responses: Sequence[str]) -> list[Verdict]:
        keys = [self._hash(record, response) for record, response in zip(records, responses, strict=True)]
        different = {key: (key, *pair) for key, *pair in zip(keys, records, responses, strict=True)}
        with concurrent.futures.ThreadPoolExecutor(self._settings.concurrency, thread_name_prefix="judge") as pool:
            judged = dict(zip(different, pool.map(lambda asked: self._judge(*asked), different.values()), strict=True))
        return [judged[key] for key in keys]

    def _judge(self, key: str, record: Record, response: str) -> Verdict:
        kept = self._cache.get(key) if self._cache else None
        text = ""
        try:
            text = self._ask(record, response) if kept is None else kept
            verdict = verdicts.parse(text, self.rubric)
        except (_Failure, VerdictError) as error:
            return verdicts.failed(self.rubric, self._clean(f"record {record.id!r}: {error}"), text)
        if self._cache and kept is None:
            self._cache.put(key, text)
        return verdict._replace(comment=_encodable(verdict.comment))

    def _ask(self, record: Record, response: str) -> str:
        """What the judge writes. Raises _Failure, or VerdictError where the reply is no chat completion."""
        body = json.dumps(self._body(record, response, secrets.token_hex(8), _data_url)).encode()
        start = time.monotonic()
        end = start + self._settings.deadline
        for number in range(1, self._settings.retries + 2):
            asked_wait = 0.0
            try:
                reply = transport.post(self._url, self._headers, body, end, REPLY_BYTES)
            except transport.TooLong as error:
                raise _Failure(str(error)) from error
            except (OSError, http.client.HTTPException) as error:
                problem = f"{type(error).__name__}: {error}"
            else:
                text = self._clean(reply.body.decode("utf-8", "replace"))
                if 200 <= reply.status < 300:
                    return _content(text)
                problem = f"HTTP {reply.status} {_hint(reply)}{text[:200]!r}"
                if reply.status not in PASSING and reply.status < 500:
                    raise _Failure(problem)
                asked_wait = _retry_after(reply.headers.get("Retry-After", ""))
            wait = max(asked_wait, min(FIRST_WAIT * 2 ** (number - 1), LONGEST_WAIT)) * random.uniform(1, 1.5)
            if number > self._settings.retries or time.monotonic() + wait > end:
                break
            time.sleep(wait)
        spent = f"request {number}, {time.monotonic() - start:.1f} s of judge.deadline = {self._settings.deadline:g}"
        raise _Failure(f"{problem} ({spent})")

    def _body(self, record: Record, response: str, word: str, image: Callable[[bytes, str], str]) -> dict[str, Any]:
        """The request, with `image` writing each of the record's files."""
        names = [f"image {number}" for number in range(1, len(record.images) + 1)]
        urls = [image(data, name) for data, name in zip(record.images, names, strict=True)]
        parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        text = question.material(question.request(record), response, word, self.rubric.is_of_request)
        parts.append({"type": "text", "text": text})
        schema = {"name": "verdict", "strict": True, "schema": verdicts.schema(self.rubric)}
        return {
            "model": self._settings.model,
            "messages": [
                {"role": "system", "content": question.instruction(self.rubric)},
                {"role": "user", "content": parts},
            ],
            "temperature": self._settings.temperature,
            "max_completion_tokens": self._settings.max_tokens,  # max_tokens is its older name, which some servers refuse
            "response_format": {"type": "json_schema", "json_schema": schema},
        }

    def _hash(self, record: Record, response: str) -> str:
        asked = self._body(record, response, "", lambda data, _: hashlib.sha256(data).hexdigest())
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

    def _clean(self, text: str) -> str:
        """Without the key, which a server may repeat in what it says of it."""
        return text.replace(self._key, "[key]") if len(self._key) >= SECRET else text


def _key(name: str) -> str:
    """The key in the environment variable of this name, "" for none; no message shows it."""
    if not name:
        return ""
    key = os.environ.get(name, "")
    if not key:
        raise JudgeError(
            f"judge.key_env = {name!r}: the environment has no such variable; export it, or leave key_env empty"
        )
    if not re.fullmatch(r"[!-~]+", key):
        raise JudgeError(f"judge.key_env = {name!r}: the variable's value has characters that no key has; set it again")
    return key


def _data_url(data: bytes, name: str) -> str:
    kind = next((kind for magic, kind in _TYPES.items() if re.match(magic, data, re.DOTALL)), None)
    if kind is None:
        raise _Failure(f"{name} begins {data[:8]!r}, which is none of {', '.join(_TYPES.values())}")
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _content(text: str) -> str:
    """What a chat completion says. Raises VerdictError for one that was cut or refused, and for anything else."""
    try:
        choice = json.loads(text)["choices"][0]
        message, is_cut = choice["message"], choice.get("finish_reason") == "length"
        content, refusal = message.get("content"), message.get("refusal")
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
        raise VerdictError(f"no chat completion ({type(error).__name__}): {text[:80]!r}") from error
    if is_cut:
        raise VerdictError("the verdict is cut at judge.max_tokens; raise it")
    if refusal:
        raise VerdictError(f"the judge refuses: {str(refusal)[:80]!r}")
    if not isinstance(content, str):
        raise VerdictError(f"a chat completion whose content is {content!r:.80}, not a text")
    return _encodable(content)


def _encodable(text: str) -> str:
    """JSON can write half a character, which no file can hold."""
    return text.encode("utf-8", "replace").decode()


def _hint(reply: transport.Reply) -> str:
    if 300 <= reply.status < 400:
        return f"to {reply.headers.get('Location', '')[:200]!r}, not followed; set judge.url to where the server is: "
    return ""


def _retry_after(text: str) -> float:
    """Seconds that a server asks to wait, given as a number or a date; 0 where it asks for nothing readable."""
    if re.fullmatch(r"\d{1,9}", text, re.ASCII):
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0
