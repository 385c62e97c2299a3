"""metrics.jsonl stays valid whatever is written or killed; the progress line and its times (host code)."""

import io
import json
import math
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest

from safer_jax import metrics


def lines(folder):
    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_line_per_call(tmp_path):
    writer = metrics.Writer(tmp_path / "run")
    writer.write(
        np.int32(1), "sft", {"loss": jnp.float32(0.5), "rows": 3, "ok": True, "x": np.array([2.0]), "when": "warm"}
    )
    assert lines(tmp_path / "run")[0].items() >= {"step": 1, "stage": "sft", "loss": 0.5, "rows": 3, "ok": 1}.items()
    writer.write(2, "grpo", {"half": jnp.bfloat16(0.25), "double": 0.1, "zero": np.float64(-0.0)})
    writer.close()
    first, second = lines(tmp_path / "run")
    assert (first["x"], first["when"], second["half"], second["double"]) == (2.0, "warm", 0.25, 0.1)
    assert abs(first["time"] - second["time"]) < 60 and "nonfinite" not in first


def test_nonfinite_figures_leave_valid_json(tmp_path):
    writer = metrics.Writer(tmp_path)
    writer.write(1, "grpo", {"loss": math.nan, "kl": np.float32("inf"), "ratio": jnp.float32("-inf"), "reward": 1.0})
    (line,) = lines(tmp_path)
    assert (line["loss"], line["kl"], line["ratio"], line["reward"]) == (None, None, None, 1.0)
    assert line["nonfinite"] == ["loss", "kl", "ratio"]


@pytest.mark.parametrize("value", [None, [1, 2], np.zeros(3), {}, object()])
def test_what_is_no_number_is_named(tmp_path, value):
    with pytest.raises(metrics.MetricsError, match="figure 'odd'"):
        metrics.Writer(tmp_path).write(1, "grpo", {"odd": value})
    assert list(tmp_path.iterdir()) == []


def test_reserved_names(tmp_path):
    with pytest.raises(metrics.MetricsError, match="figure 'step': the name is reserved"):
        metrics.Writer(tmp_path).write(1, "grpo", {"step": 2})


def test_resume_removes_later_and_broken_lines(tmp_path, capsys):
    writer = metrics.Writer(tmp_path)
    for step in (1, 2, 3):
        writer.write(step, "grpo", {"loss": float(step)})
    writer.write(2, "eval", {"reward": 1.0})
    writer.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 1, "sta')
    writer = metrics.Writer(tmp_path, resumed=2)
    writer.write(3, "grpo", {"loss": 33.0})
    assert [(line["step"], line["stage"], line.get("loss")) for line in lines(tmp_path)] == [
        (1, "grpo", 1.0),
        (2, "grpo", 2.0),
        (2, "eval", None),
        (3, "grpo", 33.0),
    ]
    assert "line 5: is no line of metrics" in capsys.readouterr().err
    metrics.Writer(tmp_path, resumed=-1)
    assert lines(tmp_path) == [] and [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_cut_line_is_not_continued(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "sta')
    metrics.Writer(tmp_path).write(2, "grpo", {})
    cut, whole = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert cut == '{"step": 1, "sta' and json.loads(whole)["step"] == 2


def test_other_processes_write_nothing(tmp_path):
    writer = metrics.Writer(tmp_path / "run", resumed=0, is_writer=False)
    writer.write(1, "grpo", {"loss": 1.0})
    writer.close()
    assert not (tmp_path / "run").exists()


def test_trackers_get_the_figures(tmp_path, monkeypatch):
    told = []

    class Summary:
        def __init__(self, folder):
            told.append(folder)

        def add_scalar(self, name, value, step):
            told.append((name, value, step))

        def close(self):
            told.append("closed")

    def init(**arguments):
        told.append(arguments["config"])
        log = lambda numbers, step: told.append((numbers, step))
        return types.SimpleNamespace(log=log, finish=lambda: told.append("finished"))

    monkeypatch.setitem(sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=Summary))
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    writer = metrics.Writer(tmp_path, tensorboard=True, wandb=True, settings={"seed": 1})
    writer.write(4, "grpo", {"loss": jnp.float32(0.5), "when": "after"})
    writer.close()
    assert told == [
        str(tmp_path / "tensorboard"),
        {"seed": 1},
        ("grpo/loss", 0.5, 4),
        ({"grpo/loss": 0.5}, 4),
        "closed",
        "finished",
    ]


@pytest.mark.parametrize("field,package", [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_missing_tracker_says_what_to_install(tmp_path, monkeypatch, field, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(metrics.MetricsError, match=rf"log.{field} = True: {package} is not.*safer_jax\[{field}\]"):
        metrics.Writer(tmp_path, **{field: True})


class Time:
    def __init__(self):
        self.seconds = 100.0

    def __call__(self):
        return self.seconds


def test_clock():
    now = Time()
    clock = metrics.Clock(now)
    for name, seconds in (("sample", 2.0), ("update", 3.0), ("sample", 0.5)):
        now.seconds += seconds
        clock.lap(name)
    now.seconds += 1.0
    assert clock.seconds() == {"seconds": 6.5, "seconds_sample": 2.5, "seconds_update": 3.0}


class Terminal(io.StringIO):
    def isatty(self):
        return True


def run_steps(stream, **arguments):
    now = Time()
    progress = metrics.Progress(4, start=1, title="grpo", stream=stream, now=now, **arguments)
    for step, seconds in ((2, 60.0), (3, 2.0), (4, 2.0)):  # the first step compiles
        now.seconds += seconds
        progress.update(step, {"reward": np.float32(0.25), "other": 1.0, **({"loss": 1.5} if step == 2 else {})})
    return stream.getvalue()


def test_progress_in_a_log():
    assert run_steps(io.StringIO(), pause=0.0).splitlines() == [
        "grpo 2/4  loss 1.5  reward 0.25  60.0 s/step  ETA 2:00",
        "grpo 3/4  reward 0.25  2.0 s/step  ETA 0:02",
        "grpo 4/4  reward 0.25  2.0 s/step  ETA 0:00",
    ]
    spare = run_steps(io.StringIO(), pause=10.0).splitlines()
    assert [line.split()[1] for line in spare] == ["2/4", "4/4"], "rare lines, and always the last"
    assert run_steps(io.StringIO(), is_shown=False) == ""


def test_progress_on_a_terminal():
    text = run_steps(Terminal())
    assert text.count("\n") == 1 and text.endswith("\n")
    first, second, _ = text.split("\r")[1:]
    assert len(second) == len(first), "a shorter line covers the longer one before"


def test_eta_of_hours():
    now = Time()
    progress = metrics.Progress(1000, unit="answer", stream=io.StringIO(), now=now)
    now.seconds += 100.0
    progress.update(10, {})
    assert progress._stream.getvalue() == "10/1000  10.0 s/answer  ETA 2:45:00\n"
