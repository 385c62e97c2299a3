"""One HTTP request that ends at its deadline and reads no more than it should, whatever the server does (host code).

Timeouts of the standard library are per read: a server that sends a byte now and then holds a client for ever. Here the
time left is set anew before every read and write, and all that arrives, headers included, is counted.
"""

import contextlib
import functools
import http.client
import io
import socket
import ssl
import time
import urllib.parse
from collections.abc import Mapping
from typing import NamedTuple


class TooLong(Exception):
    """The server sends more than a reply may have."""


class Reply(NamedTuple):
    """What came back, redirects among it: none is followed."""

    status: int
    headers: Mapping[str, str]  # case does not matter in a lookup
    body: bytes


def post(url: str, headers: dict[str, str], body: bytes, end: float, most: int) -> Reply:
    """POST, until `end` on time.monotonic's clock; only the lookup of the host's name is not held to it.

    Proxies of the environment are not used. Raises OSError (TimeoutError at the deadline) or http.client.HTTPException
    where no whole reply comes, TooLong beyond `most` bytes.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "https":
        made = http.client.HTTPSConnection(parts.hostname, parts.port, timeout=_left(end), context=_context())
    else:
        made = http.client.HTTPConnection(parts.hostname, parts.port, timeout=_left(end))
    with contextlib.closing(made) as connection:
        connection.connect()
        connection.sock = _Timed(connection.sock, end, most)
        connection.request("POST", parts.path, body, headers)
        with connection.getresponse() as response:
            try:
                data = response.read(most)
            except ValueError as error:  # of a negative chunk size
                raise http.client.HTTPException(f"malformed reply ({error})") from error
            if response.length:  # a read of so many bytes does not say that the body is cut
                raise http.client.IncompleteRead(data, response.length)
            return Reply(response.status, response.headers, data)


@functools.cache
def _context() -> ssl.SSLContext:
    """Reading the system's certificates takes longer than a request."""
    return ssl.create_default_context()


def _left(end: float) -> float:
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    return left


class _Timed:
    """As much of a socket as http.client uses, each step held to the deadline."""

    def __init__(self, inner: socket.socket, end: float, most: int):
        self._inner, self._end, self._most = inner, end, most

    def sendall(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            self._inner.settimeout(_left(self._end))
            view = view[self._inner.send(view) :]

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Reader(self._inner, self._end, self._most))

    def close(self) -> None:
        self._inner.close()


class _Reader(io.RawIOBase):
    def __init__(self, inner: socket.socket, end: float, most: int):
        self._inner, self._end, self._most, self._seen = inner, end, most, 0
        self._file = inner.makefile("rb", buffering=0)  # keeps the socket open when http.client lets go of it

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        self._inner.settimeout(_left(self._end))
        count = self._file.readinto(buffer)
        self._seen += count
        if self._seen > self._most:
            raise TooLong(f"the reply is longer than {self._most} bytes")
        return count

    def close(self) -> None:
        self._file.close()
        super().close()
