"""What a run tells while it runs: metrics.jsonl always, TensorBoard and W&B where wanted, a progress line (host code).

A line of metrics.jsonl is one JSON object: `{"step": int, "stage": str, "time": unix seconds, name: number, ...}`. JSON
has no NaN: such a figure is null, and its name stands in the line's list `nonfinite`.
"""

import collections
import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

import numpy as np

RESERVED = ("step", "stage", "time", "nonfinite")
_WINDOW = 20  # steps over which the progress line takes its seconds per step


class MetricsError(ValueError):
    """A figure that cannot be written, or a wanted tracker that is not installed."""


class Writer:
    """Appends figures to `folder`/metrics.jsonl, one flushed line per call.

    Args:
      folder: the run's folder; made where it does not exist.
      resumed: step of the checkpoint that the run goes on from: lines beyond it are removed, for they will be written
        again. -1 = the run starts from the beginning; None = leave the lines alone.
      tensorboard: also write `folder`/tensorboard.
      wandb: also write to Weights & Biases, as a run named after the folder.
      settings: what W&B shows as the run's config.
      is_writer: False on all processes but one: nothing is written.

    Raises:
      MetricsError: the package of a wanted tracker is not installed.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        resumed: int | None = None,
        tensorboard: bool = False,
        wandb: bool = False,
        settings: Mapping[str, Any] | None = None,
        is_writer: bool = True,
    ):
        self._path, self._trackers, self._closers = None, [], []
        if not is_writer:
            return
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if tensorboard:
            self._open_tensorboard(folder)
        if wandb:
            self._open_wandb(folder, settings or {})
        self._path = folder / "metrics.jsonl"
        if resumed is not None:
            rewind(self._path, resumed)
        _end_line(self._path)

    def write(self, step: int, stage: str, figures: Mapping[str, Any]) -> None:
        """One line. A figure is a number or an array of one number of any library; words are kept as they are.

        Raises:
          MetricsError: a figure of another kind, or one with a reserved name.
        """
        if self._path is None:
            return
        line = {"step": int(step), "stage": stage, "time": round(time.time(), 3)}
        values = {name: _plain(name, value) for name, value in figures.items()}
        nonfinite = [name for name, value in values.items() if isinstance(value, float) and not math.isfinite(value)]
        line |= {name: None if name in nonfinite else value for name, value in values.items()}
        if nonfinite:
            line["nonfinite"] = nonfinite
        with open(self._path, "a", encoding="utf-8") as file:  # closed, so flushed, before the next step can fail
            file.write(json.dumps(line, allow_nan=False) + "\n")
        numbers = {f"{stage}/{name}": value for name, value in values.items() if not isinstance(value, str)}
        for track in self._trackers:
            track(numbers, int(step))

    def close(self) -> None:
        """Ends the trackers; to be called once at the end, also of a run that fails."""
        for close in self._closers:
            close()
        self._trackers, self._closers = [], []

    def _open_tensorboard(self, folder: pathlib.Path) -> None:
        try:
            import tensorboardX
        except ImportError as error:
            raise _not_installed("tensorboard", "tensorboardX") from error
        summary = tensorboardX.SummaryWriter(str(folder / "tensorboard"))

        def track(numbers: dict[str, float], step: int) -> None:
            for name, value in numbers.items():
                summary.add_scalar(name, value, step)

        self._trackers.append(track)
        self._closers.append(summary.close)

    def _open_wandb(self, folder: pathlib.Path, settings: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise _not_installed("wandb", "wandb") from error
        run = wandb.init(project="safer_jax", name=folder.name, dir=str(folder), config=dict(settings))
        self._trackers.append(lambda numbers, step: run.log(numbers, step=step))
        self._closers.append(run.finish)


def rewind(path: pathlib.Path, step: int) -> None:
    """Removes the lines beyond `step`, and a last line that a kill cut short, in one atomic exchange of the file."""
    if not path.is_file():
        return
    kept = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        try:
            is_kept = int(json.loads(line)["step"]) <= step
        except (ValueError, TypeError, KeyError):
            print(f"{path}, line {number}: is no line of metrics and is removed: {line[:80]!r}", file=sys.stderr)
            continue
        if is_kept:
            kept.append(line + "\n")
    partial = path.with_suffix(".partial")
    partial.write_text("".join(kept), encoding="utf-8")
    os.replace(partial, path)


class Clock:
    """Seconds of the parts of a step, lap by lap."""

    def __init__(self, now: Callable[[], float] = time.perf_counter):
        self._now, self._start, self._laps = now, now(), {}
        self._last = self._start

    def lap(self, name: str) -> None:
        """What ran since the last lap was `name`; laps of one name add up."""
        now = self._now()
        self._laps[name] = self._laps.get(name, 0.0) + now - self._last
        self._last = now

    def seconds(self) -> dict[str, float]:
        """`seconds` since the start, `seconds_<name>` of each lap."""
        laps = {f"seconds_{name}": value for name, value in self._laps.items()}
        return {"seconds": self._now() - self._start, **laps}


class Progress:
    """One line that says where a run stands: steps, key figures, seconds a step, time left.

    On a terminal the line is rewritten in place; elsewhere (a log file) a new line is printed, but not more often than
    every `pause` seconds.

    Args:
      total: number of the last step.
      start: steps that are already done.
      title: name of the stage.
      keys: figures to show, those that a step has.
      unit: what a step is.
      stream: where to print.
      pause: least seconds between lines where the stream is no terminal.
      is_shown: False on all processes but one.
      now: a clock in seconds.
    """

    def __init__(
        self,
        total: int,
        start: int = 0,
        title: str = "",
        keys: tuple[str, ...] = ("loss", "reward", "kl"),
        unit: str = "step",
        stream: TextIO | None = None,
        pause: float = 10.0,
        is_shown: bool = True,
        now: Callable[[], float] = time.monotonic,
    ):
        self._total, self._title, self._keys, self._unit, self._pause = total, title, keys, unit, pause
        self._stream, self._is_shown, self._now = stream or sys.stderr, is_shown, now
        self._marks = collections.deque([(start, now())], maxlen=_WINDOW + 1)
        self._is_first, self._printed, self._width = True, -math.inf, 0

    def update(self, step: int, figures: Mapping[str, Any]) -> None:
        """Step number `step` is done."""
        self._marks.append((step, self._now()))
        line, is_last = self.line(step, figures), step >= self._total
        if self._is_first:  # it compiled: its time says nothing about the others
            self._marks.popleft()
            self._is_first = False
        if not self._is_shown:
            return
        if self._stream.isatty():
            self._stream.write("\r" + line.ljust(self._width) + ("\n" if is_last else ""))
            self._width = len(line)
        elif is_last or self._now() - self._printed >= self._pause:
            self._stream.write(line + "\n")
            self._printed = self._now()
        self._stream.flush()

    def line(self, step: int, figures: Mapping[str, Any]) -> str:
        (first, start), (last, end) = self._marks[0], self._marks[-1]
        each = (end - start) / max(last - first, 1)
        shown = [f"{name} {float(figures[name]):.4g}" for name in self._keys if name in figures]
        left = f"{_pace(each)}/{self._unit}  ETA {_clock(each * max(self._total - step, 0))}"
        return "  ".join(part for part in (f"{self._title} {step}/{self._total}".strip(), *shown, left))


def _pace(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _plain(name: str, value: Any) -> int | float | str:
    if name in RESERVED:
        raise MetricsError(f"figure {name!r}: the name is reserved, as are {', '.join(RESERVED)}; rename it")
    if isinstance(value, str):
        return value
    array = np.asarray(value)
    if array.size != 1 or not (np.issubdtype(array.dtype, np.number) or array.dtype.kind in "bV"):
        raise MetricsError(f"figure {name!r}: is {value!r}, must be one number or a string")
    if array.dtype.kind in "biu":
        return int(array.reshape(()))
    return float(array.reshape(()).astype(np.float64))


def _end_line(path: pathlib.Path) -> None:
    """A kill may have cut the last line short; the next one must not continue it."""
    if path.is_file() and path.stat().st_size:
        with open(path, "rb+") as file:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")


def _not_installed(field: str, package: str) -> MetricsError:
    return MetricsError(
        f"log.{field} = True: {package} is not installed; run pip install 'safer_jax[{field}]' or set it to False"
    )
