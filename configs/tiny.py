"""The whole loop on a CPU: warm start and GRPO of a tiny policy on the built-in demo set (host code).

    python -m safer_jax.train --config=configs/tiny.py --workdir=runs/tiny

Hardware: 2 CPU cores; 8 min 49 s on two of an AMD EPYC. Expect: test reward 0.76 to 0.85 after the warm start, 0.89 to
0.95 after GRPO (3 seeds; the table is in experiments/README.md).
"""

from ml_collections import ConfigDict

from configs import base


def get_config(arg: str | None = None) -> ConfigDict:
    """`:smoke` is the same with two warm start and two GRPO steps."""
    if arg not in (None, "", "smoke"):
        raise ValueError(f"configs/tiny.py takes no argument or smoke, got {arg!r}")
    config = base.get_config()
    config.model.variant = "tiny"
    config.model.remat = "none"
    config.data.name = "demo"
    config.prompt.buckets = (64,)
    config.prompt.patch_buckets = (64,)
    config.prompt.max_pixels = 12_544
    config.prompt.system = "none"
    config.prompt.guide = "none"
    config.sft.steps = 600
    config.sft.rows = 32
    config.sft.lr = 1e-3
    config.sft.warmup_steps = 20
    config.sampler.group = 8
    config.sampler.max_tokens = 72
    config.grpo.steps = 150
    config.grpo.prompts = 16
    config.grpo.micro_prompts = 8
    config.optimizer.lr = 1e-4
    config.optimizer.warmup_steps = 5
    config.eval.every = 50
    config.eval.prompts = 80
    config.checkpoint.every = 50
    config.log.rollouts_every = 25
    if arg == "smoke":
        config.data.eval_rows = 8
        config.sft.steps = 2
        config.sft.warmup_steps = 0
        config.grpo.steps = 2
        config.eval.every = 0
        config.eval.prompts = 8
        config.checkpoint.every = 2
        config.log.rollouts_every = 1
    return config
