"""GRPO's arithmetic against TRL's own loss, verl's recorded numbers, torch's log_softmax and plain loops over rows."""

import dataclasses
import itertools
import json
import math
import pathlib
import re
from collections import defaultdict
from types import SimpleNamespace

import hlo
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import NamedSharding, PartitionSpec

from configs import base
from safer_jax import config, grpo, mesh

VERL = json.loads((pathlib.Path(__file__).parent / "golden" / "verl.json").read_text())
PLAIN = dataclasses.replace(
    config.resolve(base.get_config()).grpo,
    aggregation="token_mean",
    ratio="token",
    clip_low=0.2,
    clip_high=0.28,
    dual_clip=0.0,
    kl="none",
    beta=0.0,
    correction="none",
    correction_cap=1.3,
)
SHAPE, LENGTH = (3, 2, 8), 8


def arrays(seed):
    """logp, old, ref, sampler, advantage and mask of 6 rows; every row trains its first 1 to 8 tokens."""
    rng, rows = np.random.RandomState(seed), 6
    old = -rng.gamma(1.0, 1.0, (rows, LENGTH))
    logp = old + 0.5 * rng.randn(rows, LENGTH)
    ref = logp + 0.5 * rng.randn(rows, LENGTH)
    sampler = old + 0.5 * rng.randn(rows, LENGTH)
    advantage = np.repeat(rng.randn(rows, 1), LENGTH, 1)
    mask = np.arange(LENGTH) < rng.randint(1, LENGTH + 1, (rows, 1))
    return [array.astype(np.float32) for array in (logp, old, ref, sampler, advantage)] + [mask]


def ours(inputs, settings, weight=None):
    """(loss, gradient with respect to logp, metrics), the gradient as [6, 8]."""
    logp, old, ref, sampler, advantage, mask = (jnp.asarray(array).reshape(SHAPE) for array in inputs)
    if weight is None:
        weight = grpo.token_weights(mask, settings.aggregation, LENGTH)
    entropy = jnp.full(SHAPE, 0.5)
    objective = lambda logp: grpo.loss(logp, old, ref, sampler, advantage, mask, weight, entropy, settings)
    (loss, metrics), gradient = jax.value_and_grad(objective, has_aux=True)(logp)
    return float(loss), np.asarray(gradient).reshape(6, LENGTH), metrics


def close(actual, expected, tolerance=2e-6):
    """Within `tolerance` of the largest expected value: float32 sums of 48 terms in another order."""
    expected = np.asarray(expected)
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())


# ---- The objective against TRL ----


@pytest.fixture(scope="module")
def trl_loss():
    """GRPOTrainer._compute_loss itself, on a stand-in for the trainer that holds its settings and given log-probs."""
    from trl import GRPOTrainer

    def run(inputs, **changes):
        logp, old, ref, _, advantage, mask = (torch.tensor(array) for array in inputs)
        logp.requires_grad_(True)
        settings = {
            "loss_type": "grpo",
            "importance_sampling_level": "token",
            "beta": 0.0,
            "delta": None,
            "weight": None,
        } | changes
        trainer = SimpleNamespace(
            _get_per_token_logps_and_entropies=lambda *args, **kwargs: (logp, torch.zeros_like(logp), None),
            args=SimpleNamespace(delta=settings["delta"], use_bias_correction_kl=False, steps_per_generation=1),
            accelerator=SimpleNamespace(num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x),
            model=SimpleNamespace(training=True),
            loss_type=settings["loss_type"],
            importance_sampling_level=settings["importance_sampling_level"],
            beta=settings["beta"],
            epsilon_low=0.2,
            epsilon_high=0.28,
            top_entropy_quantile=1.0,
            off_policy_mask_threshold=None,
            aux_loss_enabled=False,
            use_vllm=settings["weight"] is not None,
            vllm_importance_sampling_correction=True,
            current_gradient_accumulation_steps=1,
            max_completion_length=LENGTH,
            _entropy_bonus_enabled=False,
            _metrics={"train": defaultdict(list)},
        )
        ids = torch.zeros(mask.shape, dtype=torch.long)
        batch = {
            "prompt_ids": ids[:, :1],
            "prompt_mask": torch.ones(len(ids), 1),
            "completion_ids": ids,
            "completion_mask": mask.float(),
            "advantages": advantage[:, 0],
            "old_per_token_logps": old,
            "ref_per_token_logps": ref,
            "importance_sampling_ratio": settings["weight"],
            "num_items_in_batch": mask.sum(),
        }
        loss = GRPOTrainer._compute_loss(trainer, None, batch)
        loss.backward()
        return loss.item(), logp.grad.numpy(), trainer._metrics["train"]

    return run


AGGREGATION_OF = {"grpo": "sequence_mean", "bnpo": "token_mean", "dapo": "token_mean", "dr_grpo": "constant"}


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss_type", AGGREGATION_OF)
def test_objective_is_trls(trl_loss, loss_type, level):
    for seed, beta, delta in itertools.product((0, 1), (0.0, 0.04), (None, 1.5)):
        inputs = arrays(seed)
        expected, gradient, figures = trl_loss(
            inputs, loss_type=loss_type, importance_sampling_level=level, beta=beta, delta=delta
        )
        settings = dataclasses.replace(
            PLAIN,
            aggregation=AGGREGATION_OF[loss_type],
            ratio=level,
            kl="k3",
            beta=beta,
            dual_clip=delta or 0.0,
        )
        loss, our_gradient, metrics = ours(inputs, settings)
        close(loss, expected)
        close(our_gradient, gradient)
        if level == "token":
            reduced = grpo.reduce_metrics(jax.tree.map(lambda value: value[None], metrics))
            close(reduced["clip_low"], figures["clip_ratio/low_mean"][0])
            close(reduced["clip_high"], figures["clip_ratio/high_mean"][0])
            if beta:
                close(reduced["kl"], figures["kl"][0])


@pytest.mark.parametrize("kind", ["tis", "mask"])
def test_correction_weighs_as_trls(trl_loss, kind):
    inputs = arrays(3)
    _, old, _, sampler, _, _ = (torch.tensor(array) for array in inputs)
    ratio = torch.exp(old - sampler)
    weight = ratio.clamp(max=1.3) if kind == "tis" else ratio.masked_fill(ratio > 1.3, 0.0)
    expected, gradient, _ = trl_loss(inputs, beta=0.04, weight=weight)
    settings = dataclasses.replace(PLAIN, aggregation="sequence_mean", kl="k3", beta=0.04, correction=kind)
    loss, our_gradient, _ = ours(inputs, settings)
    close(loss, expected)
    close(our_gradient, gradient)


# ---- The objective against verl ----


VERL_SETTINGS = {
    "dual_clip token-mean": {"dual_clip": 1.5},
    "dual_clip seq-mean-token-mean": {"dual_clip": 1.5, "aggregation": "sequence_mean"},
    "gspo": {"ratio": "sequence", "aggregation": "sequence_mean"},
    "tis": {"correction": "tis"},
    "k1": {"kl": "k1", "beta": 1.0},
    "k2": {"kl": "k2", "beta": 1.0},
    "k3": {"kl": "k3", "beta": 1.0},
}


@pytest.mark.parametrize("name", VERL_SETTINGS)
def test_objective_is_verls(name):
    inputs = arrays(7)
    if name in ("k1", "k2", "k3"):
        inputs[4] = np.zeros_like(inputs[4])  # the KL term alone
    loss, gradient, metrics = ours(inputs, dataclasses.replace(PLAIN, **VERL_SETTINGS[name]))
    close(loss, VERL[name]["loss"])
    close(gradient, VERL[name]["gradient"])
    logp, old, _, _, advantage, mask = inputs
    is_dual = (np.exp(logp - old) > 1.5) & (advantage < 0) & mask
    assert metrics["clip_dual_sum"] == ("dual" in name) * is_dual.sum()
    assert is_dual.any() or "dual" not in name


@pytest.mark.parametrize("kind", grpo.ADVANTAGES)
def test_advantages_are_verls(kind):
    reward = jnp.asarray(VERL["reward"])[..., None]
    advantage, spread = grpo.advantages(reward, jnp.ones(reward.shape, bool), kind, "all", 1e-6)
    close(advantage[..., 0], VERL[kind])
    np.testing.assert_array_equal(spread == 0, [False, True, False])


# ---- The objective against plain loops, in the combinations that no library has ----


def plain_loss(inputs, settings):
    """Row by row in Python floats; attempts of one row may differ in advantage."""
    rows = list(zip(*(array.tolist() for array in inputs), strict=True))
    tokens = sum(sum(row[5]) for row in rows)
    trained_rows = sum(any(row[5]) for row in rows)
    total = 0.0
    for row in rows:
        trained = [token[:5] for token in zip(*row, strict=True) if token[5]]
        mean = sum(logp - old for logp, old, *_ in trained) / max(1, len(trained))
        for logp, old, ref, sampler, advantage in trained:
            ratio = math.exp(mean if settings.ratio == "sequence" else logp - old)
            clipped = max(1 - settings.clip_low, min(ratio, 1 + settings.clip_high))
            gain = min(ratio * advantage, clipped * advantage)
            if settings.dual_clip and advantage < 0:
                gain = max(gain, settings.dual_clip * advantage)
            gap = math.exp(old - sampler)
            gain *= {
                "none": 1.0,
                "tis": min(gap, settings.correction_cap),
                "mask": gap * (gap <= settings.correction_cap),
            }[settings.correction]
            d = ref - logp
            kl = {"none": 0.0, "k1": -d, "k2": d * d / 2, "k3": math.exp(d) - d - 1}[settings.kl]
            weight = {
                "token_mean": 1 / tokens,
                "sequence_mean": 1 / len(trained) / trained_rows,
                "constant": 1 / len(rows) / LENGTH,
            }[settings.aggregation]
            total += weight * (settings.beta * kl - gain)
    return total


@pytest.mark.parametrize("aggregation", grpo.AGGREGATIONS)
@pytest.mark.parametrize("ratio", grpo.RATIOS)
def test_objective_is_the_plain_loop(ratio, aggregation):
    rng = np.random.RandomState(5)
    for kl, correction, dual_clip in itertools.product(("none", *grpo.KLS), grpo.CORRECTIONS, (0.0, 1.5)):
        inputs = arrays(int(rng.randint(1000)))
        inputs[4] = rng.randn(6, LENGTH).astype(np.float32)
        inputs[5] = rng.rand(6, LENGTH) < 0.7
        inputs[5][2] = False  # a row that trains nothing
        settings = dataclasses.replace(
            PLAIN, ratio=ratio, aggregation=aggregation, kl=kl, correction=correction, dual_clip=dual_clip, beta=0.3
        )
        expected = plain_loss(inputs, settings)
        np.testing.assert_allclose(ours(inputs, settings)[0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("ratio", grpo.RATIOS)
def test_on_policy_gradient_is_the_policy_gradient(ratio):
    inputs = arrays(7)
    inputs[1] = inputs[0]
    inputs[4] = np.random.RandomState(0).randn(6, LENGTH).astype(np.float32)  # attempts of one row differ
    _, gradient, _ = ours(inputs, dataclasses.replace(PLAIN, ratio=ratio))
    close(gradient, np.where(inputs[5], -inputs[4] / inputs[5].sum(), 0.0))


CHANGES = {
    "aggregation": "sequence_mean",
    "ratio": "sequence",
    "clip_low": 0.3,
    "clip_high": 0.4,
    "dual_clip": 3.0,
    "kl": "k2",
    "beta": 0.2,
    "correction": "mask",
    "correction_cap": 1.1,
}


@pytest.mark.parametrize("field", CHANGES)
def test_every_setting_changes_the_loss(field):
    settings = dataclasses.replace(PLAIN, dual_clip=1.5, kl="k3", beta=0.1, correction="tis")
    changed = dataclasses.replace(settings, **{field: CHANGES[field]})
    assert abs(ours(arrays(7), settings)[0] - ours(arrays(7), changed)[0]) > 1e-4


@pytest.mark.parametrize("aggregation", grpo.AGGREGATIONS)
def test_micro_batches_add_up(aggregation):
    settings = dataclasses.replace(PLAIN, aggregation=aggregation, kl="k3", beta=0.1, correction="tis")
    inputs = arrays(7)
    mask = jnp.asarray(inputs[5]).reshape(SHAPE)
    weight = grpo.token_weights(mask, aggregation, LENGTH)
    whole, gradient, metrics = ours(inputs, settings)
    losses, gradients, parts = [], 0.0, []
    for p in range(SHAPE[0]):
        is_part = (np.arange(SHAPE[0]) == p)[:, None, None]
        part = [*inputs[:5], np.asarray(mask & is_part).reshape(6, LENGTH)]
        loss, part_gradient, part_metrics = ours(part, settings, weight)
        losses.append(loss)
        gradients += part_gradient
        parts.append(part_metrics)
    close(sum(losses), whole, 1e-6)
    close(gradients, gradient, 1e-6)
    added = grpo.add_metrics(jax.tree.map(lambda *values: jnp.stack(values), *parts))
    for name, value in metrics.items():
        np.testing.assert_allclose(added[name], value, rtol=2e-6, atol=1e-7)


def test_metrics_of_minibatches_are_means_over_tokens():
    first = {"x_sum": 6.0, "tokens": 2.0, "x_max": 4.0, "loss": 1.0, "grad_norm": 2.0, "skipped": 1}
    second = {"x_sum": 2.0, "tokens": 6.0, "x_max": 1.0, "loss": 3.0, "grad_norm": 4.0, "skipped": 1}
    reduced = grpo.reduce_metrics(jax.tree.map(lambda *values: jnp.asarray(values), first, second))
    assert reduced == {"x": 1.0, "tokens": 8.0, "x_max": 4.0, "loss": 2.0, "grad_norm": 3.0, "skipped": 2}


def test_health_figures():
    inputs = arrays(7)
    logp, old, _, sampler, _, mask = inputs
    _, _, metrics = ours(inputs, PLAIN)
    gap = np.abs(old - sampler)[mask]
    close(metrics["ratio_max"], np.exp(logp - old)[mask].max())
    close(metrics["ratio_sum"], np.exp(logp - old)[mask].sum())
    close(metrics["gap_max"], gap.max())
    close(metrics["gap_mean_sum"], gap.sum())
    assert metrics["entropy_sum"] == 0.5 * mask.sum() and metrics["tokens"] == mask.sum()


def test_untrained_tokens_are_never_read():
    settings = dataclasses.replace(PLAIN, ratio="sequence", kl="k3", beta=0.1, correction="tis", dual_clip=2.0)
    inputs = arrays(7)
    expected, gradient, _ = ours(inputs, settings)
    for junk in (-np.inf, np.nan):
        dirty = [np.where(inputs[5], array, junk) for array in inputs[:5]] + [inputs[5]]
        loss, dirty_gradient, metrics = ours(dirty, settings)
        assert loss == expected and (dirty_gradient == gradient).all()
        assert all(np.isfinite(value) for value in metrics.values())


def test_far_off_policy_stays_finite():
    inputs = arrays(7)
    inputs[0][0] += 500.0  # exp overflows
    inputs[0][1] -= 500.0
    settings = dataclasses.replace(PLAIN, kl="k3", beta=0.01, correction="tis")
    for ratio in grpo.RATIOS:
        loss, gradient, _ = ours(inputs, dataclasses.replace(settings, ratio=ratio))
        assert np.isfinite(loss) and np.isfinite(gradient).all()


# ---- Advantages and long answers ----


def test_group_norm_is_trls():
    from trl.trainer.utils import nanstd

    rng = np.random.RandomState(0)
    reward = rng.rand(64, 8).astype(np.float32)
    is_valid = rng.rand(64, 8) < 0.8
    with_gaps = torch.tensor(np.where(is_valid, reward, np.nan))
    centred = with_gaps - torch.nanmean(with_gaps, 1, keepdim=True)
    expected = torch.nan_to_num(centred / (nanstd(with_gaps, dim=1, keepdim=True) + 1e-4), nan=0.0)
    actual, _ = grpo.advantages(reward[..., None], is_valid[..., None], "group_norm", "all", 1e-4)
    close(actual[..., 0], expected, 1e-5)


@pytest.mark.parametrize("kind", grpo.ADVANTAGES)
def test_invalid_attempts_leave_no_trace(kind):
    reward = np.array([[[1.0, 0.0], [0.5, 9.0], [0.0, np.nan]], [[1.0, 1.0], [1.0, 1.0], [0.0, 1.0]]], np.float32)
    is_valid = np.array([[[1, 1], [1, 0], [1, 0]], [[1, 0], [0, 0], [0, 0]]], bool)
    advantage, spread = grpo.advantages(reward, is_valid, kind, "all", 1e-4)
    short, _ = grpo.advantages(np.float32([[[1.0], [0.0], [0.5], [0.0]]]), np.ones((1, 4, 1), bool), kind, "all", 1e-4)
    np.testing.assert_allclose(advantage[0][is_valid[0]], short[0, :, 0], rtol=1e-6)
    assert (advantage[~is_valid] == 0).all() and (advantage[1] == 0).all()
    assert spread.tolist() == [1, 0]


def test_final_baseline_takes_each_rollouts_last_valid_attempt():
    is_valid = np.array([[[1, 1, 0], [1, 0, 0], [1, 1, 1], [0, 0, 0]]], bool)
    is_final = np.array([[[0, 1, 0], [1, 0, 0], [0, 0, 1], [0, 0, 0]]], bool)
    np.testing.assert_array_equal(grpo.counted(jnp.asarray(is_valid), "final"), is_final)
    reward = np.random.RandomState(0).rand(1, 4, 3).astype(np.float32)
    advantage, _ = grpo.advantages(reward, is_valid, "rloo", "final", 1e-4)
    alone, _ = grpo.advantages(reward[is_final][None, :, None], np.ones((1, 3, 1), bool), "rloo", "all", 1e-4)
    np.testing.assert_allclose(advantage[is_final], alone[0, :, 0], rtol=1e-6)
    assert (np.asarray(advantage)[~is_final] == 0).all()


@pytest.mark.parametrize("kind", grpo.ADVANTAGES)
def test_equal_rewards_give_exactly_no_advantage(kind):
    reward = jnp.full((1, 7, 1), 0.7)  # the mean of seven float32 0.7 is not 0.7
    advantage, _ = grpo.advantages(reward, jnp.ones(reward.shape, bool), kind, "all", 1e-6)
    assert (advantage == 0).all()
    nobody, spread = grpo.advantages(reward, jnp.zeros(reward.shape, bool), kind, "all", 1e-6)
    assert (nobody == 0).all() and spread[0] == 0


def test_overlong():
    reward, is_valid = np.full((1, 5, 1), 0.5, np.float32), np.array([1, 1, 1, 1, 0], bool).reshape(1, 5, 1)
    length, is_cut = np.array([10, 80, 90, 100, 100]).reshape(1, 5, 1), np.array([0, 0, 0, 1, 1], bool).reshape(1, 5, 1)
    by = lambda kind: [
        array.ravel().tolist() for array in grpo.overlong(reward, is_valid, length, is_cut, kind, 100, 20)
    ]
    assert by("keep") == [[0.5] * 5, [True, True, True, True, False]]
    assert by("mask") == [[0.5] * 5, [True, True, True, False, False]]
    assert by("soft_penalty") == [[0.5, 0.5, 0.0, -0.5, -0.5], [True, True, True, True, False]]  # DAPO equation 13


# ---- Log-probs by chunks ----


def problem(rows=4, length=37, width=16, vocabulary=211, dtype=np.float32):
    rng = np.random.RandomState(1)
    x = rng.randn(rows, length, width).astype(np.float32)
    head = rng.randn(vocabulary, width).astype(np.float32)
    is_banned = np.arange(vocabulary) % 5 == 0
    is_trained = rng.rand(rows, length) < 0.7
    target = np.where(is_trained, rng.choice(np.flatnonzero(~is_banned), (rows, length)), 5)  # forced tokens: banned
    scale = rng.randn(rows, length).astype(np.float32)
    return jnp.asarray(x), jnp.asarray(head), jnp.asarray(target, jnp.int32), jnp.asarray(is_trained), is_banned, scale


def chunked(x, head, target, is_trained, is_banned, scale, *, chunk, temperature=0.7):
    """((logp, entropy), (gradient of sum(scale * logp) with respect to x, to head))."""

    def scalar(x, head):
        logp, entropy = grpo.token_logp(
            x, head, target, is_trained=is_trained, temperature=temperature, is_banned_V=is_banned, chunk=chunk
        )
        return (scale * logp).sum() + entropy.sum(), (logp, entropy)

    return jax.jit(jax.grad(scalar, argnums=(0, 1), has_aux=True))(x, head)[::-1]


@pytest.mark.parametrize("chunk", [4, 20, 64, 1000])  # 1, 5 and 16 positions a step, with and without a rest, and all
def test_token_logp_is_torchs(chunk):
    x, head, target, is_trained, is_banned, scale = problem()
    torch_x, torch_head = (
        torch.tensor(np.asarray(array), dtype=torch.float64, requires_grad=True) for array in (x, head)
    )
    logits = (torch_x @ torch_head.T / 0.7).masked_fill(torch.tensor(is_banned), -torch.inf)
    distribution = torch.distributions.Categorical(logits=logits, validate_args=False)
    safe = torch.tensor(np.where(is_trained, target, 1))
    expected = torch.where(torch.tensor(np.asarray(is_trained)), distribution.log_prob(safe), 0.0)
    (expected * torch.tensor(scale)).sum().backward()

    (logp, entropy), (x_gradient, head_gradient) = chunked(x, head, target, is_trained, is_banned, scale, chunk=chunk)
    np.testing.assert_allclose(logp, expected.detach(), atol=1e-5)
    close(x_gradient, torch_x.grad, 1e-5)  # and so the entropy has no gradient
    close(head_gradient, torch_head.grad, 1e-5)
    log_p = torch.log_softmax(logits.detach(), -1)
    expected_entropy = -(log_p.exp() * log_p.masked_fill(torch.tensor(is_banned), 0.0)).sum(-1)
    np.testing.assert_allclose(entropy, np.where(is_trained, expected_entropy, 0.0), atol=1e-5)


def test_no_bans_and_a_banned_target():
    x, head, target, is_trained, is_banned, _ = problem()
    logp, _ = grpo.token_logp(x, head, target, is_trained=is_trained, chunk=16)
    expected = torch.log_softmax(torch.tensor(np.asarray(x @ head.T)), -1).gather(-1, torch.tensor(target)[..., None])
    np.testing.assert_allclose(logp, np.where(is_trained, expected[..., 0], 0.0), atol=1e-5)
    trained = jnp.ones_like(is_trained)
    logp, _ = grpo.token_logp(x, head, target, is_trained=trained, is_banned_V=is_banned, chunk=16)
    np.testing.assert_array_equal(np.isneginf(logp), ~np.asarray(is_trained))


def test_bfloat16_sums_the_heads_gradient_in_float32():
    x, head, target, is_trained, is_banned, scale = problem(length=800)
    x, head = x.astype(jnp.bfloat16).astype(jnp.float32), head.astype(jnp.bfloat16).astype(jnp.float32)
    (expected, _), (_, gradient) = chunked(x, head, target, is_trained, is_banned, scale, chunk=8)
    (logp, _), (_, low_gradient) = chunked(x.astype("bfloat16"), head, target, is_trained, is_banned, scale, chunk=8)
    np.testing.assert_allclose(logp, expected, atol=2e-5)  # the same numbers went in, sums are float32
    error = np.linalg.norm(low_gradient - gradient) / np.linalg.norm(gradient)
    assert error < 2e-3  # rounding of each product's inputs; a bfloat16 sum over 400 chunks is off by 3e-2


def test_too_small_chunk_is_refused():
    with pytest.raises(ValueError, match="grpo.logp_chunk=3 is less than the 4 rows"):
        grpo.token_logp(*problem()[:3], is_trained=problem()[3], chunk=3)


def compiled_text(x, head, target, is_trained, is_banned, scale, chunk):
    def scalar(x, head):
        logp, entropy = grpo.token_logp(x, head, target, is_trained=is_trained, is_banned_V=is_banned, chunk=chunk)
        return (scale * logp).sum(), entropy

    return jax.jit(jax.value_and_grad(scalar, argnums=(0, 1), has_aux=True)).lower(x, head).compile().as_text()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_buffer_above_chunk_times_vocabulary(dtype):
    x, head, *rest = problem(width=64, vocabulary=2048)
    chunk = 16
    buffers = hlo.largest_buffers(compiled_text(x.astype(dtype), head, *rest, chunk))
    assert buffers[0][0] == head.size
    # Neither logits of more tokens nor, in float32, a transposed head; in bfloat16 a CPU turns its copy of the head once.
    # A leading 1 counts the devices over which the head's gradient is summed apart.
    heads = {head.shape, (1, *head.shape)} | ({head.shape[::-1]} if dtype == "bfloat16" else set())
    assert not [entry for entry in buffers if entry[0] > chunk * len(head) and entry[2] not in heads]
    assert (chunk * len(head), "f32") in [entry[:2] for entry in buffers]  # the reader sees the logits


@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 8, 1), (1, 2, 4), (8, 1, 1)])
def test_a_mesh_changes_nothing_and_sums_the_heads_gradient_once(sizes):
    x, head, target, is_trained, is_banned, scale = problem(rows=8, vocabulary=512)
    expected = jax.tree.leaves(chunked(x, head, target, is_trained, is_banned, scale, chunk=32))
    device_mesh = mesh.make(*sizes)
    rows = NamedSharding(device_mesh, PartitionSpec(("data", "fsdp")))
    head_sharding = NamedSharding(device_mesh, PartitionSpec("tensor", "fsdp"))

    def both(x, head, target, is_trained, scale):
        values, (x_gradient, head_gradient) = chunked(x, head, target, is_trained, is_banned, scale, chunk=32)
        return values, (x_gradient, jax.lax.with_sharding_constraint(head_gradient, head_sharding))

    arguments = jax.device_put((x, head, target, is_trained, scale), (rows, head_sharding, rows, rows, rows))
    with jax.set_mesh(device_mesh):
        compiled = jax.jit(both).lower(*arguments).compile()
    for value, reference in zip(jax.tree.leaves(compiled(*arguments)), expected, strict=True):
        close(value, reference, 1e-5)

    # Inside the scans only sums over `tensor` remain, of a device's own rows and positions, at most width elements each.
    body, lines = "", []
    for line in compiled.as_text().splitlines():
        body = line if line.endswith("{") else body
        if body.startswith("%") and (call := re.search(r"= (.*) (all-\w+|collective-permute|reduce-scatter)\(", line)):
            lines.append(call.groups())
    assert {name for _, name in lines} <= {"all-reduce"}
    on_device = 8 // (sizes[0] * sizes[1])
    assert all(hlo.largest_buffers(shapes)[0][0] <= on_device * 4 * 16 for shapes, _ in lines)
    assert bool(lines) == (sizes[2] > 1)
