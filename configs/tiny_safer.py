"""SaFeR-VLM's loop on a CPU: reflection in the rollout, a judge, a structured reward, on the demo set (host code).

    python -m safer_jax.train --config=configs/tiny_safer.py --workdir=runs/tiny_safer

Hardware: 2 CPU cores; 6 min 44 s on two of an AMD EPYC. The judge compares tags and answer with the record
(judge.kind = rules); the warm start also shows how to reflect. Expect that 80 to 85% of the test answers behave as they
should after the warm start and 82 to 89% after GRPO (experiments/README.md has three seeds): 40 steps of 8 prompts are few,
and the policy swings from too few refusals to too many (a run of 160 steps still did after 120, and ended at 93%). In
training corrections mend 55% of rejected answers in the first ten steps, 65% in the last ten.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(arg: str | None = None) -> ConfigDict:
    """`:smoke` is the same with two warm start and two GRPO steps."""
    if arg not in (None, "", "smoke"):
        raise ValueError(f"configs/tiny_safer.py takes no argument or smoke, got {arg!r}")
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
    config.sft.reflections = 0.25
    config.sampler.group = 8
    config.sampler.max_tokens = 72
    config.reflection.reruns = 1
    config.reflection.texts = ("Look again. What did you miss?",)
    config.reflection.header = "Now answer again."
    config.reflection.max_tokens = 28
    config.reflection.row_counts = (16, 64)
    config.judge.kind = "rules"
    config.reward.scheme = "safer_vlm"
    config.grpo.steps = 40
    config.grpo.prompts = 8
    config.grpo.micro_prompts = 2
    config.grpo.micro_widths = 6
    config.optimizer.lr = 2e-4
    config.optimizer.warmup_steps = 5
    config.eval.every = 20
    config.eval.prompts = 80
    config.checkpoint.every = 100
    config.log.rollouts_every = 20
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
