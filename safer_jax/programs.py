"""The compiled functions of a run: samplers, updates, casts, each with its layout over the mesh (array code)."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from safer_jax import attempts, mesh, prompts, sampler, state
from safer_jax import config as config_lib
from safer_jax.model import vlm
from safer_jax.shapes import Layout, TrainState
from safer_jax.update import Updater

WEIGHTS, SAMPLES, EVALUATIONS, VERDICTS = range(4)  # what a key folded from config.seed is for


def compiled(
    config: config_lib.Config,
    updater: Updater,
    processor: prompts.Processor,
    device_mesh: jax.sharding.Mesh,
    abstract: TrainState,
    shardings: TrainState,
) -> dict[str, Callable]:
    """A run's functions by their names in `build.Run`. State is donated: the old one is gone when the new one exists."""
    rows = NamedSharding(device_mesh, PartitionSpec(("data", "fsdp")))
    whole = NamedSharding(device_mesh, PartitionSpec())
    dtype = jnp.dtype(config.model.dtype)
    to_grpo = functools.partial(state.start_stage, optimizer=updater.optimizers["grpo"])
    return {
        "sampling": sampling(config, updater, processor, device_mesh),
        "testing": testing(config, updater, processor, device_mesh),
        "for_sampling": jax.jit(
            functools.partial(vlm.cast, dtype=dtype),
            out_shardings=mesh.shardings(abstract.params, device_mesh, mesh.SAMPLE),
        ),
        "sft_update": jax.jit(updater.sft, donate_argnums=0, out_shardings=(shardings, whole)),
        "grpo_update": jax.jit(updater.grpo, donate_argnums=0, out_shardings=(shardings, whole)),
        "logp": jax.jit(updater.logp, out_shardings=rows),
        "start_grpo": jax.jit(to_grpo, out_shardings=shardings),
    }


def sampling(
    config: config_lib.Config, updater: Updater, processor: prompts.Processor, device_mesh: jax.sharding.Mesh
) -> attempts.Programs:
    """The sampler of training: groups, and reruns of what is rejected."""
    settings, reflection = config.sampler, config.reflection
    drawing = sampler.Drawing(
        settings.temperature, processor.end_ids, updater.is_banned_V, settings.top_k, settings.top_p
    )
    root = key(config, SAMPLES)
    generate = functools.partial(
        sampler.generate, group=settings.group, max_tokens=settings.max_tokens, drawing=drawing
    )
    merge = functools.partial(nnx.merge, updater.graph)
    rows = NamedSharding(device_mesh, PartitionSpec(("data", "fsdp")))
    if not reflection.reruns:
        only_answers = lambda params, asked, root: generate(merge(params), asked, root)[0]
        sample = jax.jit(only_answers, out_shardings=rows)
        return attempts.Programs(lambda params, asked: (sample(params, asked, root), None), Layout(settings.max_tokens))

    turns = [processor.encode_turn(text, opens_answer=not reflection.max_tokens) for text in reflection.texts]
    header = processor.encode_turn(reflection.header) if reflection.max_tokens else np.zeros(0, np.int32)
    width = max(map(len, turns))
    layout = Layout(
        answer=settings.max_tokens,
        instruction=1 + width,
        reflection=reflection.max_tokens,
        header=1 + len(header) if reflection.max_tokens else 0,
        reruns=reflection.reruns,
    )
    rerun = functools.partial(sampler.rerun, group=settings.group, layout=layout, header=header, drawing=drawing)

    def once(params, asked, cache, rejected, start, root, goes_on):
        return rerun(merge(params), asked, cache, rejected, start, root, goes_on=goes_on)

    whole = NamedSharding(device_mesh, PartitionSpec())
    sample = jax.jit(lambda params, asked, root: generate(merge(params), asked, root), out_shardings=(rows, None))
    again = jax.jit(once, static_argnums=6, out_shardings=(whole, whole, None))
    return attempts.Programs(
        sample=lambda params, asked: sample(params, asked, root),
        layout=layout,
        rerun=lambda *inputs, goes_on: again(*inputs, root, goes_on),
        grow=jax.jit(functools.partial(sampler.grow, slots=layout.completion)),
        instruction_KF=np.stack([np.pad(turn, (width - len(turn), 0)) for turn in turns]),
        is_instruction_KF=np.stack([np.arange(width) >= width - len(turn) for turn in turns]),
        header=header,
        row_counts=reflection.row_counts,
        warmed=set(),
    )


def testing(
    config: config_lib.Config,
    updater: Updater,
    processor: prompts.Processor,
    device_mesh: jax.sharding.Mesh,
    group: int = 1,
) -> attempts.Programs:
    """The sampler of evaluations: one answer a prompt or `group`, nothing truncated, nothing asked again."""
    drawing = sampler.Drawing(config.eval.temperature, processor.end_ids, updater.is_banned_V)
    root, limit = key(config, EVALUATIONS), config.sampler.max_tokens

    def answer(params, asked, root):
        return sampler.generate(
            nnx.merge(updater.graph, params), asked, root, group=group, max_tokens=limit, drawing=drawing
        )[0]

    sample = jax.jit(answer, out_shardings=NamedSharding(device_mesh, PartitionSpec(("data", "fsdp"))))
    return attempts.Programs(lambda params, asked: (sample(params, asked, root), None), Layout(limit))


def key(config: config_lib.Config, purpose: int) -> jax.Array:
    """The root of all randomness of one purpose: an argument of the programs, so that one program serves every seed."""
    return jax.random.fold_in(jax.random.key(config.seed), purpose)
