"""GRPO: advantages, token log-probs without full logits, and the clipped objective; arrays in, arrays out (array code)."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from safer_jax import mesh

# Log-ratios are clamped to +-20 before exp (as in verl): exp overflows at 88, and inf in an unselected branch of the
# clipped minimum turns its gradient into NaN.
LOG_RATIO_LIMIT = 20.0

Host = Array | np.ndarray  # rewards come from the host


# ---- Attempts: which count, and what each is worth ----


def _final(is_valid_PGE):
    later = jnp.flip(jnp.cumsum(jnp.flip(is_valid_PGE, -1), -1), -1)
    return is_valid_PGE & (later == 1)


BASELINES = {"all": lambda is_valid_PGE: is_valid_PGE, "final": _final}


def counted(is_valid_PGE: Bool[Host, "P G E"], baseline: str) -> Bool[Host, "P G E"]:
    """The attempts that form the group's baseline and train: `all` valid ones, or of each rollout the `final` one."""
    return BASELINES[baseline](is_valid_PGE)


def _sum(value, is_counted):
    return jnp.where(is_counted, value, 0.0).sum((1, 2), keepdims=True)


def _group_mean(reward, is_counted, count, std_epsilon):
    return reward - _sum(reward, is_counted) / count


def _group_norm(reward, is_counted, count, std_epsilon):
    centred = _group_mean(reward, is_counted, count, std_epsilon)
    variance = _sum(centred**2, is_counted) / jnp.maximum(count - 1, 1)
    return centred / (jnp.sqrt(variance) + std_epsilon)


def _rloo(reward, is_counted, count, std_epsilon):
    others = (_sum(reward, is_counted) - reward) / jnp.maximum(count - 1, 1)
    return reward - others


ADVANTAGES: dict[str, Callable] = {"group_norm": _group_norm, "group_mean": _group_mean, "rloo": _rloo}


def advantages(
    reward_PGE: Float[Host, "P G E"], is_valid_PGE: Bool[Host, "P G E"], kind: str, baseline: str, std_epsilon: float
) -> tuple[Float[Array, "P G E"], Float[Array, " P"]]:
    """The advantage of each attempt within its prompt's group, and the group's reward spread (largest minus smallest).

    group_norm (GRPO, arXiv 2402.03300): (r - mean) / (std + std_epsilon), std with n - 1 as in torch.std, so equal to TRL
    at std_epsilon 1e-4 and to verl at 1e-6. group_mean (Dr.GRPO, 2503.20783): r - mean. rloo (2402.14740): r - mean of the
    others. Attempts that do not count (`counted`) have advantage 0 and leave no trace in the others'. A group of spread 0
    carries no signal: its advantages are exactly 0 (elsewhere the rounding of its mean is divided by the small epsilon),
    as are those of a group of one.
    """
    is_counted = counted(is_valid_PGE, baseline)
    count = jnp.maximum(is_counted.sum((1, 2), keepdims=True), 1)
    high = jnp.where(is_counted, reward_PGE, -jnp.inf).max((1, 2))
    low = jnp.where(is_counted, reward_PGE, jnp.inf).min((1, 2))
    spread_P = jnp.maximum(high - low, 0.0)  # without any attempt -inf - inf, which is no spread either
    trains = is_counted & (spread_P > 0)[:, None, None]
    return jnp.where(trains, ADVANTAGES[kind](reward_PGE, is_counted, count, std_epsilon), 0.0), spread_P


def _keep(reward, is_valid, length, is_cut, max_tokens, buffer):
    return reward, is_valid


def _mask(reward, is_valid, length, is_cut, max_tokens, buffer):
    return reward, is_valid & ~is_cut


def _soft_penalty(reward, is_valid, length, is_cut, max_tokens, buffer):
    over = length - (max_tokens - buffer)
    return reward - jnp.clip(over / buffer, 0.0, 1.0), is_valid


OVERLONG: dict[str, Callable] = {"keep": _keep, "mask": _mask, "soft_penalty": _soft_penalty}


def overlong(
    reward_PGE: Float[Host, "P G E"],
    is_valid_PGE: Bool[Host, "P G E"],
    length_PGE: Int[Host, "P G E"],
    is_cut_PGE: Bool[Host, "P G E"],
    kind: str,
    max_tokens: int,
    buffer: int,
) -> tuple[Float[Host, "P G E"], Bool[Host, "P G E"]]:
    """Rewards and validity after the rule for long attempts; `length_PGE` and `buffer` in tokens.

    mask (overlong filtering of DAPO, arXiv 2503.14476): an attempt that the limit cut neither counts nor trains. (TRL's
    mask_truncated_completions leaves its reward in the baseline.) soft_penalty (DAPO equation 13): the reward loses 0 at
    max_tokens - buffer, growing linearly to 1 at max_tokens.
    """
    return OVERLONG[kind](reward_PGE, is_valid_PGE, length_PGE, is_cut_PGE, max_tokens, buffer)


# ---- Log-probs of tokens: no buffer above chunk x V beside the head and its gradient ----


def token_logp(
    x_PTD: Float[Array, "P T D"],
    head_VD: Float[Array, "V D"],
    target_PT: Int[Array, "P T"],
    *,
    is_trained: Bool[Array, "P T"],
    temperature: float = 1.0,
    is_banned_V: Bool[Array | np.ndarray, " V"] | None = None,
    chunk: int,
) -> tuple[Float[Array, "P T"], Float[Array, "P T"]]:
    """(log-probability of the target, entropy in nats) of each position under softmax(x @ head / temperature), float32.

    Both are 0 where `is_trained` is False, whatever the target: forced tokens are themselves banned, and -inf times a
    mask is NaN. A banned target that trains is an error of the caller and shows as -inf. Banned ids leave the normaliser.
    The entropy has no gradient. Matrix products take their inputs in x's dtype and add up in float32, the head's gradient
    over all chunks too.

    `chunk` counts tokens whose logits exist at once, in the forward pass and in the backward one: steps of chunk // P
    positions of every row, so that rows cut over devices stay where they are.
    Raises ValueError where chunk is less than P.
    """
    rows, length = target_PT.shape
    if chunk < rows:
        raise ValueError(
            f"grpo.logp_chunk={chunk} is less than the {rows} rows of a micro-batch; set it to at least that"
        )
    step = min(length, chunk // rows)
    steps = -(-length // step)

    def split(array):  # [P, T, ...] -> [steps, P, step, ...]
        padded = jnp.pad(array, [(0, 0), (0, steps * step - length)] + [(0, 0)] * (array.ndim - 2))
        return jnp.moveaxis(padded.reshape(rows, steps, step, *array.shape[2:]), 1, 0)

    def join(array):
        return jnp.moveaxis(array, 0, 1).reshape(rows, steps * step)[:, :length]

    is_banned_V = jnp.zeros(head_VD.shape[0], bool) if is_banned_V is None else jnp.asarray(is_banned_V)
    logp, entropy = _token_logp(temperature, split(x_PTD), head_VD, split(target_PT), split(is_trained), is_banned_V)
    return join(logp), join(entropy)


# Differentiated by hand: jax.checkpoint of the scan's body would add up the head's gradient in the head's dtype, and a sum
# of hundreds of bfloat16 terms loses the small ones.
@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _token_logp(temperature, x, head, target, is_trained, is_banned):
    return _token_logp_forward(temperature, x, head, target, is_trained, is_banned)[0]


def _weights(head, dtype):
    # Gathered once before the scan; cut over `width` it would make every product a sum over devices.
    return mesh.constrain(head.astype(dtype), "vocab", None)


def _logits(temperature, x, head, is_banned):
    logits = jnp.einsum("ptd,vd->ptv", x, head, preferred_element_type=jnp.float32)
    return jnp.where(is_banned, -jnp.inf, logits / temperature)


def _is_target(target, vocabulary):
    # A comparison, not an index: it fuses into the sums and needs no gather where V is cut over devices.
    return target[..., None] == jnp.arange(vocabulary, dtype=target.dtype)


def _token_logp_forward(temperature, x, head, target, is_trained, is_banned):
    weights = _weights(head, x.dtype)

    def one(_, part):
        x, target, is_trained = part
        logits = _logits(temperature, x, weights, is_banned)
        peak = logits.max(-1, keepdims=True)
        odds = jnp.exp(logits - peak)
        total = odds.sum(-1)
        log_total = jnp.log(total) + peak[..., 0]
        at_target = jnp.where(_is_target(target, len(head)), logits, 0.0).sum(-1)
        mean_logit = (odds * jnp.where(is_banned, 0.0, logits)).sum(-1) / total
        logp = jnp.where(is_trained, at_target - log_total, 0.0)
        entropy = jnp.where(is_trained, log_total - mean_logit, 0.0)
        return None, (logp, entropy, log_total)

    _, (logp, entropy, log_total) = jax.lax.scan(one, None, (x, target, is_trained))
    return (logp, entropy), (x, head, target, is_trained, is_banned, log_total)


def _token_logp_backward(temperature, saved, cotangents):
    x, head, target, is_trained, is_banned, log_total = saved
    weights = _weights(head, x.dtype)
    # One sum for each device that the rows are cut over, added up after the scan: a single sum would be reduced over the
    # devices at every step.
    ways = mesh.ways(x.shape[1])
    by_way = lambda array: array.reshape(ways, -1, *array.shape[1:])

    def one(head_gradient, part):
        x, target, is_trained, log_total, cotangent = part
        probability = jnp.exp(_logits(temperature, x, weights, is_banned) - log_total[..., None])
        scale = jnp.where(is_trained, cotangent / temperature, 0.0)[..., None]
        logits_gradient = (scale * (_is_target(target, len(head)) - probability)).astype(x.dtype)
        x_gradient = jnp.einsum("ptv,vd->ptd", logits_gradient, weights, preferred_element_type=jnp.float32)
        head_gradient += jnp.einsum(
            "wptv,wptd->wvd", by_way(logits_gradient), by_way(x), preferred_element_type=jnp.float32
        )
        x_gradient = mesh.constrain(x_gradient.astype(x.dtype), "prompt", None, None)
        return mesh.constrain(head_gradient, "prompt", "vocab", None), x_gradient

    zero = mesh.constrain(jnp.zeros((ways, *head.shape), jnp.float32), "prompt", "vocab", None)
    head_gradient, x_gradient = jax.lax.scan(one, zero, (x, target, is_trained, log_total, cotangents[0]))
    head_gradient = mesh.constrain(head_gradient.sum(0), "vocab", "width")
    return x_gradient, head_gradient.astype(head.dtype), None, None, None


_token_logp.defvjp(_token_logp_forward, _token_logp_backward)


# ---- The objective ----


def _token_mean(is_trained, max_tokens):
    return is_trained / jnp.maximum(is_trained.sum(), 1)


def _sequence_mean(is_trained, max_tokens):
    length = is_trained.sum(-1, keepdims=True)
    return is_trained / jnp.maximum(length, 1) / jnp.maximum((length > 0).sum(), 1)


def _constant(is_trained, max_tokens):
    return is_trained / (is_trained.shape[0] * is_trained.shape[1] * max_tokens)


AGGREGATIONS: dict[str, Callable] = {
    "token_mean": _token_mean,
    "sequence_mean": _sequence_mean,
    "constant": _constant,
}


def token_weights(is_trained_PGC: Bool[Array, "P G C"], aggregation: str, max_tokens: int) -> Float[Array, "P G C"]:
    """What each token's loss counts for; the weighted sum is the aggregated loss.

    Computed once over a whole minibatch, so that the sums of its micro-batches add up to the same loss and gradient.
    token_mean (DAPO; TRL's bnpo and dapo, verl's token-mean): mean over trained tokens. sequence_mean (GRPO; verl's
    seq-mean-token-mean): mean over sequences of their token means; a sequence that trains nothing does not count (TRL
    counts it as one of loss 0). constant (Dr.GRPO; TRL's dr_grpo): sum over rows * max_tokens.
    """
    return AGGREGATIONS[aggregation](is_trained_PGC.astype(jnp.float32), max_tokens)


def _sequence_log_ratio(log_ratio, is_trained):
    mean = log_ratio.sum(-1, keepdims=True) / jnp.maximum(is_trained.sum(-1, keepdims=True), 1)
    return jax.lax.stop_gradient(mean) + log_ratio - jax.lax.stop_gradient(log_ratio)


# (log-ratio 0 where a token does not train, is_trained) -> log-ratio. `sequence` is GSPO (arXiv 2507.18071) in its token
# form (equation 14; verl's): the value is the sequence's geometric mean, the gradient flows through each token, so that
# tokens of one row may differ in advantage. Where they do not it is GSPO's own gradient (TRL's).
RATIOS: dict[str, Callable] = {"token": lambda log_ratio, is_trained: log_ratio, "sequence": _sequence_log_ratio}


def _k3(logp, ref_logp):
    gap = _clamp(ref_logp - logp)
    return jnp.exp(gap) - gap - 1


# Schulman's estimators of KL(policy || reference), here terms of the loss. The expected gradient of k1 is 0.
KLS: dict[str, Callable] = {
    "k1": lambda logp, ref_logp: logp - ref_logp,
    "k2": lambda logp, ref_logp: (logp - ref_logp) ** 2 / 2,
    "k3": _k3,
}

# (trainer's probability / sampler's, cap) -> weight of the token's policy term; TRL's token_truncate and token_mask.
CORRECTIONS: dict[str, Callable] = {
    "none": lambda ratio, cap: jnp.ones_like(ratio),
    "tis": lambda ratio, cap: jnp.minimum(ratio, cap),
    "mask": lambda ratio, cap: jnp.where(ratio <= cap, ratio, 0.0),
}


def _clamp(log_ratio):
    return jnp.clip(log_ratio, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def loss(
    logp_PGC: Float[Array, "P G C"],
    old_logp_PGC: Float[Array, "P G C"],
    ref_logp_PGC: Float[Array, "P G C"],
    sampler_logp_PGC: Float[Array, "P G C"],
    advantage_PGC: Float[Array, "P G C"],
    is_trained_PGC: Bool[Array, "P G C"],
    weight_PGC: Float[Array, "P G C"],
    entropy_PGC: Float[Array, "P G C"],
    settings: Any,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """The weighted sum of -min(rho A, clip(rho) A) * correction + beta KL, and its health figures.

    rho = policy / old, per token or per sequence (`RATIOS`), clipped to 1 - clip_low .. 1 + clip_high. With dual_clip the
    objective is bounded below by dual_clip * A at negative advantages (arXiv 1912.09729; TRL's delta). The correction
    weighs the policy term by old / sampler; the KL to the reference is not weighed. `weight_PGC` comes from
    `token_weights`. What stands at tokens that do not train is never read, -inf and NaN included.

    `settings`: ratio, clip_low, clip_high, dual_clip, kl, beta, correction, correction_cap of config.Grpo. With kl "none" or
    beta 0 ref_logp_PGC is not read. The figures are sums and maxima for `add_metrics` and `reduce_metrics`.
    """
    read = lambda array: jnp.where(is_trained_PGC, array, 0.0)
    constant = lambda array: jax.lax.stop_gradient(read(array))
    logp, old_logp, advantage = read(logp_PGC), constant(old_logp_PGC), constant(advantage_PGC)
    sampler_logp, weight = constant(sampler_logp_PGC), read(weight_PGC)

    ratio = jnp.exp(_clamp(RATIOS[settings.ratio](logp - old_logp, is_trained_PGC)))
    clipped = jnp.clip(ratio, 1 - settings.clip_low, 1 + settings.clip_high)
    gain = jnp.minimum(ratio * advantage, clipped * advantage)
    is_dual = (advantage < 0) & (ratio > settings.dual_clip) if settings.dual_clip else jnp.zeros_like(is_trained_PGC)
    gain = jnp.where(is_dual, settings.dual_clip * advantage, gain)

    gap = old_logp - sampler_logp
    gain *= CORRECTIONS[settings.correction](jnp.exp(_clamp(gap)), settings.correction_cap)
    has_reference = settings.kl != "none" and settings.beta != 0
    ref_logp = constant(ref_logp_PGC) if has_reference else jax.lax.stop_gradient(logp)
    penalty = settings.beta * KLS[settings.kl](logp, ref_logp) if has_reference else 0.0
    scalar = (weight * (penalty - gain)).sum()

    figures = {
        "ratio": ratio,
        "clip_low": (ratio < 1 - settings.clip_low) & (advantage < 0),
        "clip_high": (ratio > 1 + settings.clip_high) & (advantage > 0),
        "clip_dual": is_dual,
        "kl": _k3(logp, ref_logp),  # always k3, so that runs compare
        "entropy": entropy_PGC,
        "gap_mean": jnp.abs(gap),
    }
    metrics = {f"{name}_sum": constant(figure).sum() for name, figure in figures.items()}
    metrics |= {f"{name}_max": constant(figure).max() for name, figure in (("ratio", ratio), ("gap", jnp.abs(gap)))}
    return scalar, {"loss": scalar, "tokens": is_trained_PGC.sum(dtype=jnp.float32), **metrics}


# ---- Figures of many micro-batches ----


def add_metrics(metrics: dict[str, Array]) -> dict[str, Array]:
    """Stacked figures of a minibatch's micro-batches as those of one batch: `_max` by maximum, all others by sum."""
    return {name: value.max(0) if name.endswith("_max") else value.sum(0) for name, value in metrics.items()}


def reduce_metrics(metrics: dict[str, Array]) -> dict[str, Array]:
    """Stacked figures of a step's minibatches as scalars to write down.

    `x_sum` becomes `x`, its mean over the tokens that trained; `_max` the maximum; `tokens` and `skipped` totals; the
    rest (loss, grad_norm) means over minibatches.
    """
    tokens = jnp.maximum(metrics["tokens"].sum(), 1)

    def one(name, value):
        if name.endswith("_sum"):
            return value.sum() / tokens
        if name.endswith("_max"):
            return value.max()
        return value.sum() if name in ("tokens", "skipped") else value.mean()

    return {name.removesuffix("_sum"): one(name, value) for name, value in metrics.items()}
