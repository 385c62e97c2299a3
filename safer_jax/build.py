"""What a run is made of, built once from its config: data, policy, mesh, jitted functions, files (host code)."""

import dataclasses
import functools
import json
import os
import pathlib
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import Self

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils

from safer_jax import (
    attempts,
    checkpoint,
    data,
    images,
    judging,
    measured,
    mesh,
    metrics,
    overlap,
    programs,
    prompts,
    rewards,
    runtime,
    scoring,
    shards,
    state,
    verdicts,
)
from safer_jax import config as config_lib
from safer_jax.datasets import demo
from safer_jax.judge import JudgeError, kinds
from safer_jax.model import variants, vlm
from safer_jax.shapes import Batch, Record, Rollout, TrainState
from safer_jax.update import Updater


class ResumeError(ValueError):
    """The folder holds another run; the message lists the settings that differ."""


BAD_INPUT = (  # errors that the user can mend: their messages say how
    config_lib.ConfigError,
    data.DataError,
    prompts.PromptError,
    mesh.MeshError,
    checkpoint.CheckpointError,
    shards.ConvertError,
    metrics.MetricsError,
    ResumeError,
    JudgeError,
)


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """What does not change during a run. The functions are jitted; `with run:` closes its files and threads."""

    config: config_lib.Config
    folder: pathlib.Path
    mesh: jax.sharding.Mesh
    train: data.Feed
    test: data.Feed
    test_rows: Sequence[int]
    orders: dict[str, data.Order]  # of the draws of each stage: "sft" (rows with a reference), "grpo" (all)
    sampling: attempts.Programs  # groups, with reruns of what a judge rejects
    testing: attempts.Programs  # one answer a prompt
    judge: verdicts.Judge | None
    for_sampling: Callable[[nnx.State], nnx.State]  # training parameters -> the sampler's own copy
    sft_update: Callable[[TrainState, Batch], tuple[TrainState, dict]]
    grpo_update: Callable[[TrainState, Batch], tuple[TrainState, dict]]
    logp: Callable[[nnx.State, Batch], jax.Array]
    start_grpo: Callable[[TrainState], TrainState]
    abstract: TrainState  # with shardings: what a restore fills
    stopper: runtime.Stopper
    watchdog: runtime.Watchdog
    writer: metrics.Writer
    prefetch: data.Prefetch

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.prefetch.close()
        self.writer.close()

    def ask(self, stage: str, cursor: int) -> data.Asked:
        """The prompts of the step that starts at draw `cursor`; those of the next step are made meanwhile."""
        asked = self.prefetch.get(stage, cursor)
        self.prefetch.ahead(stage, cursor + _rows_of(self.config, stage))
        return asked

    def with_logps(self, now: TrainState, reference: nnx.State | None, batch: Batch) -> Batch:
        """The passes that the objective needs before the update: none when on-policy and without a reference."""
        if reference is not None:
            batch = batch._replace(ref_logp_PGC=self.logp(reference, batch))
        if self.config.grpo.minibatches > 1:
            batch = batch._replace(old_logp_PGC=self.logp(now.params, batch))
        return batch

    def reference(self, now: TrainState) -> nnx.State | None:
        """The frozen policy of the KL term: the parameters at GRPO's first step, kept in the run's folder."""
        if self.config.grpo.beta == 0 or self.config.grpo.steps == 0:
            return None
        folder = self.folder / "reference"
        if int(now.step) == self.config.sft.steps:
            checkpoint.save(folder, int(now.step), {"params": now.params}, {})
        return checkpoint.restore(folder, {"params": self.abstract.params})[0]["params"]

    def judging(self, records: Sequence[Record]) -> scoring.Judging | None:
        """The judge of these prompts' attempts, where the run has one."""
        return self.judge and scoring.Judging(
            self.judge, records, self.train.processor, self.config.reflection.accept_at
        )

    def check_judge(self, judging: scoring.Judging | None, done: int) -> dict[str, float]:
        """Raises JudgeDown on all processes where a judge is down; the canaries' figures where these are due."""
        if judging is None:
            return {}
        is_due = self.is_due(self.config.judge.canaries_every, done + 1)
        figures = judging.canaries() if is_due else {}
        judging.check()
        return figures

    def tell(self, rollout: Rollout, advantage_PGE: np.ndarray, judging: scoring.Judging | None) -> scoring.Told:
        """What people are told of a rollout beside its scores."""
        names = self.judge.rubric.names if self.judge else ()
        reflections = scoring.reflections(rollout, self.train.processor)
        return scoring.Told(
            advantage_PGE, rollout.verdict_PGEJ, names, judging.comments if judging else {}, reflections
        )

    def figures(self, rollout: Rollout, scored: scoring.Scored) -> dict[str, float]:
        """A training rollout's figures over all processes: of each row's last attempt, and what judging did."""
        last = {name: scoring.final(value, rollout.is_attempt_PGE) for name, value in scored.terms.items()}
        judged = {}
        if self.judge:
            safety_PGE = verdicts.safety(self.judge.rubric, rollout.verdict_PGEJ)
            first = scored.terms["reward"][..., 0]
            judged = scoring.judged(
                *mesh.gather((safety_PGE, rollout.is_attempt_PGE, first)), self.config.reflection.accept_at
            )
        same = scoring.repeats(mesh.gather(scoring.digests(scored)))
        return {**scoring.figures(mesh.gather(last)), **same, **judged}

    def save(self, now: TrainState, stage: str) -> None:
        checkpoint.save(
            self.folder / "checkpoints", int(now.step), now, {"stage": stage}, keep=self.config.checkpoint.keep
        )

    def save_rollouts(
        self,
        step: int,
        stage: str,
        split: str,
        records: Sequence[Record],
        scored: scoring.Scored,
        told: scoring.Told | None = None,
    ) -> None:
        """Process 0 keeps some of its rows for people to read."""
        if jax.process_index() == 0 and self.config.log.rollouts:
            limits, count = self.train.processor.limits, self.config.log.rollouts
            folder = self.folder / "rollouts"
            scoring.save_rollouts(folder, step, stage, split, records, scored, limits, count, told)

    def check_skipped(self, now: TrainState) -> None:
        """Raises FloatingPointError after too many updates in a row that were not finite."""
        in_a_row = int(now.skipped_in_a_row)
        if in_a_row >= self.config.optimizer.max_skipped:
            raise FloatingPointError(
                f"step {int(now.step)}: the last {in_a_row} updates had a loss or gradient that is not finite and were "
                f"not applied (optimizer.max_skipped = {self.config.optimizer.max_skipped}); lower optimizer.lr, or "
                "resume from the last checkpoint with model.dtype='float32' to find the cause"
            )

    def replicate(self, value: int) -> jax.Array:
        return mesh.replicate(np.int32(value), self.mesh)

    @staticmethod
    def is_due(every: int, step: int) -> bool:
        return every > 0 and step % every == 0


def build(config: config_lib.Config, folder: pathlib.Path) -> tuple[Run, TrainState]:
    """A run and its state: fresh, or as the newest checkpoint of `folder` has it.

    Raises ConfigError, DataError, MeshError, PromptError, CheckpointError or ResumeError, each naming value and fix.
    """
    if config.model.dtype == "float32":  # TPUs and GPUs would multiply float32 in fewer bits
        jax.config.update("jax_default_matmul_precision", "highest")
    device_mesh = mesh.make(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    _check_batches(config, device_mesh)
    is_resumed = checkpoint.latest(folder / "checkpoints") is not None
    _claim(config, folder, is_resumed)
    model_config = prepare_assets(config, folder / "assets")
    processor = make_processor(config, folder / "assets", model_config)
    train, test, orders, shared = _feeds(config, processor)

    updater = make_updater(config, model_config, processor)
    make = lambda key: state.create(vlm.init_params(model_config, key), updater.optimizers["sft"])
    abstract = jax.eval_shape(make, jax.random.key(0))
    shardings = state.shardings(abstract, device_mesh)
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings)
    with jax.set_mesh(device_mesh):
        now = _first_state(config, folder, abstract, shardings, make, updater)
    if jax.process_index() == 0:
        scoring.rewind(folder / "rollouts", int(now.step) if is_resumed else -1)
    run = Run(
        config=config,
        folder=folder,
        mesh=device_mesh,
        train=train,
        test=test,
        test_rows=_rewarded(config, test)[: config.data.eval_rows or None].tolist(),
        orders=orders,
        judge=make_judge(config, folder, device_mesh),
        **programs.compiled(config, updater, processor, device_mesh, abstract, shardings),
        abstract=abstract,
        stopper=runtime.Stopper(),
        watchdog=runtime.watchdog(),
        writer=metrics.Writer(
            folder,
            int(now.step) if is_resumed else -1,
            config.log.tensorboard,
            config.log.wandb,
            config_lib.flatten(config),
            is_writer=jax.process_index() == 0,
        ),
        prefetch=data.Prefetch(functools.partial(_ask, config, train, orders)),
    )
    if not is_resumed:
        run.writer.write(0, "data", shared)
    return run, now


def prepare_assets(config: config_lib.Config, folder: pathlib.Path) -> variants.ModelConfig:
    """Put the files that stand beside the weights into the run, so that an export of it is complete.

    Raises ConfigError where model.path holds no converted model, or one of another variant.
    """
    source = pathlib.Path(config.model.path).expanduser() / "assets"
    if config.model.path and not folder.exists():
        read_source(config)
    if jax.process_index() == 0 and not folder.exists():
        partial = folder.with_name("assets.partial")  # a kill leaves nothing half done under the final name
        shutil.rmtree(partial, ignore_errors=True)
        if config.model.path:
            shutil.copytree(source, partial)
        else:
            write_assets(config, partial)
        os.replace(partial, folder)
    multihost_utils.sync_global_devices("assets")
    return variants.from_hf(json.loads((folder / "config.json").read_text()))


def write_assets(config: config_lib.Config, folder: pathlib.Path) -> None:
    """The files that belong to random weights: the demo set's tokenizer, and the shape of model.variant."""
    demo.assets(folder, config.data.root)
    tokenizer = prompts.load_tokenizer(str(folder))
    end_id, pad_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    model = variants.to_hf(variants.VARIANTS[config.model.variant], end_id=end_id, pad_id=pad_id)
    (folder / "config.json").write_text(json.dumps(model, indent=2) + "\n")


def read_source(config: config_lib.Config) -> variants.ModelConfig:
    """The shape of the model in model.path. Raises ConfigError where there is none, or one that is known to be of another
    variant than model.variant."""
    settings = config.model
    source = pathlib.Path(settings.path).expanduser() / "assets"
    try:
        found = variants.from_hf(json.loads((source / "config.json").read_text()))
    except (OSError, ValueError) as error:
        raise config_lib.ConfigError(
            f"model.path = {settings.path!r}: no converted model ({error}); write one with "
            f"`python tools/convert.py from-hf SRC {settings.path}`, or correct the path"
        ) from error
    for name, variant in variants.VARIANTS.items():
        if found == variant and name != settings.variant:
            raise config_lib.ConfigError(
                f"model.variant = {settings.variant!r}: model.path = {settings.path!r} holds a {name!r}; correct either"
            )
    return found


def make_processor(
    config: config_lib.Config, assets: pathlib.Path, model_config: variants.ModelConfig
) -> prompts.Processor:
    """The processor of a run: its tokenizer, its limits, the texts that its config names."""
    settings, vision = config.prompt, model_config.vision
    config_lib.check_images(config, vision.patch, vision.merge, vision.window_slots)
    return prompts.Processor(
        prompts.load_tokenizer(str(assets)),
        images.Limits(settings.min_pixels, settings.max_pixels, settings.max_image_bytes, settings.max_source_pixels),
        images.Geometry(vision.patch, vision.merge, vision.window),
        system=prompts.SYSTEMS[settings.system],
        guide=prompts.GUIDES[settings.guide],
        force_think=settings.force_think,
        letter_guide=prompts.LETTER_GUIDES[settings.guide],
    )


def make_judge(
    config: config_lib.Config, folder: pathlib.Path | None, device_mesh: jax.sharding.Mesh, rubric: str = ""
) -> verdicts.Judge | None:
    """The judge that the config names, asked what the reward scheme wants to know, or another `rubric`; None without one.

    A scheme that needs no verdict still has rejected rows asked again: then the judge answers SaFeR-VLM's rubric. What
    a server says is kept in the run's `folder`, so that a re-run can replay it. A local judge is loaded onto the mesh.
    """
    rubric = verdicts.RUBRICS[rubric or rewards.SCHEMES[config.reward.scheme].rubric or "safer_vlm"]
    is_kept = folder is not None and config.judge.kind == "http"
    kept = folder / "verdicts" / f"{jax.process_index()}.jsonl" if is_kept else None
    local = None
    if config.judge.kind in kinds.LOCAL:
        local = judging.make(config, rubric, device_mesh, programs.key(config, programs.VERDICTS))
    return kinds.make(config.judge, rubric, record_to=kept, local=local)


def make_updater(
    config: config_lib.Config, model_config: variants.ModelConfig, processor: prompts.Processor
) -> Updater:
    graph, _ = vlm.abstract(model_config)
    sft, rl = config.sft, config.optimizer
    optimizers = {
        "sft": state.optimizer(rl, lr=sft.lr, warmup_steps=sft.warmup_steps, weight_decay=sft.weight_decay),
        "grpo": state.optimizer(rl, lr=rl.lr, warmup_steps=rl.warmup_steps, weight_decay=rl.weight_decay),
    }
    return Updater(config, graph, optimizers, processor.banned_V(model_config.text.vocab))


def _check_batches(config: config_lib.Config, device_mesh: jax.sharding.Mesh) -> None:
    """Refuse now what `mesh.put` would refuse at the first batch of its kind, perhaps hours from here."""
    rows = {"eval.prompts": config.eval.prompts}
    if config.sft.steps:
        rows["sft.rows"] = config.sft.rows
    if config.grpo.steps:
        rows["grpo.prompts"] = config.grpo.prompts
        rows["sampler.prompts_per_pass"] = config.sampler.prompts_per_pass
    ways = device_mesh.shape["data"] * device_mesh.shape["fsdp"]
    if wrong := ", ".join(f"{name} = {count}" for name, count in rows.items() if count % ways):
        raise mesh.MeshError(
            f"{wrong}: cannot be cut over mesh.data x mesh.fsdp = {ways} devices; make each a multiple of {ways}, or "
            "give devices to mesh.tensor"
        )


def _claim(config: config_lib.Config, folder: pathlib.Path, is_resumed: bool) -> None:
    """Write config.json into a new run's folder; in an old one, refuse settings that would make it another run."""
    path = folder / "config.json"
    if path.exists() and is_resumed:
        old = config_lib.from_json(path.read_text())
        may_change = (
            "grpo.steps",
            "eval.",
            "eval_judge.",
            "checkpoint.",
            "log.",
            "mesh.",
            "data.root",
            "optimizer.max_skipped",
        )
        changed = [line for line in config_lib.differences(old, config) if not line.startswith(may_change)]
        if changed:
            raise ResumeError(
                f"{folder} holds a run with other settings:\n  " + "\n  ".join(changed) + "\n"
                "take them back to resume it, or choose a new --workdir"
            )
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        if not is_resumed and (folder / "assets").exists():
            shutil.rmtree(folder / "assets")  # of an attempt that saved nothing, perhaps with another model
        partial = path.with_suffix(".partial")
        partial.write_text(config_lib.to_json(config))
        os.replace(partial, path)
    multihost_utils.sync_global_devices("config")


def _feeds(config: config_lib.Config, processor: prompts.Processor):
    """(training feed, test feed, order of the draws of each stage, what both splits share)."""
    most = max(config.prompt.buckets), max(config.prompt.patch_buckets)
    feeds, prints = [], []
    tells = lambda record: rewards.tells(record, config.reward.scheme)
    for split, is_training in ((config.data.train_split, True), (config.data.eval_split, False)):
        source = data.load(config.data, split)
        seen = overlap.Prints(source.name, config.data.root, processor.limits)
        sizes = measured.Sizes(processor, config.data.root, source.name)
        measure = seen.along(sizes) if jax.process_index() == 0 else sizes  # all find the same, one tells
        allowed = config.data.train_on_eval
        usable = data.usable(
            source, measure, *most, config.data.bad_rows, is_training, train_on_eval=allowed, tells=tells
        )
        seen.save()
        sizes.save()
        prints.append(seen)
        feeds.append(data.Feed(source, usable, processor, config.prompt))
    train, test = feeds
    parts = getattr(train.source, "parts", ())
    rows = _rewarded(config, train) if config.grpo.steps else train.usable.rows
    orders = {"grpo": data.order(rows, config.seed, parts=parts)}
    if config.sft.steps:
        orders["sft"] = data.order(_reference_rows(config, train), config.seed, parts=parts)
    return train, test, orders, _shared(*prints)


def _rewarded(config: config_lib.Config, feed: data.Feed) -> np.ndarray:
    """int64: the usable rows that the reward can score. Where rules alone reward, others teach nothing: they are counted
    and named, and a set of which nothing is left is refused. Raises DataError."""
    reward = config.reward
    is_by_rules = not rewards.SCHEMES[reward.scheme].rubric
    if not is_by_rules and max(reward.tag_weight, reward.behaviour_weight) <= 0:
        return feed.usable.row_n
    of = f"reward.scheme = {reward.scheme!r}" if is_by_rules else "reward.tag_weight or reward.behaviour_weight"
    what = f"{rewards.ASKED.get(reward.scheme, 'all three tags')}, which {of} needs"
    fixes = ["tag the set with tools/tag.py"]
    fixes += ["take scheme 'safegrpo_plus', which skips unknown tags"] if reward.scheme == "safegrpo" else []
    fixes += ["take a scheme with a judge, such as 'safer_vlm'"] if is_by_rules else ["set the weights to 0"]
    return data.told(feed.source, feed.usable, what, ", or ".join(fixes), is_by_rules)


def _shared(train: overlap.Prints, test: overlap.Prints) -> dict[str, int | str]:
    """What the rows to be evaluated share with those to be trained on, as figures and as one line, which is said."""
    if jax.process_index() > 0:
        return {}
    found = overlap.compare(train, test)
    line = found.line(train.name, test.name)
    print(line, file=sys.stderr, flush=True)
    return {**found.counts, "overlap": line}


def _reference_rows(config: config_lib.Config, train: data.Feed) -> list[int]:
    """The rows that the warm start may imitate: a draw of `sft.reference_rows` among those with a reference."""
    rows = [row for row in train.usable.rows if train.source[row].reference]
    if not rows:
        raise data.DataError(f"{train.source.name} has no reference responses to imitate; set sft.steps=0")
    wanted = config.sft.reference_rows or len(rows)
    chosen = np.random.default_rng(config.seed).permutation(rows)[:wanted].tolist()
    limits = {"reference": ("sampler.max_tokens", config.sampler.max_tokens)}
    if config.sft.reflections:
        limits |= {"flawed": limits["reference"], "reflection": ("reflection.max_tokens", config.reflection.max_tokens)}
    for field, (setting, limit) in limits.items():
        texts = ((getattr(train.source[row], field), train.source[row].id) for row in chosen)
        length, name = max((len(train.processor.encode_completion(text)), name) for text, name in texts)
        if limit and length > limit:
            raise data.DataError(
                f"{name}: its {field} response has {length} tokens, {setting} is {limit}; raise it to {length}, for "
                "references are never cut"
            )
    return chosen


def _rows_of(config: config_lib.Config, stage: str) -> int:
    return {"sft": config.sft.rows, "grpo": config.grpo.prompts}[stage]


def _ask(config: config_lib.Config, train: data.Feed, orders: dict[str, data.Order], stage: str, cursor: int):
    drawn = data.draws(orders[stage], cursor, _rows_of(config, stage))
    return train.ask(drawn.row_n, drawn.draw_n, jax.process_index(), jax.process_count())


def _first_state(
    config: config_lib.Config,
    folder: pathlib.Path,
    abstract: TrainState,
    shardings: TrainState,
    make: Callable,
    updater: Updater,
) -> TrainState:
    """Restored, or from converted weights, or random; every device makes only its share."""
    if checkpoint.latest(folder / "checkpoints") is not None:
        return checkpoint.restore(folder / "checkpoints", abstract)[0]
    if config.model.path:
        from safer_jax import convert

        params = convert.load_params(pathlib.Path(config.model.path).expanduser(), abstract.params)
        create = functools.partial(state.create, optimizer=updater.optimizers["sft"])
        return jax.jit(create, out_shardings=shardings)(params)
    key = programs.key(config, programs.WEIGHTS)
    return jax.jit(make, out_shardings=shardings)(key)
