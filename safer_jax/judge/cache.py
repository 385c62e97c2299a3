"""Replies kept on disk by the hash of what was asked, each with a hash of its own (host code)."""

import hashlib
import os
import sys
import tempfile
import threading
from pathlib import Path

from safer_jax.judge import JudgeError


class Cache:
    """One file per reply under `folder`. Several processes may share it. Raises JudgeError where it cannot be written."""

    def __init__(self, folder: str | Path):
        self._folder = Path(folder).expanduser()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self._folder).close()
        except OSError as error:
            raise JudgeError(
                f"judge.cache = {str(folder)!r}: cannot be written ({error}); choose another folder"
            ) from error

    def get(self, key: str) -> str | None:
        """The reply kept under a key. None where there is none, or none that is whole: that one is named on stderr."""
        path = self._path(key)
        try:
            digest, _, reply = path.read_bytes().partition(b"\n")
        except FileNotFoundError:
            return None
        except OSError as error:
            _say(f"{path}: not read ({error}), asking anew")
            return None
        if digest.decode("ascii", "replace") != hashlib.sha256(reply).hexdigest():
            _say(f"{path}: damaged, asking anew")
            return None
        return reply.decode()

    def put(self, key: str, reply: str) -> None:
        """Keep a reply; it appears whole or not at all. A full disk is named on stderr and costs only a later request."""
        path, data = self._path(key), reply.encode()
        partial = path.with_name(f"{key}.{os.getpid()}.{threading.get_ident()}.partial")
        try:
            path.parent.mkdir(exist_ok=True)
            partial.write_bytes(hashlib.sha256(data).hexdigest().encode() + b"\n" + data)
            os.replace(partial, path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            _say(f"{path}: not written ({error})")

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / key


def _say(text: str) -> None:
    print(f"judge cache: {text}", file=sys.stderr, flush=True)
