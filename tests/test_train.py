"""The loop: a stopped run and the uninterrupted one are the same, bit for bit; the run's folder; the real command."""

import dataclasses
import itertools
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import types

import jax
import numpy as np
import pytest
import safetag_files
import tiny_runs
from jax.experimental.compilation_cache import compilation_cache
from transformers import AutoTokenizer, Qwen2VLImageProcessorPil

from safer_jax import (
    attempts,
    batches,
    build,
    checkpoint,
    config,
    convert,
    data,
    mesh,
    report,
    rewards,
    runtime,
    scoring,
    train,
    verdicts,
)
from safer_jax.command import ExitCode
from safer_jax.judge import rules
from safer_jax.judge.breaker import JudgeDown
from safer_jax.shapes import ANSWER, EMPTY, Layout, Rollout

ROOT = pathlib.Path(__file__).parents[1]
ROLLOUT = {
    "step",
    "stage",
    "split",
    "id",
    "expected",
    "images",
    "prompt",
    "response",
    "terms",
    "advantage",
    "tags",
    "tokens",
}


@pytest.fixture(scope="module")
def patch(tmp_path_factory):
    """One device, programs compiled once for all runs of this module."""
    options = {**tiny_runs.CACHE, "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("programs"))}
    before = {name: jax.config.values[name] for name in options}
    with pytest.MonkeyPatch.context() as patch:
        tiny_runs.on_one_device(patch)
        for name, value in options.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()  # whether it is used is asked once a process
        yield patch
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def whole(patch, tmp_path_factory):
    """The folder of a run that nothing interrupted: steps 1 and 2 warm start, 3 and 4 GRPO."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    tiny_runs.run(patch, folder, tiny_runs.settings())
    return folder


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def without_times(rows):
    """What a run decides: compilations and seconds are of the process."""
    is_kept = lambda name: not name.startswith(("time", "seconds", "tokens_per_s", "compiles"))
    return [{name: value for name, value in row.items() if is_kept(name)} for row in rows]


def leaves(folder, step):
    """Every array of a checkpoint by name, read from the disk as it was written."""
    manifest = json.loads((folder / str(step) / "manifest.json").read_text())
    names = {f"{number:04d}": name for number, name in enumerate(manifest["leaves"])}
    empty = {key: np.empty(leaf["shape"], leaf["dtype"]) for key, leaf in zip(names, manifest["leaves"].values())}
    nested = checkpoint._nest({names[key]: value for key, value in empty.items()})
    return checkpoint._flat(checkpoint._load(folder / str(step), nested))


def assert_same(first, second, step):
    ours, theirs = leaves(first, step), leaves(second, step)
    assert ours.keys() == theirs.keys() and len(ours) > 30
    different = [name for name in ours if ours[name].tobytes() != theirs[name].tobytes()]
    assert different == [], f"step {step}"


def test_a_run_stopped_after_any_step_is_the_uninterrupted_run(patch, whole, tmp_path):
    """Stops inside the warm start (1), at its end (2) and inside GRPO (3), each going on in the folder of the last."""
    for stop in (1, 2, 3, None):
        assert (tiny_runs.run(patch, tmp_path, tiny_runs.settings(), stop) is None) == (stop is not None)
        assert checkpoint.steps(tmp_path / "checkpoints") == list(range(1, (stop or 4) + 1))
    for step in (1, 2, 3, 4):
        assert_same(tmp_path / "checkpoints", whole / "checkpoints", step)
    assert_same(tmp_path / "reference", whole / "reference", 2)
    assert without_times(lines(tmp_path / "metrics.jsonl")) == without_times(lines(whole / "metrics.jsonl"))
    for path in sorted((whole / "rollouts").glob("*.jsonl")):
        assert path.read_text() == (tmp_path / "rollouts" / path.name).read_text()


def test_every_step_moves_the_policy_and_the_cursor(whole):
    states = [leaves(whole / "checkpoints", step) for step in (1, 2, 3, 4)]
    for before, after in itertools.pairwise(states):
        assert not np.array_equal(before["params.text.embed"], after["params.text.embed"])
    assert [int(state["cursor"]) for state in states] == [4, 0 + 8, 4, 8]  # each stage counts its own draws
    assert [int(state["step"]) for state in states] == [1, 2, 3, 4]
    reference = leaves(whole / "reference", 2)
    assert all(reference[name].tobytes() == states[1][name].tobytes() for name in reference)


def test_a_killed_run_forgets_what_it_wrote_beyond_its_checkpoint(patch, whole, tmp_path):
    """As after a kill in step 4: lines and rollouts of the lost step, half a line, half-made files."""
    tiny_runs.run(patch, tmp_path, tiny_runs.settings(), stop_after=3)
    saved = lines(whole / "metrics.jsonl")
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write(json.dumps({**saved[-1], "reward": 9.0}) + '\n{"step": 4, "sta')
    (tmp_path / "rollouts" / "000004.jsonl").write_text('{"step": 4, "sta')
    (tmp_path / "checkpoints" / "4" / "state").mkdir(parents=True)
    (tmp_path / "assets.partial").mkdir()
    tiny_runs.run(patch, tmp_path, tiny_runs.settings())
    assert_same(tmp_path / "checkpoints", whole / "checkpoints", 4)
    assert without_times(lines(tmp_path / "metrics.jsonl")) == without_times(saved)
    name = "000004.jsonl"
    assert (tmp_path / "rollouts" / name).read_text() == (whole / "rollouts" / name).read_text()


def test_metrics_have_the_figures_of_the_page(whole):
    rows = lines(whole / "metrics.jsonl")
    assert [(row["step"], row["stage"], row.get("when")) for row in rows] == [
        (0, "data", None),
        (0, "eval", "before"),
        (1, "sft", None),
        (2, "sft", None),
        (2, "eval", "warm"),
        (3, "grpo", None),
        (4, "grpo", None),
        (4, "eval", "after"),
    ]
    wanted = {stage: {"lr"} for stage in ("sft", "grpo", "eval")}
    wanted |= {"data": {"overlap"}, "eval": set()}
    for chart in report.LEARNING + report.HEALTH:
        wanted[chart.stage] |= set(chart.names)
    for row in rows:
        missing = wanted[row["stage"]] - row.keys()
        assert missing == set(), f"step {row['step']}"
    # Warm-up of 4 updates at one a step; of 8 at two a step, whose mean is told.
    rate = lambda step: next(row["lr"] for row in rows if row["step"] == step and row["stage"] != "eval")
    np.testing.assert_allclose([rate(1), rate(2)], [1e-3 * 1 / 4, 1e-3 * 2 / 4], rtol=1e-6)
    np.testing.assert_allclose([rate(3), rate(4)], [1e-3 * 1.5 / 8, 1e-3 * 3.5 / 8], rtol=1e-6)


def test_nothing_compiles_after_the_first_step_of_a_stage(whole):
    compiled = {row["step"]: row["compiles"] for row in lines(whole / "metrics.jsonl") if "compiles" in row}
    assert compiled[1] > 0 and compiled[3] > 0 and compiled[2] == compiled[4] == 0


def test_the_runs_folder(whole):
    made = tiny_runs.settings()
    assert config.from_json((whole / "config.json").read_text()) == made
    tokenizer, images = AutoTokenizer.from_pretrained(whole / "assets"), Qwen2VLImageProcessorPil.from_pretrained
    assert tokenizer.chat_template and tokenizer.decode(tokenizer.encode("a red cup")) == "a red cup"
    assert images(whole / "assets").patch_size == convert.read_config(whole / "assets").vision.patch
    stages = {}
    for path in sorted((whole / "rollouts").glob("*.jsonl")):
        for row in lines(path):
            assert row.keys() == ROLLOUT | {"is_cut"} and row["step"] == int(path.stem)
            assert row["tags"].keys() == {"image", "text", "combine"} and 0 < row["tokens"] <= 72
            assert row["terms"]["reward"] == len(row["response"]) % 8 / 8, "the text that was rewarded"
            assert all((whole / "rollouts" / image).read_bytes()[:4] == b"\x89PNG" for image in row["images"])
            assert (row["advantage"] is None) == (row["stage"] == "eval")
            stages.setdefault((row["step"], row["stage"], row["split"]), []).append(row)
    assert {key: len(rows) for key, rows in stages.items()} == {
        (0, "eval", "test"): 3,
        (2, "eval", "test"): 3,
        (3, "grpo", "train"): 4,
        (4, "grpo", "train"): 4,
        (4, "eval", "test"): 3,
    }
    page = (whole / "report.html").read_text()
    assert "<svg" in page and stages[4, "grpo", "train"][0]["id"] in page


def test_another_config_does_not_resume_a_run(whole):
    other = tiny_runs.settings({"grpo.beta": 0.2, "seed": 1, "model.variant": "3b", "log.rollouts": 5})
    with pytest.raises(build.ResumeError) as caught:
        build.build(other, whole)
    text = str(caught.value)
    assert str(whole) in text and "choose a new --workdir" in text
    for line in ("seed: 0 -> 1", "grpo.beta: 0.1 -> 0.2", "model.variant: 'tiny' -> '3b'"):
        assert line in text
    assert "log.rollouts" not in text, "what may change is no difference"


# ---- Reflection and its judge ----

SAFER = {
    "grpo.steps": 2,
    "grpo.prompts": 2,
    "grpo.micro_prompts": 1,
    "grpo.micro_widths": 2,
    "sampler.group": 2,
    "sampler.max_tokens": 12,
    "reflection.max_tokens": 4,
    "reflection.row_counts": (4,),
    "sft.reflections": 0.0,  # no reference is as short as these answers
    "sft.steps": 0,
    "data.eval_rows": 2,
    "eval.prompts": 2,
    "checkpoint.every": 1,
    "judge.max_failed": 0.4,
    "judge.window": 4,
}


@pytest.fixture(scope="module")
def judged(patch, tmp_path_factory):
    """The folder of a run with reruns that nothing interrupted."""
    folder = tmp_path_factory.mktemp("runs") / "judged"
    tiny_runs.run(patch, folder, tiny_runs.settings(SAFER, file="tiny_safer"))
    return folder


def test_rejected_answers_are_reflected_on_and_train(judged):
    steps = [line for line in lines(judged / "metrics.jsonl") if line["stage"] == "grpo"]
    assert [line["asked_again"] for line in steps] == [1.0, 1.0], "what random weights write is never accepted"
    assert [line["accepted"] for line in steps] == [line["judge_failed"] for line in steps] == [0.0, 0.0]
    assert all(line["gap_max"] < 1e-4 for line in steps), "the trainer sees reruns as the sampler did"
    assert steps[-1]["compiles"] == 0
    assert [line["accepted"] for line in lines(judged / "metrics.jsonl") if line["stage"] == "eval"] == [0.0, 0.0]
    row, *_ = lines(judged / "rollouts" / "000001.jsonl")
    assert row.keys() >= {"verdict", "before", "reflection"} and set(row["verdict"]) == set(
        verdicts.RUBRICS["safer_vlm"].names
    )


def test_a_judge_that_goes_down_saves_stops_and_is_resumed(patch, judged, tmp_path, monkeypatch):
    """Down in the second step: the first is saved. With the judge back the same command ends as the other run did."""
    made, asked = tiny_runs.settings(SAFER, file="tiny_safer"), []
    judge = rules.Judge.__call__

    def fails(self, records, responses):
        asked.append(len(records))
        rubric = self.rubric
        is_down = len(asked) > 4  # evaluation, two judgings of the first step, the first of the second
        return [verdicts.failed(rubric, "refused")] * len(records) if is_down else judge(self, records, responses)

    with monkeypatch.context() as broken, pytest.raises(JudgeDown, match="could not be judged.*The last: refused"):
        broken.setattr(rules.Judge, "__call__", fails)
        tiny_runs.run(patch, tmp_path, made)
    assert checkpoint.latest(tmp_path / "checkpoints") == 1
    tiny_runs.run(patch, tmp_path, made)
    assert_same(tmp_path / "checkpoints", judged / "checkpoints", 2)


def test_a_failed_judge_has_an_exit_code_of_its_own(capsys):
    with pytest.raises(SystemExit) as end, runtime.started():
        raise JudgeDown("8 of 8 attempts could not be judged")
    assert end.value.code == ExitCode.JUDGE_DOWN == 77
    assert "JudgeDown: 8 of 8" in capsys.readouterr().err


# ---- Dynamic sampling ----

CUT = 5  # completion slots of the fake rollouts


def fake_sample(_, prompts):
    """Two rows a prompt which tell their draw: token = 10 * draw + rollout, draw + 1 tokens long at most CUT."""
    draw_P = np.asarray(prompts.draw_P)
    token_PGC = np.broadcast_to((10 * draw_P[:, None] + np.arange(2))[..., None], (len(draw_P), 2, CUT))
    is_real_PGC = np.broadcast_to(np.arange(CUT) <= draw_P[:, None, None], token_PGC.shape)
    logp_PGC = np.where(is_real_PGC, -token_PGC, 0).astype(np.float32)
    role_PGC = np.where(is_real_PGC, ANSWER, EMPTY).astype(np.int8)
    is_cut_PGE = draw_P[:, None, None] % 2 > [[0], [0]]
    verdict_PGEJ = np.zeros((*is_cut_PGE.shape, 0), np.float32)
    rollout = Rollout(token_PGC.astype(np.int32), logp_PGC, role_PGC, role_PGC * 0, is_cut_PGE, verdict_PGEJ)
    return jax.tree.map(jax.numpy.asarray, rollout), None


@pytest.fixture(scope="module")
def feed(patch, whole):
    """The training rows of the demo set as `build` feeds them, their order of draws, a mesh of one device."""
    made = tiny_runs.settings()
    processor = build.make_processor(made, whole / "assets", convert.read_config(whole / "assets"))
    source = data.load(made.data, "train")
    rows = range(32)
    usable = data.Usable(
        np.array(rows), *np.array([processor.size(source[i]) for i in rows]).T, (), np.ones(len(rows), bool)
    )
    return data.Feed(source, usable, processor, made.prompt), data.order(rows, 0), mesh.make(1, 1, 1)


@pytest.mark.parametrize(
    "dead,taken,cursor",
    [
        ((1, 3), [0, 4, 2, 5], 8),  # the first two live draws of the next pass, in their places
        ((1, 4, 5), [0, 6, 2, 3], 8),
        ((0, 1, 2, 3, 4, 5, 7), [6, 8, 9, 10], 12),  # a second pass for what is still dead
        ((), [0, 1, 2, 3], 4),
        (tuple(range(99)), [0, 1, 2, 3], 16),  # REFILLS passes, then what is dead stays
    ],
)
def test_dead_groups_are_drawn_anew(monkeypatch, feed, dead, taken, cursor):
    rows, order, device_mesh = feed
    made = tiny_runs.settings()
    draws = lambda start: data.draws(order, start, 4)

    @dataclasses.dataclass
    class Run:
        config, train, mesh = made, rows, device_mesh
        sampling = attempts.Programs(fake_sample, Layout(CUT))

        def judging(self, _):
            return None

        def ask(self, stage, start):
            return self.train.ask(draws(start).row_n, draws(start).draw_n)

    def scheme(response, record, verdict, settings):
        draw, rollout = responses[response]
        return {"reward": 0.5 if draw in dead else float(rollout), "draw": float(draw)}

    responses = {}

    def decode(ids):
        text = f"draw {ids[0] // 10} rollout {ids[0] % 10}, {len(ids)} tokens"
        responses[text] = divmod(int(ids[0]), 10)
        return text

    monkeypatch.setattr(rows.processor, "decode", decode)
    monkeypatch.setitem(rewards.SCHEMES, "safegrpo", rewards.Scheme(scheme, ""))
    run = Run()
    asked = run.ask("grpo", 0)
    rollout = attempts.rollout(run.sampling, None, asked.prompts, 0, run.mesh)
    scored = scoring.score(rollout, asked.records, rows.processor, made.reward)
    asked, rollout, scored, moved = train.refill(run, None, asked, rollout, scored, None, 4)

    assert moved == cursor and asked.prompts.draw_P.tolist() == taken
    expected = [order.dataset[draw] for draw in taken]
    assert [record.id for record in asked.records] == [rows.source[int(row)].id for row in expected]
    whole_again = rows.ask(expected, taken)
    for name, value in asked.prompts._asdict().items():
        np.testing.assert_array_equal(value, getattr(whole_again.prompts, name), err_msg=name)
    fresh, _ = fake_sample(None, whole_again.prompts)
    for name, value in rollout._asdict().items():
        np.testing.assert_array_equal(value, getattr(fresh, name), err_msg=name)
    again = scoring.score(rollout, asked.records, rows.processor, made.reward)
    assert scored.responses == again.responses
    assert scored.terms.keys() == again.terms.keys()
    for name, value in scored.terms.items():
        np.testing.assert_array_equal(value, again.terms[name], err_msg=name)


@pytest.mark.parametrize("reflection", [28, 0])
def test_a_shown_rerun_trains_what_the_policy_should_say(feed, reflection):
    """Flawed answer, instruction and header are context; with a share of one half, draws differ, and stay the same."""
    rows, _, _ = feed
    encode, turn = rows.processor.encode_completion, rows.processor.encode_turn
    texts, header = [turn("Look again."), turn("What is wrong here?")], turn("Answer again.")
    width = max(map(len, texts))
    programs = attempts.Programs(
        sample=None,
        layout=Layout(72, 1 + width, reflection, 1 + len(header) if reflection else 0, 1),
        instruction_KF=np.stack([np.pad(text, (width - len(text), 0)) for text in texts]),
        is_instruction_KF=np.stack([np.arange(width) >= width - len(text) for text in texts]),
        header=header,
    )
    changes = {"sft.reflections": 0.5, "reflection.max_tokens": reflection}
    run = types.SimpleNamespace(config=tiny_runs.settings(changes, file="tiny_safer"), sampling=programs, train=rows)
    chosen = [row for row in range(32) if rows.source[row].flawed][:8]
    asked = rows.ask(chosen, list(range(100, 108)))
    batch = batches.of_references(run.config, run.sampling, run.train.processor, asked)
    kinds = set()
    for p, (record, draw) in enumerate(zip(asked.records, range(100, 108), strict=True)):
        said = encode(record.reflection) if reflection else np.zeros(0, np.int32)
        after = [*said, *header] if reflection else []
        context = [*encode(record.flawed), *texts[draw % 2]]
        whole = [*context, *after, *encode(record.reference)]
        is_trained = [False] * len(context) + [True] * len(said) + [False] * (len(after) - len(said))
        ids = batch.token_PGC[p, 0][batch.is_valid_PGC[p, 0]].tolist()
        kinds.add(ids == whole)
        if ids == whole:
            length = len(encode(record.reference))
            assert batch.is_trained_PGC[p, 0][: len(ids)].tolist() == is_trained + [True] * length
        else:
            assert ids == encode(record.reference).tolist()
            assert batch.is_trained_PGC[p].sum() == len(ids)
    assert kinds == {True, False}
    again = batches.of_references(run.config, run.sampling, run.train.processor, asked)
    np.testing.assert_array_equal(batch.token_PGC, again.token_PGC)


def test_advantages_follow_the_rule_for_long_answers():
    """Two groups: rewards 1 and 0, one of them cut; rewards equal. Under `mask` the cut one does not count."""
    made = tiny_runs.settings({"grpo.overlong": "mask", "grpo.advantage": "group_mean"})
    token = np.zeros((2, 2, 3), np.int32)
    is_cut = np.array([[[False], [True]], [[False], [False]]])
    roles, verdict = np.full_like(token, ANSWER, np.int8), np.zeros((2, 2, 1, 0), np.float32)
    rollout = Rollout(token, token.astype(np.float32), roles, token.astype(np.int8), is_cut, verdict)
    rewarded = lambda reward, tokens: scoring.Scored(
        [], {name: np.array(v, np.float32)[..., None] for name, v in (("reward", reward), ("tokens", tokens))}
    )
    scored = rewarded([[1.0, 0.0], [0.5, 0.5]], [[3, 3], [3, 3]])
    value, is_valid, health = train.advantage(made, rollout, scored)
    assert is_valid[..., 0].tolist() == [[True, False], [True, True]]
    assert value[..., 0].tolist() == [[0.0, 0.0], [0.0, 0.0]], "alone in its group an answer has no rival"
    assert health["dead_groups"] == 1.0
    np.testing.assert_allclose(health["reward_std"], (0.5 + 0.0) / 2)
    kept = dataclasses.replace(made, grpo=dataclasses.replace(made.grpo, overlong="keep"))
    value, _, health = train.advantage(kept, rollout, scored)
    assert value[..., 0].tolist() == [[0.5, -0.5], [0.0, 0.0]] and health["dead_groups"] == 0.5
    # A buffer of half the limit: at three quarters of it half the penalty, so 1 against 0.5 in the first group.
    soft = {"grpo.overlong": "soft_penalty", "grpo.overlong_buffer": 36, "grpo.advantage": "group_mean"}
    scored = rewarded(np.ones((2, 2)), [[36, 54], [3, 3]])
    value, _, health = train.advantage(tiny_runs.settings(soft), rollout, scored)
    assert value[..., 0].tolist() == [[0.25, -0.25], [0.0, 0.0]]
    assert (health["dead_groups"], health["reward_std"]) == (0.5, 0.0), "the spread is of what is trained on"


# ---- The real command ----


def command(file, workdir, *overrides):
    return [
        *(sys.executable, "-m", "safer_jax.train", f"--config=configs/{file}.py:smoke", f"--workdir={workdir}"),
        *(f"--config.{override}" for override in overrides),
    ]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """One device, and programs that the second start finds compiled."""
    names = {name.upper(): str(value) for name, value in tiny_runs.CACHE.items()}
    cache = str(tmp_path_factory.mktemp("programs"))
    dropped = {name: value for name, value in os.environ.items() if not name.startswith(("NNX_", "XLA_FLAGS"))}
    return {**dropped, **names, "JAX_COMPILATION_CACHE_DIR": cache, "JAX_PLATFORMS": "cpu"}


def start(arguments, environment):
    return subprocess.Popen(arguments, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def wait_for(path, word, process, seconds=300):
    """Until a line of a file holds a word."""
    end = time.monotonic() + seconds
    while not (path.exists() and word in path.read_text()):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end, f"no {word} in {path}"
        time.sleep(0.05)


def test_a_signal_ends_the_command_and_the_same_command_goes_on(tmp_path, environment):
    """configs/safegrpo_3b.py:smoke on a set in SafeTag's schema: SIGTERM in its first step, then to its end; then
    configs/safegrpo_7b.py:smoke, the same shapes, at one go."""
    path = safetag_files.write_set(tmp_path / "set", 12, 6)
    overrides = f"data.path={path}", "prompt.buckets=(512,)"  # which these rows need
    three, seven = tmp_path / "3b", tmp_path / "7b"
    process = start(command("safegrpo_3b", three, *overrides), environment)
    wait_for(three / "metrics.jsonl", '"before"', process)
    process.send_signal(signal.SIGTERM)
    told = process.communicate(timeout=300)[1]
    assert process.returncode == ExitCode.STOPPED, told
    assert "SIGTERM: stopping after this step" in told and "Traceback" not in told
    assert checkpoint.steps(three / "checkpoints") == [1]

    for name, folder in (("safegrpo_3b", three), ("safegrpo_7b", seven)):
        process = start(command(name, folder, *overrides), environment)
        told = process.communicate(timeout=300)[1]
        assert process.returncode == ExitCode.DONE, told
        rows = lines(folder / "metrics.jsonl")
        told = [(row["step"], row["stage"], row.get("when")) for row in rows]
        assert told == [
            (0, "data", None),
            (0, "eval", "before"),
            (1, "grpo", None),
            (2, "grpo", None),
            (2, "eval", "after"),
        ]
        assert checkpoint.steps(folder / "checkpoints") == [1, 2]
        assert (folder / "report.html").stat().st_size > 10_000
    assert rows[3]["compiles"] == 0, "the second step of one process"
    both = [without_times(lines(folder / "metrics.jsonl")) for folder in (three, seven)]
    assert both[0] == both[1], "stopped and not, the same seed and the same tiny policy"


@pytest.mark.slow
def test_kills_at_any_moment_cost_no_step(tmp_path, environment):
    """SIGKILL after 3, 6, 9, ... seconds, until one start lives to the end: all figures as without a kill."""
    overrides = [f"{name}={value}" for name, value in tiny_runs.SMALL.items()]
    subprocess.run(command("tiny", tmp_path / "whole", *overrides), cwd=ROOT, env=environment, check=True)
    kills = 0
    while True:
        process = start(command("tiny", tmp_path / "killed", *overrides), environment)
        try:
            told = process.communicate(timeout=3 * (kills + 1))[1]
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
            continue
        assert process.returncode == ExitCode.DONE, told
        break
    assert kills > 0
    first, second = tmp_path / "whole", tmp_path / "killed"
    assert_same(first / "checkpoints", second / "checkpoints", 4)
    assert without_times(lines(first / "metrics.jsonl")) == without_times(lines(second / "metrics.jsonl"))
    for path in (first / "rollouts").glob("*.jsonl"):
        assert path.read_text() == (second / "rollouts" / path.name).read_text()
