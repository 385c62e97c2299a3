"""How a command ends: with its exit code, and quietly where nobody reads its output any more, as in `| head` (host code)."""

import enum
import io
import os
import select
import sys
from collections.abc import Callable
from typing import NoReturn


class ExitCode(enum.IntEnum):
    """What a launcher may read from the end of a process."""

    DONE = 0
    FAILED = 1
    BAD_INPUT = 2  # config or data: starting again will not help
    STOPPED = 75  # a signal asked for it; the state is saved, the same command goes on
    STUCK = 76  # the watchdog ended it
    JUDGE_DOWN = 77  # too many attempts could not be judged; the state is saved, the same command goes on
    INTERRUPTED = 130  # second Ctrl-C; nothing was saved
    UNREAD = 141  # nobody reads stdout any more; as a shell tells it of a process that SIGPIPE ended


def run(main: Callable[[], int | None]) -> NoReturn:
    """End the process with what `main` returns or exits with; with UNREAD where stdout's reader has left.

    Letters that the terminal's encoding lacks are written as escapes. The signal itself stays ignored: it would also end a
    run whose judge hangs up.
    """
    as_escapes()
    try:
        try:
            status = main()
        except SystemExit as ended:
            status = ended.code
        sys.stdout.flush()
    except BrokenPipeError:
        if not _has_left():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still to be written goes nowhere
        status = ExitCode.UNREAD
    sys.exit(status)


def as_escapes() -> None:
    """Have stdout write what its encoding lacks, such as an arrow under LC_ALL=C, as \\u2191, where it would raise."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _has_left() -> bool:
    """Whether the pipe that broke is stdout."""
    poll = select.poll()
    poll.register(sys.stdout, 0)  # an error is told unasked
    return any(state & select.POLLERR for _, state in poll.poll(0))
