"""Runs of the built-in demo set small enough for tests: settings, and the loop with a stop where one is wanted."""

import functools
import importlib
import pathlib

import jax

from configs import tiny
from safer_jax import config, mesh, rewards, runtime, train

CACHE = {
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": 0,
    "jax_disable_most_optimizations": True,  # compiling is most of the time
}
SMALL = {
    "data.eval_rows": 3,
    "eval.prompts": 2,
    "sampler.group": 2,
    "sampler.max_tokens": 72,
    "sft.rows": 4,
    "sft.warmup_steps": 4,
    "grpo.prompts": 4,
    "grpo.minibatches": 2,
    "grpo.micro_prompts": 2,
    "grpo.logp_chunk": 64,
    "grpo.beta": 0.1,
    "optimizer.lr": 1e-3,
    "optimizer.warmup_steps": 8,
    "checkpoint.every": 1,
    "checkpoint.keep": 9,
    "log.rollouts": 4,
}


def settings(overrides=None, file="tiny", form="smoke"):
    """Two supervised and two GRPO steps, but for `overrides` {"section.field": value}; of a ConfigDict, resolved."""
    made = tiny.get_config(form) if file == "tiny" else importlib.import_module(f"configs.{file}").get_config(form)
    made.update_from_flattened_dict({**(SMALL if file == "tiny" else {}), **(overrides or {})})
    return config.resolve(made)


def lengths(response, record, verdict, settings):
    """A reward with a spread from the first step on, which no untrained policy earns by the rules."""
    terms = dict.fromkeys(("format", "image_right", "text_right", "combine_right", "tag", "behaviour", "refusal"), 0.0)
    return {**terms, "reward": len(response) % 8 / 8}


def on_one_device(patch):
    """Meshes of the first device alone: eight fake ones on few cores take their time."""
    patch.setattr(mesh, "make", functools.partial(mesh.make, devices=jax.devices()[:1]))


def run(patch, folder: pathlib.Path, made: config.Config, stop_after: int | None = None):
    """`train.train` in this process, asked to stop after a step; the state, or None where it stopped."""
    patch.setattr(runtime.Stopper, "requested", lambda self, step: step == stop_after)
    patch.setitem(rewards.SCHEMES, "safegrpo", rewards.Scheme(lengths, ""))
    try:
        return train.train(made, folder)
    except runtime.Stopped:
        return None
