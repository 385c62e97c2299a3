"""The HTTP judge against a real server on loopback that answers well, badly, slowly, for ever or not at all (host code)."""

import base64
import dataclasses
import http.server
import io
import json
import re
import socket
import struct
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import numpy as np
import pytest
import tokenizers
from PIL import Image

from configs import base
from safer_jax import config, verdicts
from safer_jax.judge import JudgeError, endpoint, question
from safer_jax.shapes import Record

RUBRIC = verdicts.RUBRICS["safer_vlm"]
KEY = "sk-1234567890abcdef"


def picture(kind="PNG", level=200):
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (level, 0, 0)).save(file, kind)
    return file.getvalue()


RECORD = Record("row-1", "set", (picture(), picture("JPEG")), "Is the ladder safe to climb?")


def values(score=7, **changes):
    made = {"comment": "fine", **dict.fromkeys(RUBRIC.scores, score), **dict.fromkeys(RUBRIC.flags, False)}
    return made | changes


def completion(content, finish="stop", **message):
    message = {"role": "assistant", "content": content, **message}
    return {
        "id": "1",
        "object": "chat.completion",
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
    }


class Server(http.server.ThreadingHTTPServer):
    """Calls `behave(handler, n)` for the n-th request; keeps all requests and how many bytes went out."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, behave):
        super().__init__(("127.0.0.1", 0), Handler)
        self.behave, self.requests, self.sent = behave, [], 0
        self.lock, self.released = threading.Lock(), threading.Event()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request, client_address):
        """A client that hangs up is what some tests want."""


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.lock:
            self.server.requests.append((self.path, dict(self.headers), json.loads(body)))
            number = len(self.server.requests)
        self.server.behave(self, number)

    def reply(self, body, status=200, **headers):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.write(data)

    def write(self, data):
        self.wfile.write(data)
        with self.server.lock:
            self.server.sent += len(data)

    def log_message(self, *_):
        pass


def judged_text(request):
    """The response that a request shows, found as a judge would find it."""
    text = request["messages"][1]["content"][-1]["text"]
    word = text.split(" REQUEST\n")[0]
    return re.search(f"{word} RESPONSE\n(.*)\n{word} END", text, re.DOTALL)[1]


def well(handler, _):
    """Scores are the number that the response is."""
    text = judged_text(handler.server.requests[-1][2])
    handler.reply(completion(json.dumps(values(int(text) if text.isdigit() else 7))))


@pytest.fixture
def serve():
    servers = []

    def start(behave=well):
        servers.append(Server(behave))
        return servers[-1]

    yield start
    for server in servers:
        server.released.set()
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(endpoint, "FIRST_WAIT", 0.01)


def settings(url, **changes):
    made = config.resolve(base.get_config()).judge
    given = {"kind": "http", "url": url, "model": "grm", "deadline": 5.0, "retries": 2, "concurrency": 4, **changes}
    return dataclasses.replace(made, **given)


def ask(url, response="a response", record=RECORD, **changes):
    (verdict,) = endpoint.Judge(settings(url, **changes), RUBRIC)([record], [response])
    return verdict


def check_failed(verdict, *words):
    assert not verdict.is_valid and np.isnan(verdict.value_J).all(), verdict
    assert [word for word in ("'row-1'", *words) if word not in verdict.error] == [], verdict.error


def test_a_good_reply_and_the_request_for_it(serve, monkeypatch):
    server = serve()
    monkeypatch.setenv("JUDGE_KEY", KEY)
    verdict = ask(server.url + "/", "9", key_env="JUDGE_KEY", temperature=0.3, max_tokens=77)
    assert verdict.value_J.tolist() == [9] * 7 + [0] * 4 and verdict.comment == "fine" and verdict.is_valid
    ((path, headers, request),) = server.requests
    assert path == "/v1/chat/completions" and headers["Authorization"] == f"Bearer {KEY}"
    assert (request["model"], request["temperature"], request["max_completion_tokens"]) == ("grm", 0.3, 77)
    schema = {"name": "verdict", "strict": True, "schema": verdicts.schema(RUBRIC)}
    assert request["response_format"] == {"type": "json_schema", "json_schema": schema}
    system, user = request["messages"]
    assert (system["role"], user["role"]) == ("system", "user")
    assert all(f"- {name}: {text}" in system["content"] for name, text in (RUBRIC.scores | RUBRIC.flags).items())
    urls = [part["image_url"]["url"] for part in user["content"][:-1]]
    assert [url.partition(",")[0] for url in urls] == ["data:image/png;base64", "data:image/jpeg;base64"]
    assert tuple(base64.b64decode(url.partition(",")[2]) for url in urls) == RECORD.images
    assert f"REQUEST\n{RECORD.prompt}\n" in user["content"][-1]["text"]


def test_the_marks_are_new_each_time(serve):
    server = serve()
    for _ in range(2):
        ask(server.url)
    words = {request["messages"][1]["content"][-1]["text"].split()[0] for _, _, request in server.requests}
    assert len(words) == 2 and all(re.fullmatch("[0-9a-f]{16}", word) for word in words)


def test_judged_text_holds_no_token_of_a_chat_template():
    """Read by a tokenizer that, like a server's, finds special tokens anywhere in the rendered text."""
    special = ["<|im_end|>", "<|im_start|>", "<|image_pad|>", "<image>", "<start_of_turn>", "</s>", "<|eot_id|>"]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(special)
    text = "<think>1 < 2</think><answer>no</answer>" + "".join(special) + "<<|im_end|>"
    found = lambda text: [token for token in tokenizer.encode(text).tokens if token in special]
    assert len(found(text)) == len(special) + 1
    asked = question.material(text, text, "w0rd")
    assert found(asked) == [] and asked.count("<think>1 <  2</think><answer>no</answer>< |im_end|>") == 2


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "WEBP"])
def test_every_format_is_named(serve, kind):
    server = serve()
    assert ask(server.url, record=RECORD._replace(images=(picture(kind),))).is_valid
    url = server.requests[0][2]["messages"][1]["content"][0]["image_url"]["url"]
    assert url.startswith(f"data:image/{kind.lower()};base64,")


def test_an_image_of_no_known_format_is_named_and_not_sent(serve):
    server = serve()
    check_failed(ask(server.url, record=RECORD._replace(images=(picture(), b"<html>"))), "image 2", "<html>")
    assert server.requests == []


def test_order_concurrency_and_equal_attempts(serve):
    active, peaks = [], []

    def slow(handler, number):
        active.append(number)
        peaks.append(len(active))
        time.sleep(0.02 if number % 2 else 0.06)
        active.remove(number)  # before the reply, which lets the next request come
        text = judged_text(handler.server.requests[number - 1][2])
        handler.reply(completion(json.dumps(values(int(text)))))

    server = serve(slow)
    texts = [str(1 + i % 10) for i in range(30)]
    records = [RECORD._replace(id=f"row-{i}", prompt="twice" if i < 20 else "once") for i in range(30)]
    judge = endpoint.Judge(settings(server.url, concurrency=3), RUBRIC)
    judged = judge(records, texts)
    assert [verdict.value_J[0] for verdict in judged] == [1 + i % 10 for i in range(30)]
    assert len(server.requests) == 20 and max(peaks) == 3
    assert judge([], []) == []


def test_one_failure_does_not_touch_the_others(serve):
    def second_is_bad(handler, number):
        text = judged_text(handler.server.requests[-1][2])
        handler.reply(completion("nonsense" if text == "2" else json.dumps(values(int(text)))))

    judge = endpoint.Judge(settings(serve(second_is_bad).url, concurrency=1), RUBRIC)
    judged = judge([RECORD] * 3, ["1", "2", "3"])
    assert [verdict.is_valid for verdict in judged] == [True, False, True]
    assert judged[0].value_J[0] == 1 and judged[2].value_J[0] == 3
    check_failed(judged[1], "not JSON", "nonsense")
    assert [verdict.raw for verdict in judged] == [json.dumps(values(1)), "nonsense", json.dumps(values(3))]


NESTED = "[" * 100_000
CONTENT = {  # what the judge writes: the verdict's words
    "nonsense": ("The response is fine.", "not JSON"),
    "empty": ("", "not JSON"),
    "NaN": (json.dumps(values(answer_help=float("nan"))), "NaN"),
    "Infinity": (json.dumps(values(answer_help=float("inf"))), "Infinity"),
    "beyond a float": (json.dumps(values()).replace("7", "1e999", 1), "inf"),
    "0": (json.dumps(values(answer_help=0)), "answer_help is 0, not a number from 1 to 10"),
    "11": (json.dumps(values(think_logic=11)), "think_logic is 11"),
    "score as text": (json.dumps(values(think_logic="9")), "think_logic is '9'"),
    "score as flag": (json.dumps(values(think_logic=True)), "think_logic is True"),
    "flag as score": (json.dumps(values(answer_unsupported=1)), "answer_unsupported is 1"),
    "missing": (json.dumps({k: v for k, v in values().items() if k != "answer_safety"}), "no answer_safety"),
    "extra": (json.dumps(values(overall=10)), "overall: not asked for"),
    "list": ("[10, 10]", "a list, not an object"),
    "nested": (NESTED, "not JSON"),
    "fenced": (f"```json\n{json.dumps(values())}\n```", "not JSON"),
    "no text": (None, "content is None, not a text"),
    "parts": ([{"type": "text", "text": "10"}], "not a text"),
}


@pytest.mark.parametrize("name", CONTENT)
def test_what_is_no_verdict_is_an_error_and_not_asked_again(serve, name, tmp_path):
    content, words = CONTENT[name]
    server = serve(lambda handler, _: handler.reply(completion(content)))
    check_failed(ask(server.url, cache=str(tmp_path)), words)
    assert len(server.requests) == 1 and not [path for path in tmp_path.rglob("*") if path.is_file()]


BODY = {  # what the server sends instead of a chat completion
    "html": (b"<html>", "no chat completion"),
    "nothing": (b"", "no chat completion"),
    "list": (b"[]", "no chat completion"),
    "text for choices": (b'{"choices": "no"}', "no chat completion"),
    "no choices": (b'{"choices": []}', "no chat completion"),
    "null message": (b'{"choices": [{"message": null}]}', "no chat completion"),
    "nested": (NESTED.encode(), "no chat completion (RecursionError)"),
    "long number": (b"1" * 5000, "no chat completion"),
    "not UTF-8": (b"\xff\xfe\xff", "no chat completion"),
    "cut": (json.dumps(completion("{", "length")).encode(), "judge.max_tokens"),
    "refused": (json.dumps(completion(None, refusal="I would rather not")).encode(), "rather not"),
}


@pytest.mark.parametrize("name", BODY)
def test_what_is_no_completion_is_an_error_and_not_asked_again(serve, name):
    body, words = BODY[name]
    server = serve(lambda handler, _: handler.reply(body))
    check_failed(ask(server.url), words)
    assert len(server.requests) == 1


def test_half_a_character_in_a_comment_can_be_written_to_a_file(serve, tmp_path):
    content = json.dumps(values()).replace("fine", "\\ud800 fine \ud800")
    server = serve(lambda handler, _: handler.reply(completion(content)))
    for _ in range(2):
        verdict = ask(server.url, cache=str(tmp_path))
        assert verdict.is_valid and verdict.comment.encode() == b"? fine ?"
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_passing_failures_are_tried_again(serve, status):
    behave = lambda handler, number: handler.reply(b"busy", status) if number < 3 else well(handler, number)
    server = serve(behave)
    assert ask(server.url, "5").value_J[0] == 5 and len(server.requests) == 3
    server = serve(lambda handler, _: handler.reply(b"busy", status))
    check_failed(ask(server.url), f"HTTP {status}", "busy", "request 3")
    assert len(server.requests) == 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
def test_refusals_are_not_tried_again(serve, status):
    server = serve(lambda handler, _: handler.reply(b"model 'grm' is unknown", status))
    check_failed(ask(server.url), f"HTTP {status}", "'grm' is unknown")
    assert len(server.requests) == 1


def test_retry_after_is_waited_for(serve):
    def busy(handler, number):
        handler.reply(b"", 429, Retry_After="1") if number == 1 else well(handler, number)

    start = time.monotonic()
    assert ask(serve(busy).url).is_valid
    assert 1 <= time.monotonic() - start < 2.5


@pytest.mark.parametrize("wait", ["3600", format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)])
def test_a_wait_beyond_the_deadline_is_not_begun(serve, wait):
    server = serve(lambda handler, _: handler.reply(b"later", 503, Retry_After=wait))
    start = time.monotonic()
    check_failed(ask(server.url), "HTTP 503", "later", "request 1")
    assert time.monotonic() - start < 1 and len(server.requests) == 1


@pytest.mark.parametrize("wait", ["", "soon", "-5", "nan", "1e9", "9" * 400, "Wed, 99 Nov 2099 00:00:00 GMT"])
def test_an_unreadable_wait_is_none(serve, wait):
    assert endpoint._retry_after(wait) == 0


def test_the_waits_grow_and_differ(serve, monkeypatch):
    waits = []
    monkeypatch.setattr(endpoint.time, "sleep", waits.append)
    monkeypatch.setattr(endpoint, "FIRST_WAIT", 1.0)
    server = serve(lambda handler, _: handler.reply(b"", 500))
    for _ in range(2):
        ask(server.url, retries=7, deadline=600.0)
    for part in (waits[:7], waits[7:]):
        assert [low <= wait <= 1.5 * low for low, wait in zip([1, 2, 4, 8, 16, 30, 30], part, strict=True)] == [
            True
        ] * 7
    assert waits[:7] != waits[7:]


def refused(_):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return f"http://127.0.0.1:{taken.getsockname()[1]}/v1"


def reset(handler, _):
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    for part in (handler.rfile, handler.wfile, handler.connection):
        part.close()


def raw(data):
    def behave(handler, _):
        handler.wfile.write(data)
        handler.close_connection = True

    return behave


HEAD = b"HTTP/1.1 200 OK\r\n"
BROKEN = {
    "reset": (reset, "ConnectionResetError"),
    "closed": (raw(b""), "RemoteDisconnected"),
    "no HTTP": (raw(b"hello\r\n\r\n"), "BadStatusLine"),
    "cut body": (raw(HEAD + b"Content-Length: 100\r\n\r\n{"), "IncompleteRead"),
    "cut chunk": (raw(HEAD + b"Transfer-Encoding: chunked\r\n\r\n64\r\n{"), "IncompleteRead"),
    "negative chunk": (raw(HEAD + b"Transfer-Encoding: chunked\r\n\r\n-5\r\n{"), "malformed reply"),
    "no chunk": (raw(HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{"), "IncompleteRead"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_connections_are_tried_again(serve, name):
    behave, words = BROKEN[name]
    server = serve(behave)
    check_failed(ask(server.url), words, "request 3")
    assert len(server.requests) == 3
    server = serve(lambda handler, number: behave(handler, number) if number == 1 else well(handler, number))
    assert ask(server.url).is_valid and len(server.requests) == 2


def test_a_server_that_is_not_there(serve):
    check_failed(ask(refused(None)), "ConnectionRefusedError", "request 3")


def drip(handler, data):
    for byte in data:
        handler.wfile.write(bytes([byte]))
        if handler.server.released.wait(0.02):
            return


SLOW = {
    "stall": lambda handler, _: handler.server.released.wait(10),
    "stall after the head": lambda handler, _: (
        handler.wfile.write(HEAD + b"Content-Length: 9\r\n\r\n"), handler.server.released.wait(10)
    ),
    "drip of a head": lambda handler, _: drip(handler, HEAD + b"X-Long: " + b"x" * 900),
    "drip of a body": lambda handler, _: (
        handler.wfile.write(HEAD + b"Content-Length: 900\r\n\r\n"), drip(handler, b" " * 900)
    ),
    "continue for ever": lambda handler, _: drip(handler, b"HTTP/1.1 100 Continue\r\n\r\n" * 40),
}  # fmt: skip


@pytest.mark.parametrize("name", SLOW)
def test_the_deadline_holds_whatever_trickles_in(serve, name):
    server = serve(SLOW[name])
    start = time.monotonic()
    check_failed(ask(server.url, deadline=0.4), "TimeoutError", "judge.deadline = 0.4")
    assert 0.3 < time.monotonic() - start < 1.5 and len(server.requests) == 1


def test_the_deadline_covers_all_retries(serve):
    def slow(handler, _):
        handler.server.released.wait(0.15)
        handler.reply(b"", 500)

    server = serve(slow)
    start = time.monotonic()
    check_failed(ask(server.url, deadline=0.5, retries=50), "judge.deadline = 0.5")
    assert 0.3 < time.monotonic() - start < 1.2 and len(server.requests) in (2, 3, 4)


def test_a_server_that_reads_slowly_cannot_hold_us():
    """The request is larger than the buffers between the two, and every single write goes through in time."""
    with socket.create_server(("127.0.0.1", 0)) as slow:

        def sip():
            connection, _ = slow.accept()
            with connection:
                while connection.recv(100_000):
                    time.sleep(0.02)

        threading.Thread(target=sip, daemon=True).start()
        record = RECORD._replace(images=(picture() + bytes(20_000_000),))
        start = time.monotonic()
        check_failed(ask(f"http://127.0.0.1:{slow.getsockname()[1]}/v1", record=record, deadline=0.4), "TimeoutError")
        assert time.monotonic() - start < 2


BIG = b"x" * 1_000_000
LONG = {
    "chunked": (b"Transfer-Encoding: chunked\r\n\r\n", b"%x\r\n%s\r\n" % (len(BIG), BIG)),
    "with its length": (b"Content-Length: 1000000000\r\n\r\n", BIG),
    "until the end": (b"Connection: close\r\n\r\n", BIG),
    "chunk of size -1": (b"Transfer-Encoding: chunked\r\n\r\n-1\r\n", BIG),
    "headers": (b"", b"X: x\r\n" * 100_000),
}


@pytest.mark.parametrize("status", [b"200 OK", b"500 No"])
@pytest.mark.parametrize("name", LONG)
def test_a_gigabyte_is_not_read(serve, name, status):
    head, piece = LONG[name]

    def behave(handler, _):
        handler.wfile.write(b"HTTP/1.1 " + status + b"\r\n" + head)
        for _ in range(1000):
            handler.write(piece)

    server = serve(behave)
    verdict = ask(server.url, retries=0)
    check_failed(verdict, "got more than 100 headers" if name == "headers" else "longer than 1000000 bytes")
    assert server.sent < 50_000_000  # what stood in the buffers between the two


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed_and_the_key_stays(serve, status, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    other = serve()
    there = other.url.replace("127.0.0.1", "localhost") + "/chat/completions"
    server = serve(lambda handler, _: handler.reply(b"", status, Location=there))
    check_failed(ask(server.url, key_env="JUDGE_KEY"), f"HTTP {status}", there, "not followed", "judge.url")
    assert len(server.requests) == 1 and other.requests == []


def test_the_cache_answers_without_a_request(serve, tmp_path):
    server = serve()
    first = ask(server.url, "9", cache=str(tmp_path / "deep" / "cache"))
    assert first.is_valid and len(server.requests) == 1
    # Another judge, as in another process; the address does not matter, and nobody listens at this one.
    again = ask(refused(None), "9", cache=str(tmp_path / "deep" / "cache"))
    assert again.value_J.tolist() == first.value_J.tolist() and again.comment == first.comment


CHANGES = {
    "model": {"model": "other"},
    "temperature": {"temperature": 0.5},
    "max_tokens": {"max_tokens": 55},
    "response": {"response": "another response"},
    "prompt": {"record": RECORD._replace(prompt="Is the puddle deep?")},
    "image": {"record": RECORD._replace(images=(picture(level=201), RECORD.images[1]))},
    "order of images": {"record": RECORD._replace(images=RECORD.images[::-1])},
    "one image less": {"record": RECORD._replace(images=RECORD.images[:1])},
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_cache_knows_another_question(serve, tmp_path, name):
    server = serve()
    ask(server.url, cache=str(tmp_path))
    assert ask(server.url, cache=str(tmp_path), **CHANGES[name]).is_valid and len(server.requests) == 2


def test_the_cache_knows_another_rubric_and_the_same_question_of_another_record(serve, tmp_path, monkeypatch):
    server = serve()
    ask(server.url, cache=str(tmp_path))
    ask(server.url, cache=str(tmp_path), record=RECORD._replace(id="row-2"))
    assert len(server.requests) == 1
    other = RUBRIC._replace(scores=RUBRIC.scores | {"answer_help": "The answer is kind."})
    endpoint.Judge(settings(server.url, cache=str(tmp_path)), other)([RECORD], ["a response"])
    monkeypatch.setattr(question, "GRADE", question.GRADE + "Be strict.\n")
    ask(server.url, cache=str(tmp_path))
    assert len(server.requests) == 3


@pytest.mark.parametrize("damage", [lambda data: data[:-3], lambda data: data.replace(b"7", b"9"), lambda data: b""])
def test_a_damaged_entry_is_named_and_asked_anew(serve, tmp_path, damage, capsys):
    server = serve()
    ask(server.url, cache=str(tmp_path))
    (entry,) = [path for path in tmp_path.rglob("*") if path.is_file()]
    whole = entry.read_bytes()
    entry.write_bytes(damage(whole))
    assert ask(server.url, cache=str(tmp_path)).value_J[0] == 7
    assert str(entry) in capsys.readouterr().err and len(server.requests) == 2
    assert entry.read_bytes() == whole


def test_failures_are_not_kept(serve, tmp_path):
    replies = ["nonsense", None, json.dumps(values(0)), json.dumps(values(8))]
    server = serve(lambda handler, number: handler.reply(completion(replies[number - 1])))
    judged = [ask(server.url, cache=str(tmp_path)) for _ in range(5)]
    assert [verdict.is_valid for verdict in judged] == [False] * 3 + [True] * 2 and len(server.requests) == 4


def test_a_cache_that_cannot_be_written_is_named(tmp_path, serve):
    (tmp_path / "file").write_text("")
    with pytest.raises(JudgeError, match=r"judge\.cache = .*file/cache.*choose another folder"):
        ask(serve().url, cache=str(tmp_path / "file" / "cache"))


def test_a_disk_that_fills_up_costs_no_verdict(tmp_path, serve, monkeypatch, capsys):
    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    assert ask(serve().url, cache=str(tmp_path)).is_valid
    assert "No space left" in capsys.readouterr().err


def test_the_key_goes_nowhere_else(serve, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    for behave in (
        lambda handler, _: handler.reply(f"key {KEY} is wrong".encode(), 401),
        lambda handler, _: handler.reply(f"key {KEY} is wrong".encode(), 500),
        lambda handler, _: handler.reply(f"key {KEY} is wrong".encode(), 200),
        lambda handler, _: handler.reply(b"", 302, Location=f"/?key={KEY}"),
        raw(f"no HTTP {KEY}\r\n\r\n".encode()),
    ):
        verdict = ask(serve(behave).url, key_env="JUDGE_KEY", cache=str(tmp_path))
        check_failed(verdict, "[key]")
        assert KEY not in verdict.error
    server = serve(lambda handler, _: handler.reply(completion(json.dumps(values(comment=f"I saw {KEY}")))))
    verdict = ask(server.url, key_env="JUDGE_KEY", cache=str(tmp_path))
    assert (
        verdict.is_valid and verdict.comment == "I saw [key]" and server.requests[0][1]["Authorization"].endswith(KEY)
    )
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 1 and KEY not in files[0].read_text() + capsys.readouterr().err
    assert KEY not in repr(endpoint.Judge(settings(server.url, key_env="JUDGE_KEY"), RUBRIC))


@pytest.mark.parametrize("value", [None, "", f"{KEY}\nX-Other: 1", f"{KEY} ", f"{KEY}\u00e9"])
def test_a_key_that_is_missing_or_cannot_be_sent(monkeypatch, value):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("JUDGE_KEY", value)
    with pytest.raises(JudgeError, match=r"judge\.key_env = 'JUDGE_KEY'") as error:
        endpoint.Judge(settings("http://127.0.0.1:1/v1", key_env="JUDGE_KEY"), RUBRIC)
    assert KEY not in str(error.value)


def test_no_key_is_sent_where_none_is_named(serve, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    server = serve()
    assert ask(server.url).is_valid and "Authorization" not in server.requests[0][1]
    monkeypatch.setenv("JUDGE_KEY", "7")  # a placeholder is no secret, and scores stay whole
    assert ask(server.url, "7", key_env="JUDGE_KEY").value_J[0] == 7
