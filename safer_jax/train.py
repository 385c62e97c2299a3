"""Train a policy: warm start on references, then GRPO on its own answers. START HERE (host code; calls array code).

    python -m safer_jax.train --config=configs/tiny.py --workdir=runs/tiny
    python -m safer_jax.train --config=configs/tiny.py --workdir=runs/low_kl --config.grpo.beta=0.001

The data path is a line: dataset -> prompts -> rollout -> reward -> advantage -> update -> checkpoint. `rl_step` walks
it once; `train` repeats that with evaluations, checkpoints and metrics. The same command resumes a stopped run.
"""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging

from safer_jax import (
    attempts,
    batches,
    build,
    command,
    command_line,
    data,
    grpo,
    guard,
    mesh,
    metrics,
    report,
    runtime,
    scoring,
)
from safer_jax import config as config_lib
from safer_jax.build import Run
from safer_jax.judge.breaker import JudgeDown
from safer_jax.shapes import Rollout, TrainState

REFILLS = 3  # further passes that may look for groups whose rewards differ


def rl_step(run: Run, now: TrainState, reference: Any) -> tuple[TrainState, dict[str, float]]:
    """One GRPO step, the data path walked once."""
    config, clock = run.config, metrics.Clock()

    # 1. Prompts: the next draws of the global order.
    cursor = int(now.cursor)
    asked = run.ask("grpo", cursor)

    # 2. Rollout: a group of answers to each; what the judge rejects is reflected on and answered again.
    weights = run.for_sampling(now.params)
    judging = run.judging(asked.records)
    rollout = attempts.rollout(run.sampling, weights, asked.prompts, config.sampler.prompts_per_pass, run.mesh, judging)
    canaries = run.check_judge(judging, int(now.step) - config.sft.steps)
    clock.lap("sample")

    # 3. Reward: arithmetic on texts, records and verdicts; where the config says so, dead groups are drawn anew.
    scored = scoring.score(rollout, asked.records, run.train.processor, config.reward)
    cursor += config.grpo.prompts
    if config.grpo.refill:
        asked, rollout, scored, cursor = refill(run, weights, asked, rollout, scored, judging, cursor)
    del weights  # the update needs the room
    clock.lap("reward")

    # 4. Advantage: of each attempt against its group.
    advantage_PGE, is_counted_PGE, health = advantage(config, rollout, scored)

    # 5. Update: every minibatch of this batch once.
    batch = batches.of_rollout(config, asked.prompts, rollout, advantage_PGE, is_counted_PGE)
    batch = mesh.put(batches.by_length(batch, config.grpo, config.grpo.minibatches), run.mesh)
    now, updated = run.grpo_update(now._replace(cursor=run.replicate(cursor)), run.with_logps(now, reference, batch))
    updated = jax.tree.map(float, updated)
    clock.lap("update")

    if run.is_due(config.log.rollouts_every, int(now.step) - config.sft.steps):
        told = run.tell(rollout, advantage_PGE, judging)
        run.save_rollouts(int(now.step), "grpo", config.data.train_split, asked.records, scored, told)
    figures = {**run.figures(rollout, scored), **canaries, **health, **updated, **clock.seconds()}
    return now, {**figures, "epoch": cursor / run.orders["grpo"].size}


def sft_step(run: Run, now: TrainState, reference: None) -> tuple[TrainState, dict[str, float]]:
    """One supervised step on reference responses."""
    clock, cursor = metrics.Clock(), int(now.cursor)
    asked = run.ask("sft", cursor)
    batch = batches.of_references(run.config, run.sampling, run.train.processor, asked)
    cursor += run.config.sft.rows
    tokens = int(mesh.gather(batch.is_trained_PGC.sum((1, 2))).sum())
    batch = mesh.put(batches.by_length(batch, run.config.grpo), run.mesh)
    now, updated = run.sft_update(now._replace(cursor=run.replicate(cursor)), batch)
    updated = jax.tree.map(float, updated)
    clock.lap("update")
    figures = {**updated, **clock.seconds()}
    return now, {**figures, "tokens_per_s": tokens / figures["seconds"], "epoch": cursor / run.orders["sft"].size}


def refill(
    run: Run,
    weights: Any,
    asked: data.Asked,
    rollout: Rollout,
    scored: scoring.Scored,
    judging: scoring.Judging | None,
    cursor: int,
) -> tuple[data.Asked, Rollout, scoring.Scored, int]:
    """Dynamic sampling (DAPO, arXiv 2503.14476): groups whose rewards are all equal teach nothing; take later draws.

    Every process makes the same passes, for sampling is collective, but exchanges only its own rows. The draws that a
    pass does not need are passed over. After REFILLS passes what is still dead stays.
    """
    for _ in range(REFILLS):
        if (mesh.gather(scoring.spread(scored)) > 0).all():
            break
        more = run.ask("grpo", cursor)
        cursor += run.config.grpo.prompts
        again = run.judging(more.records)
        drawn = attempts.rollout(
            run.sampling, weights, more.prompts, run.config.sampler.prompts_per_pass, run.mesh, again
        )
        if again:
            again.check()
        judged = scoring.score(drawn, more.records, run.train.processor, run.config.reward)
        pairs = list(zip(np.flatnonzero(scoring.spread(scored) == 0), np.flatnonzero(scoring.spread(judged) > 0)))
        asked = run.train.exchange(asked, more, pairs)
        for i, j in pairs:
            for old, new in zip([*rollout, *scored.terms.values()], [*drawn, *judged.terms.values()], strict=True):
                old[i] = new[j]
            scored.responses[i] = judged.responses[j]
            if judging:
                judging.take(i, again, j)
    return asked, rollout, scored, cursor


def advantage(
    config: config_lib.Config, rollout: Rollout, scored: scoring.Scored
) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """(advantage_PGE, is_counted_PGE, health of all groups) of this process's rows.

    An attempt whose judge failed has no reward: it neither counts nor trains.
    """
    settings, reward_PGE = config.grpo, scored.terms["reward"]
    is_valid_PGE = np.isfinite(reward_PGE)
    reward_PGE, is_valid_PGE = grpo.overlong(
        np.where(is_valid_PGE, reward_PGE, 0.0),
        is_valid_PGE,
        np.nan_to_num(scored.terms["tokens"]).astype(np.int32),
        rollout.is_cut_PGE,
        settings.overlong,
        config.sampler.max_tokens,
        settings.overlong_buffer,
    )
    advantage_PGE, spread_P = grpo.advantages(
        reward_PGE, is_valid_PGE, settings.advantage, settings.baseline, settings.std_epsilon
    )
    std_P = np.ma.masked_invalid(scored.terms["reward"]).std((1, 2)).filled(0.0)
    spread_P, std_P = mesh.gather((np.asarray(spread_P), std_P))
    health = {"dead_groups": float((spread_P == 0).mean()), "reward_std": float(std_P.mean())}
    return np.asarray(advantage_PGE), grpo.counted(is_valid_PGE, settings.baseline), health


def train(config: config_lib.Config, folder: pathlib.Path) -> TrainState:
    """The whole run: evaluate, warm start, evaluate, GRPO, evaluate, report. Resumes where `folder` says it stopped.

    Raises:
      runtime.Stopped: a signal asked for the end; the state is saved and the same command goes on.
    """
    run, now = build.build(config, folder)
    with jax.set_mesh(run.mesh), run, run.stopper, run.watchdog:
        if int(now.step) == 0:
            evaluate_now(run, now, "before")
        now = stage(run, now, "sft", sft_step, config.sft.steps)
        if int(now.step) == config.sft.steps:
            now = run.start_grpo(now)
        reference = run.reference(now)
        now = stage(run, now, "grpo", rl_step, config.sft.steps + config.grpo.steps, reference)
    return now


def stage(
    run: Run,
    now: TrainState,
    name: str,
    step_of: Callable[[Run, TrainState, Any], tuple[TrainState, dict[str, float]]],
    last: int,
    reference: Any = None,
) -> TrainState:
    """Steps up to number `last`, each logged; evaluations, checkpoints and an orderly stop between them."""
    config, is_shown = run.config, jax.process_index() == 0
    progress = metrics.Progress(last, start=int(now.step), title=name, is_shown=is_shown)
    try:
        while int(now.step) < last:
            compiled = runtime.compiles()
            now, figures = step_of(run, now, reference)
            step = int(now.step)
            figures["compiles"] = runtime.compiles() - compiled
            if run.is_due(config.log.every, step):
                run.writer.write(step, name, figures)
            progress.update(step, figures)
            run.watchdog.beat()
            run.check_skipped(now)
            done = step - config.sft.steps
            if step == last:
                evaluate_now(run, now, "warm" if name == "sft" else "after")
            elif name == "grpo" and run.is_due(config.eval.every, done):
                evaluate_now(run, now, "during")
            is_stopping = run.stopper.requested(step)
            if step == last or is_stopping or run.is_due(config.checkpoint.every, step):
                run.save(now, name)
            if is_stopping:
                raise runtime.Stopped(f"stopped after step {step}; the same command resumes there")
    except JudgeDown:
        run.save(now, name)
        raise
    return now


def evaluate_now(run: Run, now: TrainState, when: str) -> None:
    """Answer the test rows once, write figures and some answers, and draw the report anew."""
    step, clock = int(now.step), metrics.Clock()
    weights = run.for_sampling(now.params)
    figures, records, scored = scoring.evaluate(
        run.testing, weights, run.test, run.test_rows, run.config, run.mesh, run.judge
    )
    run.writer.write(step, "eval", {**figures, **clock.seconds(), "when": when})
    scoring.save_terms(run.folder / "evaluations", step, records, scored)
    run.save_rollouts(step, "eval", run.config.data.eval_split, records, scored)
    if jax.process_index() == 0:
        report.write(run.folder)


_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, metrics, rollouts, report.html.")
flags.register_validator(
    "workdir",
    lambda text: text is None or "://" not in text,
    "is an address; a run writes to a folder: mount the bucket and give its folder",
)


def main(_: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)  # Orbax tells thirty lines a checkpoint
    folder = pathlib.Path(_WORKDIR.value).expanduser().absolute()
    command.as_escapes()
    with runtime.started(build.BAD_INPUT):
        config = command_line.read()
        with runtime.alone(folder):
            train(config, folder)
    for line in guard.alerts(folder):
        print(line)
    print(f"report: {folder / 'report.html'}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main, flags_parser=command_line.parse)
