"""Stops, hangs, crashes and the count of compilations, each in a process of its own (host code)."""

import errno
import itertools
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import pytest

from safer_jax import runtime
from safer_jax.command import ExitCode

ROOT = pathlib.Path(__file__).parents[1]

LOOP = """
import sys, time
from safer_jax import runtime
with runtime.started(), runtime.Stopper() as stopper:
    print("ready", flush=True)
    for step in range(1000):
        time.sleep(0.02)
        print("step", step, flush=True)
        if stopper.requested(step):
            print("saved", step, flush=True)
            raise runtime.Stopped("stopped: the same command goes on")
"""

# The main thread waits for a lock in C as it may wait inside XLA: Python's own handlers would never run.
BLOCKED = """
import ctypes
from safer_jax import runtime
lock, libc = ctypes.create_string_buffer(64), ctypes.CDLL(None)
with runtime.Stopper():
    libc.pthread_mutex_lock(lock)
    print("ready", flush=True)
    libc.pthread_mutex_lock(lock)
"""


def launch(code, *arguments, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def free_address():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_after_the_step(number):
    process = launch(LOOP)
    assert process.stdout.readline() == "ready\n"
    first = process.stdout.readline()
    process.send_signal(number)
    out, told = process.communicate(timeout=30)
    assert process.returncode == ExitCode.STOPPED == 75
    step, saved = (first + out).splitlines()[-2:]
    assert saved == step.replace("step", "saved"), "the step under way is finished, and no further one"
    assert signal.Signals(number).name in told and "the same command goes on" in told and "Traceback" not in told


def test_second_interrupt_exits_at_once():
    process = launch(BLOCKED)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert "stopping after this step" in process.stderr.readline()
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=30)
    assert process.returncode == ExitCode.INTERRUPTED == 130
    assert time.monotonic() - begun < 5 and "without saving" in told


def test_second_sigterm_is_no_emergency():
    process = launch(LOOP.replace("0.02", "0.5"))
    process.stdout.readline()
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.05)
    process.communicate(timeout=30)
    assert process.returncode == ExitCode.STOPPED


def test_stopper_leaves_no_trace():
    # A shell without job control starts what it puts into the background with SIGINT ignored.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with runtime.Stopper() as stopper:
        assert not stopper.requested(1)
        os.kill(os.getpid(), signal.SIGTERM)
        stopper._asked.wait(5)
        assert stopper.requested(2)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert signal.set_wakeup_fd(-1) == -1
    try:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
    finally:
        signal.signal(signal.SIGINT, inherited)


PAIR = """
import os, sys, time, jax
from safer_jax import runtime
address, rank, kind = sys.argv[1], int(sys.argv[2]), sys.argv[3]
jax.distributed.initialize(address, 2, rank, initialization_timeout=60)
runtime.start(is_distributed=True)
runtime.install_excepthook()
import numpy as np
from jax.experimental import multihost_utils
with runtime.started(), runtime.Stopper() as stopper:
    print("ready", flush=True)
    for step in range(1, 500):
        time.sleep(0.02)
        multihost_utils.process_allgather(np.int32(step))
        if kind == "crash" and rank == 1 and step == 5:
            raise ValueError("row 17 is broken")
        if stopper.requested(step):
            print("saved", step, flush=True)
            raise runtime.Stopped("stopped")
"""


def pair(kind):
    address = free_address()
    both = [launch(PAIR, address, rank, kind) for rank in range(2)]
    for process in both:
        assert process.stdout.readline() == "ready\n", process.stderr.read()
    return both


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_all_hosts_stop_at_one_step(number):
    both = pair("signal")
    time.sleep(0.3)
    both[1].send_signal(number)
    told = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [ExitCode.STOPPED] * 2
    saved = [out.splitlines()[-1] for out, _ in told]  # Gloo talks on stdout too
    assert saved[0] == saved[1] and saved[0].startswith("saved ")
    is_ours = "stopping after this step" in told[1][1]
    assert is_ours == (number == signal.SIGINT), "SIGTERM is left to JAX's preemption service"


def test_a_crash_on_one_host_ends_it_at_once():
    both = pair("crash")
    begun = time.monotonic()
    _, told = both[1].communicate(timeout=60)
    assert both[1].returncode == ExitCode.FAILED and time.monotonic() - begun < 20
    assert "ValueError: row 17 is broken" in told
    both[0].kill()  # it ends by itself when the heartbeat is missed, which takes longer than a test may
    both[0].communicate()


def test_excepthook_ends_threads_too():
    code = """
import threading, time
from safer_jax import runtime
runtime.install_excepthook()
threading.Thread(target=lambda: 1 / 0).start()
time.sleep(30)
"""
    process = launch(code)
    _, told = process.communicate(timeout=20)
    assert process.returncode == ExitCode.FAILED and "ZeroDivisionError" in told


def test_watchdog_dumps_stacks_and_exits():
    code = """
import sys, time
from safer_jax import runtime
with runtime.watchdog() as watchdog:
    for _ in range(4):
        time.sleep(0.5)
        watchdog.beat()
    print("alive", flush=True)
    def waits_for_a_lost_host():
        time.sleep(30)
    waits_for_a_lost_host()
"""
    process = launch(code, SAFER_JAX_WATCHDOG="1")
    out, told = process.communicate(timeout=20)
    assert out == "alive\n" and process.returncode == ExitCode.STUCK == 76
    assert "no step was finished for 1 seconds" in told and "waits_for_a_lost_host" in told


def test_watchdog_is_off_and_is_patient(monkeypatch):
    monkeypatch.delenv(runtime.WATCHDOG, raising=False)
    with runtime.watchdog() as watchdog:
        assert not watchdog._thread.is_alive()
    gone = []
    with runtime.Watchdog(0.05, give_up=lambda: gone.append(1)) as watchdog:
        watchdog.beat(grace=10.0)
        time.sleep(0.2)
    assert gone == [] and not watchdog._thread.is_alive()
    for text in ("soon", "-1", "nan", "inf"):
        monkeypatch.setenv(runtime.WATCHDOG, text)
        with pytest.raises(ValueError, match=f"SAFER_JAX_WATCHDOG = '{text}'"):
            runtime.watchdog()


def test_compiles_are_counted():
    runtime.compiles()
    double = jax.jit(lambda x: x * 2.0 + 0.123)
    values = [jax.device_put(jnp.ones(3)), jax.device_put(jnp.ones(4))]
    jax.block_until_ready(values)
    counts = [runtime.compiles()]
    for value in (values[0], values[0], values[1], values[0]):
        double(value).block_until_ready()
        counts.append(runtime.compiles())
    assert [after - before for before, after in itertools.pairwise(counts)] == [1, 0, 1, 0]


def test_start_describes_the_devices(monkeypatch):
    monkeypatch.delenv(runtime.DISTRIBUTED, raising=False)
    assert runtime.start() == (f"8 x cpu (cpu), 1 process, jax {jax.__version__}, Python {sys.version.split()[0]}")
    monkeypatch.setenv(runtime.DISTRIBUTED, "yes")
    with pytest.raises(ValueError, match="SAFER_JAX_DISTRIBUTED = 'yes': must be 0 or 1"):
        runtime.start()


def test_start_alone_names_what_is_missing():
    process = launch(
        "from safer_jax import runtime; runtime.start()", SAFER_JAX_DISTRIBUTED="1", TPU_SKIP_MDS_QUERY="1"
    )
    _, told = process.communicate(timeout=60)
    assert process.returncode == 1 and "SAFER_JAX_DISTRIBUTED = 1, but the other hosts cannot be joined" in told


@pytest.mark.parametrize(
    "error,told",
    [
        (OSError(errno.ENOSPC, "No space left on device"), "OSError: No space left on device; free some room"),
        (PermissionError(errno.EACCES, "Permission denied", "/runs"), "/runs: Permission denied; choose one that"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "/runs/a"), "/runs/a: Not a directory; a file stands"),
    ],
)
def test_a_disk_that_is_full_or_closed_is_told_in_a_line(error, told, capsys):
    with pytest.raises(SystemExit) as ended, runtime.started():
        raise error
    assert ended.value.code == ExitCode.BAD_INPUT and told in capsys.readouterr().err
    with pytest.raises(FileNotFoundError), runtime.started():
        raise FileNotFoundError(errno.ENOENT, "No such file", "/runs")


def test_a_folder_is_written_by_one_process(tmp_path, capsys):
    with runtime.alone(tmp_path / "run"):
        with pytest.raises(SystemExit) as ended, runtime.started(), runtime.alone(tmp_path / "run"):
            pytest.fail("both hold it")
        assert ended.value.code == ExitCode.BAD_INPUT
        assert f"{tmp_path / 'run'}: is in use; another process writes there; wait for it" in capsys.readouterr().err
    with runtime.alone(tmp_path / "run"):
        pass
