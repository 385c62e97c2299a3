"""Commands end with their exit codes, and quietly where nobody reads on (host code)."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FEW, MANY = "print('a line')", "for n in range(99_999): print('a line')"
HANGS_UP = "import socket; a, b = socket.socketpair(); b.close(); a.send(b'x')"


def ended(body, lines):
    """(exit code, stderr) of a command with this body, of whose output so many lines are read before the pipe is closed."""
    code = f"from safer_jax import command\ndef main():\n    {body}\ncommand.run(main)"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, text=True, **pipes)
    assert all(process.stdout.readline() for _ in range(lines))
    if lines:
        process.stdout.close()
    return process.wait(timeout=60), process.stderr.read()


@pytest.mark.parametrize(
    "body,lines,code,told",
    [
        (f"{FEW}; return 3", 0, 3, ""),
        (FEW, 0, 0, ""),
        ("raise SystemExit('bad')", 0, 1, "bad\n"),
        (MANY, 1, 141, ""),
        (f"{FEW}; import sys, time; sys.stdout.flush(); time.sleep(0.5); {FEW}; return 2", 1, 141, ""),  # at the end
    ],
)
def test_the_exit_code_is_the_commands_own_or_that_of_a_pipe_nobody_reads(body, lines, code, told):
    assert ended(body, lines) == (code, told)


def test_another_pipe_that_breaks_is_an_error():
    code, told = ended(HANGS_UP, 0)
    assert code == 1 and "BrokenPipeError" in told


def test_errors_keep_their_traceback_where_nobody_reads():
    code, told = ended(f"{FEW}; import sys; sys.stdout.flush(); 1 / 0", 1)
    assert code == 1 and "ZeroDivisionError" in told


def test_letters_that_the_terminal_lacks_are_escapes():
    code = "from safer_jax import command\ncommand.run(lambda: print('safe \\u2191'))"
    ascii_alone = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    made = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=ascii_alone, capture_output=True, timeout=60, check=False
    )
    assert (made.returncode, made.stdout) == (0, b"safe \\u2191\n"), made.stderr
