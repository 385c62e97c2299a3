"""A process's life: start-up, orderly stops, no silent hangs, exit codes, the count of compilations (host code)."""

import contextlib
import ctypes
import errno
import faulthandler
import fcntl
import os
import pathlib
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Self

import jax
import numpy as np
from jax.experimental import multihost_utils

from safer_jax.command import ExitCode
from safer_jax.judge.breaker import JudgeDown

DISTRIBUTED = "SAFER_JAX_DISTRIBUTED"  # environment: 1 = join the other hosts
WATCHDOG = "SAFER_JAX_WATCHDOG"  # environment: seconds without a step before a process counts as stuck; 0 = off
_FULL, _CLOSED = "free some room and start the same command again", "choose one that this user may read and write"
_FIXES = {  # what a person can mend about a disk
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EACCES: _CLOSED,
    errno.EROFS: _CLOSED,
    errno.EWOULDBLOCK: "another process writes there; wait for it, or choose another folder",
    errno.ENOTDIR: "a file stands where a folder should; choose another folder",
    errno.EEXIST: "a file stands where a folder should; choose another folder",
}
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # names in glibc's malloc.h
_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


class Stopped(Exception):
    """A run that was asked to end, saved its state and ends: `started` turns it into ExitCode.STOPPED."""


class Stopper:
    """Turns SIGINT and SIGTERM into a question that the loop asks after each step; a second SIGINT exits at once.

    A thread reads the signals from a pipe that the C-level handler writes, so that the second Ctrl-C works although the
    main thread waits inside XLA. On several hosts SIGTERM belongs to JAX's preemption service, which agrees on a step.
    To be used in the main thread, as a context manager.
    """

    def __init__(self) -> None:
        self._asked, self._previous = threading.Event(), {}

    def __enter__(self) -> Self:
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._old_fd = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        # The preemption service has its own handler of SIGTERM, which a second one would switch off.
        wanted = (signal.SIGINT,) if jax.distributed.is_initialized() else (signal.SIGINT, signal.SIGTERM)
        self._previous = {number: signal.signal(number, lambda *_: None) for number in wanted}
        self._thread = threading.Thread(target=self._listen, args=(self._reader, wanted), name="stopper", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_fd)
        self._writer.close()  # the thread reads the end and returns
        self._thread.join()
        self._reader.close()

    def requested(self, step: int) -> bool:
        """Whether the run should save and end after this step; the same answer on all hosts.

        A collective on several hosts: all processes ask after every step, with the same step number.
        """
        is_asked = self._asked.is_set()
        if not jax.distributed.is_initialized():
            return is_asked
        is_preempted = multihost_utils.reached_preemption_sync_point(step)
        if jax.process_count() > 1:
            is_asked = bool(multihost_utils.process_allgather(np.int32(is_asked)).any())
        return is_preempted or is_asked

    def _listen(self, reader: socket.socket, wanted: tuple[int, ...]) -> None:
        interrupts = 0
        while numbers := reader.recv(64):
            for number in numbers:
                if number not in wanted:
                    continue
                interrupts += number == signal.SIGINT
                if interrupts > 1:
                    _say("second Ctrl-C: exit without saving")
                    os._exit(ExitCode.INTERRUPTED)
                if not self._asked.is_set():
                    self._asked.set()
                    name = signal.Signals(number).name
                    _say(f"{name}: stopping after this step; Ctrl-C again exits at once, without saving")


class Watchdog:
    """Ends a process in which nothing moves: a stuck host never trips the others' heartbeat, and all wait for ever.

    Args:
      seconds: silence after which all threads' stacks are dumped to stderr and the process exits; 0 = off.
      give_up: called then, instead of the exit.
    """

    def __init__(self, seconds: float, give_up: Callable[[], None] | None = None):
        self._seconds, self._give_up = seconds, give_up or (lambda: os._exit(ExitCode.STUCK))
        self._deadline, self._ended = time.monotonic() + seconds, threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        if self._seconds > 0:
            self.beat()
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def beat(self, grace: float = 0.0) -> None:
        """Something moved. `grace`: further seconds allowed until the next beat, where a long compilation is known."""
        self._deadline = time.monotonic() + self._seconds + grace

    def _watch(self) -> None:
        while (left := self._deadline - time.monotonic()) > 0:
            if self._ended.wait(left):
                return
        _say(f"WATCHDOG: no step was finished for {self._seconds:g} seconds; the stacks of all threads, then exit:")
        faulthandler.dump_traceback(all_threads=True)
        self._give_up()


class _Compilations:
    """Counts what jax.monitoring reports; it knows no listeners that can be removed, so there is one for ever."""

    def __init__(self) -> None:
        self.number, self.is_listening = 0, False

    def listen(self) -> None:
        if not self.is_listening:
            jax.monitoring.register_event_duration_secs_listener(self._hear)
            self.is_listening = True

    def _hear(self, event: str, _: float, **__: object) -> None:
        self.number += event == _COMPILE_EVENT


_compilations = _Compilations()


def compiles() -> int:
    """Programs compiled, or taken from the persistent cache, since the first call of this function or of `start`."""
    _compilations.listen()
    return _compilations.number


def start(is_distributed: bool | None = None) -> str:
    """Joins the other hosts if asked to, starts the count of compilations, and describes the devices in one line.

    Args:
      is_distributed: True = jax.distributed.initialize with what the cluster's environment says; None = as the
        environment variable SAFER_JAX_DISTRIBUTED says (1 or 0).

    Raises:
      ValueError: the environment variable is neither.
      RuntimeError: the cluster's environment does not say who the other hosts are.
    """
    if is_distributed is None:
        is_distributed = bool(_from_environment(DISTRIBUTED, {"": 0, "0": 0, "1": 1}))
    if is_distributed and not jax.distributed.is_initialized():
        try:
            jax.distributed.initialize()
        except (RuntimeError, ValueError) as error:
            raise RuntimeError(f"{DISTRIBUTED} = 1, but the other hosts cannot be joined: {error}") from error
        install_excepthook()
    keep_memory()
    _compilations.listen()
    return describe()


def keep_memory() -> None:
    """Tells glibc to keep what is freed, on CPUs only: else every buffer of a step comes back as fresh zeroed pages,
    which costs a small policy a third of its time."""
    libc = ctypes.CDLL(None)
    if jax.default_backend() != "cpu" or not hasattr(libc, "mallopt"):
        return
    for name, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 2**28)):
        libc.mallopt(name, value)


def describe() -> str:
    """Devices, processes and versions in one line."""
    devices = jax.devices()
    hosts = f"process {jax.process_index()} of {jax.process_count()}" if jax.process_count() > 1 else "1 process"
    versions = f"jax {jax.__version__}, Python {sys.version.split()[0]}"
    return f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform}), {hosts}, {versions}"


@contextlib.contextmanager
def started(bad_input: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """`start`, its line printed; around a run, whose `Stopped` and `JudgeDown` become the exit codes of those names.

    An error of a class in `bad_input` is the user's to mend, and so is a disk that is full or closed to them: the message
    is printed without a traceback, and the process ends with ExitCode.BAD_INPUT. All others pass.
    """
    _say(start())
    try:
        yield
    except JudgeDown as error:
        _say(f"JudgeDown: {error}")
        sys.exit(ExitCode.JUDGE_DOWN)
    except Stopped as stop:
        _say(str(stop))
        sys.exit(ExitCode.STOPPED)
    except (*bad_input, OSError) as error:
        told = str(error)
        if not isinstance(error, bad_input):
            if error.errno not in _FIXES:
                raise
            told = f"{f'{error.filename}: ' * bool(error.filename)}{error.strerror}; {_FIXES[error.errno]}"
        _say(f"{type(error).__name__}: {told}")
        if jax.distributed.is_initialized():  # the other hosts wait inside a collective; see install_excepthook
            sys.stdout.flush()
            os._exit(ExitCode.BAD_INPUT)
        sys.exit(ExitCode.BAD_INPUT)


@contextlib.contextmanager
def alone(folder: pathlib.Path) -> Iterator[None]:
    """Keeps this machine's other processes, a run that was started twice, from writing into `folder`; process 0 holds it.

    Raises BlockingIOError where one does. A file system without locks, as some mounted buckets are, holds nobody off.
    """
    if jax.process_index():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(error.errno, "is in use", str(folder)) from error
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
        yield


def watchdog() -> Watchdog:
    """As the environment variable SAFER_JAX_WATCHDOG says, in seconds; off without it. Raises ValueError."""
    text = os.environ.get(WATCHDOG, "0")
    try:
        seconds = float(text)
    except ValueError as error:
        raise ValueError(f"{WATCHDOG} = {text!r}: must be a number of seconds, 0 = off") from error
    if not 0 <= seconds < threading.TIMEOUT_MAX:
        raise ValueError(f"{WATCHDOG} = {text!r}: must be a number of seconds, 0 = off")
    return Watchdog(seconds)


def install_excepthook() -> None:
    """An exception that nobody catches prints and ends the process without a farewell to the other hosts.

    The ordinary end waits for them at a barrier, and they wait for this host inside a collective: all hang.
    """

    def end(kind: type[BaseException], error: BaseException, trace: object) -> None:
        traceback.print_exception(kind, error, trace)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ExitCode.INTERRUPTED if issubclass(kind, KeyboardInterrupt) else ExitCode.FAILED)

    sys.excepthook = end
    threading.excepthook = lambda hint: end(hint.exc_type, hint.exc_value, hint.exc_traceback)


def _from_environment(name: str, values: dict[str, int]) -> int:
    text = os.environ.get(name, "")
    if text not in values:
        raise ValueError(f"{name} = {text!r}: must be {' or '.join(value for value in values if value)}")
    return values[text]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
