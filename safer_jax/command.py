"""How a command ends: with its exit code, and quietly where nobody reads its output any more, as in `| head` (host code)."""

import io
import os
import select
import signal
import sys
from collections.abc import Callable
from typing import NoReturn


def run(main: Callable[[], int | None]) -> NoReturn:
    """End the process with what `main` returns or exits with; with 141, as a shell tells it, where stdout's reader has left.

    Letters that the terminal's encoding lacks are written as escapes. The signal itself stays ignored: it would also end a run whose judge hangs up.
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
        status = 128 + signal.SIGPIPE
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
