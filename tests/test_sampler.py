"""Sampling against the teacher-forced forward, against plain statements of each distribution, and across batches and
meshes (array code)."""

import functools

import hf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import stats

from safer_jax import attempts, mesh, sampler
from safer_jax.model import variants, vlm
from safer_jax.shapes import ANSWER, EMPTY, Layout

GROUP, LIMIT = 4, 12
VOCAB = 1300  # three blocks of the two-stage search, the last one not full
END_IDS = tuple(number for number in range(11, VOCAB, 28) if number % 7 != 3) + (1299,)  # many, so that rows do end
BANNED = np.isin(np.arange(VOCAB), [hf.PAD, hf.IMAGE, VOCAB - 2]) | (np.arange(VOCAB) % 7 == 3)
TEMPERATURE = 0.7

CONFIG = variants.ModelConfig(
    variants.VisionConfig(depth=2, width=32, ffn=48, heads=2, window=56, full_blocks=(1,)),
    variants.TextConfig(VOCAB, width=64, ffn=96, depth=2, heads=8, kv_heads=2, mrope_section=(1, 1, 2)),
    tied=True,
    image_id=hf.IMAGE,
    video_id=hf.VIDEO,
    vision_start_id=hf.START,
    vision_end_id=hf.END,
    init_std=0.3,  # logits wide enough that tokens differ in likelihood
)
GRAPH = vlm.abstract(CONFIG)[0]


def programs():
    """The sampler as a rollout runs it."""
    return attempts.Programs(lambda *asked: (compiled()(*asked), None), Layout(LIMIT))


@functools.cache
def compiled(**change):
    """`sampler.generate` jitted with these settings: (params, prompts, seed = 0) -> Rollout."""
    settings = {"temperature": TEMPERATURE, "end_ids": END_IDS, "is_banned_V": BANNED, **change}
    shape = {"group": settings.pop("group", GROUP), "max_tokens": settings.pop("max_tokens", LIMIT)}
    drawing = sampler.Drawing(**settings)

    def run(params, prompts, seed=0):
        model, key = nnx.merge(GRAPH, params), jax.random.key(seed)
        return sampler.generate(model, prompts, key, drawing=drawing, **shape)[0]

    return jax.jit(run)


def sample(params, prompts, seed=0, **change):
    return jax.tree.map(np.asarray, compiled(**change)(params, prompts, seed))


@pytest.fixture(scope="module")
def params():
    return vlm.init_params(CONFIG, jax.random.key(0))


@pytest.fixture(scope="module")
def prompts():
    """Text alone: images are the prefill's business, and half of the compile time."""
    return hf.collate(CONFIG, hf.rows(CONFIG, 0, [[]] * 8, range(5, 13)), 16)


@pytest.fixture(scope="module")
def drawn(params, prompts):
    return sample(params, prompts)


@jax.jit
def hidden_of(params, prompts, token, is_valid):
    return nnx.merge(GRAPH, params)(prompts, token, is_valid)


def forced_logp(params, prompts, token, is_valid, temperature=TEMPERATURE, banned=BANNED):
    """Teacher-forced log-probs of every id, in float64: [P, G, C, V]."""
    hidden = np.asarray(hidden_of(params, prompts, token, is_valid), np.float64)
    logits = hidden @ np.asarray(params["text"]["embed"][...], np.float64).T / temperature
    logits[..., banned] = -np.inf
    top = logits.max(-1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))


def at(value_PGCV, token_PGC):
    return np.take_along_axis(value_PGCV, token_PGC[..., None], -1)[..., 0]


def missed_by(params, prompts, rollout, seed=0):
    """How far each row's uniform number lies outside the slice of its token in the float64 cumulative distribution."""
    is_valid = rollout.role_PGC == ANSWER
    weight = np.exp(forced_logp(params, prompts, rollout.token_PGC, is_valid))
    below = at(weight.cumsum(-1) - weight, rollout.token_PGC)
    keys = sampler.row_keys(jax.random.key(seed), jnp.asarray(prompts.draw_P), is_valid.shape[1])
    u = np.stack([sampler.uniform(keys, slot) for slot in range(is_valid.shape[2])], -1).astype(np.float64)
    return np.where(is_valid, np.maximum(below - u, u - below - at(weight, rollout.token_PGC)), 0.0).max()


# What is sampled.


def test_greedy_takes_the_likeliest_allowed_token_of_the_forced_forward(params, prompts):
    free = sample(params, prompts, temperature=0.0, end_ids=())
    # Two tokens that end some rows early; ids 11, 700, 1299 may never come up under greedy sampling.
    ends = (int(free.token_PGC[0, 0, 2]), int(free.token_PGC[1, 0, 5]))
    greedy = sample(params, prompts, temperature=0.0, end_ids=ends)
    is_valid = greedy.role_PGC == ANSWER
    lengths = is_valid.sum(-1)
    assert len(np.unique(lengths)) > 2, "rows of several lengths, or this tests little"
    np.testing.assert_array_equal(np.where(is_valid, free.token_PGC, 0), greedy.token_PGC)
    logp = forced_logp(params, prompts, greedy.token_PGC, is_valid, temperature=1.0)
    np.testing.assert_array_equal(logp.argmax(-1)[is_valid], greedy.token_PGC[is_valid])
    np.testing.assert_allclose(greedy.logp_PGC[is_valid], logp.max(-1)[is_valid], atol=1e-4)
    unbanned = forced_logp(params, prompts, greedy.token_PGC, is_valid, temperature=1.0, banned=[])
    assert BANNED[unbanned.argmax(-1)[is_valid]].any(), "the bans bind here"


def test_log_probs_are_the_trainers(params, prompts, drawn):
    is_valid = drawn.role_PGC == ANSWER
    logp = at(forced_logp(params, prompts, drawn.token_PGC, is_valid), drawn.token_PGC)
    assert np.abs(logp - drawn.logp_PGC)[is_valid].max() < 1e-4

    low = vlm.cast(params, jnp.bfloat16)
    rounded = sample(low, prompts)
    is_valid = rounded.role_PGC == ANSWER
    logp = at(forced_logp(low, prompts, rounded.token_PGC, is_valid), rounded.token_PGC)
    gap = np.abs(logp - rounded.logp_PGC)[is_valid]
    print(f"bfloat16 log-probs, sampler against trainer: mean gap {gap.mean():.4f}, largest {gap.max():.4f}")
    assert gap.mean() < 0.1


def test_tokens_are_where_their_uniform_number_falls(params, prompts, drawn):
    assert missed_by(params, prompts, drawn) < 1e-4


def test_banned_ids_are_never_sampled(params, prompts):
    hot = sample(params, prompts._replace(draw_P=prompts.draw_P + 1000), temperature=50.0, group=64, end_ids=())
    assert len(np.unique(hot.token_PGC)) > 900, "nearly uniform"
    assert not BANNED[hot.token_PGC].any()
    assert np.isfinite(hot.logp_PGC).all()


def test_first_tokens_follow_the_models_softmax(params, prompts):
    """8,192 draws of one prompt: draws and rollouts are independent samples."""
    same = jax.tree.map(lambda x: np.repeat(x[1:2], 8, 0), prompts)._replace(draw_P=np.arange(50, 58, dtype=np.int32))
    first = sample(params, same, group=1024, max_tokens=1)
    token = first.token_PGC[:1, :1]
    weight = np.exp(forced_logp(params, jax.tree.map(lambda x: x[:1], same), token, token >= 0))[0, 0, 0]
    count = np.bincount(first.token_PGC.reshape(-1), minlength=VOCAB)
    assert (weight * count.sum() >= 5).sum() > 20, "a spread distribution, or this tests little"
    assert chi_square(count, weight) > 1e-3


def chi_square(count, weight):
    """p-value of counts under a distribution, ids that are expected less than five times taken together."""
    weight = weight.astype(np.float64)
    expected = weight / weight.sum() * count.sum()
    often = expected >= 5
    pool = lambda x: np.append(x[often], x[~often].sum())[: None if expected[~often].any() else -1]
    return stats.chisquare(pool(count), pool(expected)).pvalue


# Rows end, and the loop with them.


def test_a_row_does_not_change_after_its_end(params, prompts, drawn):
    longer = sample(params, prompts, max_tokens=2 * LIMIT)
    is_end = np.isin(longer.token_PGC, END_IDS) & (longer.role_PGC == ANSWER)
    length = np.where(is_end.any(-1), is_end.argmax(-1) + 1, 2 * LIMIT)
    assert (length < LIMIT).any() and ((length > LIMIT) & (length < 2 * LIMIT)).any() and (length == 2 * LIMIT).any()
    for rollout, limit in ((drawn, LIMIT), (longer, 2 * LIMIT)):
        is_in = np.arange(limit) < length[..., None]
        np.testing.assert_array_equal(rollout.token_PGC, np.where(is_in, longer.token_PGC[..., :limit], 0))
        np.testing.assert_array_equal(rollout.role_PGC, np.where(is_in, ANSWER, EMPTY))
        assert (rollout.logp_PGC[is_in] < 0).all() and (rollout.logp_PGC[~is_in] == 0).all()
        np.testing.assert_array_equal(rollout.is_cut_PGE[..., 0], ~is_end[..., :limit].any(-1))
        assert not rollout.attempt_PGC.any()


def test_the_loop_stops_when_every_row_has_ended(params, prompts, monkeypatch):
    steps = []
    uniform = sampler.uniform

    def counted(keys, slot):
        jax.debug.callback(lambda slot: steps.append(int(slot)), slot)
        return uniform(keys, slot)

    monkeypatch.setattr(sampler, "uniform", counted)
    ends = tuple(range(8, VOCAB, 3))  # a third of the vocabulary: rows end within a few tokens
    out = sample(params, prompts, max_tokens=500, end_ids=ends, seed=5)
    jax.effects_barrier()
    longest = (out.role_PGC == ANSWER).sum(-1).max()
    assert 1 < longest < 100 and sorted(steps) == list(range(longest))


# A sample depends on (seed, draw, rollout, position) alone.


def test_order_in_the_batch_changes_no_bit(params, prompts, drawn):
    order = np.random.default_rng(0).permutation(8)
    permuted = sample(params, jax.tree.map(lambda x: x[order], prompts))
    jax.tree.map(lambda there, here: np.testing.assert_array_equal(there, here[order]), permuted, drawn)


def test_another_seed_draw_or_rollout_gives_another_sample(params, prompts, drawn):
    same = jax.tree.map(lambda x: np.repeat(x[:1], 8, 0), prompts)._replace(draw_P=np.arange(8, dtype=np.int32))
    rows = sample(params, same, end_ids=()).token_PGC.reshape(8 * GROUP, LIMIT)  # without ends rows are long
    assert len(np.unique(rows, axis=0)) == len(rows)
    assert (sample(params, prompts, seed=1).token_PGC != drawn.token_PGC).any()


def test_passes_of_fewer_prompts_give_the_same(params, prompts, drawn):
    made = mesh.make(1, 1, 1, jax.devices()[:1])
    passes = attempts.rollout(programs(), params, prompts, 2, made)
    assert same_or_at_a_threshold(params, prompts, passes, drawn)


def test_passes_that_do_not_come_out_even_are_refused(params, prompts):
    with pytest.raises(ValueError, match="8 prompts do not divide into passes of 3; change sampler.prompts_per_pass"):
        attempts.rollout(programs(), params, prompts, 3, mesh.make(1, 1, 1, jax.devices()[:1]))


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2), (1, 1, 8)])
def test_meshes_give_the_same(params, prompts, drawn, sizes):
    made = mesh.make(*sizes)
    placed = jax.device_put(params, mesh.shardings(vlm.abstract(CONFIG)[1], made, mesh.SAMPLE))
    with jax.set_mesh(made):
        there = attempts.rollout(programs(), placed, prompts, 0, made)
    assert same_or_at_a_threshold(params, prompts, there, drawn)


def same_or_at_a_threshold(params, prompts, one, other):
    """True where tokens are equal, or a row parts where its uniform number lies within 1e-4 of a threshold.

    Where two rows first part, they share their past, so the number lies in both tokens' slices up to 1e-4 only there.
    """
    same = (one.token_PGC == other.token_PGC).all(-1)
    assert same.mean() > 0.9 and np.abs(one.logp_PGC - other.logp_PGC)[same].max() < 1e-4
    return max(missed_by(params, prompts, rollout) for rollout in (one, other)) < 1e-4


# The parts, against plain statements.


def test_uniform_numbers_are_uniform_and_independent():
    keys = sampler.row_keys(jax.random.key(3), jnp.arange(64), 64)
    u = np.stack([sampler.uniform(keys, slot) for slot in range(3)])
    assert u.min() >= 0 and u.max() < 1
    cell = (u * 8).astype(int)
    assert stats.chisquare(np.bincount(cell.ravel(), minlength=8)).pvalue > 1e-3
    for a, b in ((cell[0], cell[1]), (cell[:, 1:], cell[:, :-1]), (cell[:, :, 1:], cell[:, :, :-1])):
        assert stats.chisquare(np.bincount((8 * a + b).ravel(), minlength=64)).pvalue > 1e-3


@pytest.mark.parametrize("size", [5, 512, 1300])
def test_inverse_cdf_follows_the_weights(size):
    rng = np.random.default_rng(size)
    weight = rng.exponential(size=size).astype(np.float32) * (rng.random(size) < 0.8)
    keys = sampler.row_keys(jax.random.key(1), jnp.arange(200), 200)
    u = jax.jit(sampler.uniform)(keys, 7)
    token = jax.jit(jax.vmap(sampler.inverse_cdf, (None, 0)))(weight, u.reshape(-1))
    count = np.bincount(token, minlength=size)
    assert count.shape == (size,) and not count[weight == 0].any()
    assert chi_square(count, weight) > 1e-3


def test_inverse_cdf_never_gives_an_id_of_weight_0():
    """Spikes, ends, tiny weights beside large ones, and numbers at both ends of [0, 1)."""
    rng = np.random.default_rng(0)
    weights = np.zeros((64, VOCAB), np.float32)
    for row, weight in enumerate(weights):
        ids = rng.choice(VOCAB, rng.integers(1, 30), replace=False)
        weight[ids] = 10.0 ** rng.uniform(-30 if row % 2 else -6, 0, len(ids))
    for row, spike in enumerate((0, 511, 512, 1023, 1024, VOCAB - 1)):
        weights[row] = 0
        weights[row, spike] = 1e-20 if row % 2 else 1.0
    below_one = np.nextafter(np.float32(1), np.float32(0))
    u = np.array([0.0, 1e-38, 1e-7, 0.25, 0.5, 0.75, 1 - 1e-6, below_one], np.float32)
    find = jax.jit(jax.vmap(jax.vmap(sampler.inverse_cdf, (None, 0)), (0, None)))
    token = np.asarray(find(weights, u))
    assert (np.take_along_axis(weights, token, -1) > 0).all()
    exact = weights.astype(np.float64)
    share = exact.cumsum(-1) / exact.sum(-1, keepdims=True)
    above = np.take_along_axis(share, token, -1)
    below = above - np.take_along_axis(exact / exact.sum(-1, keepdims=True), token, -1)
    assert (below - 1e-6 <= u).all() and (u <= above + 1e-6).all()


@pytest.mark.parametrize(("top_k", "top_p"), [(1, 1.0), (7, 1.0), (5000, 1.0), (0, 0.3), (0, 0.95), (40, 0.9)])
def test_truncation_keeps_the_set_that_it_names(top_k, top_p):
    rng = np.random.default_rng(top_k)
    logits = rng.normal(size=(16, VOCAB)) * 2
    logits[:, BANNED] = -np.inf
    logp = np.asarray(jax.nn.log_softmax(jnp.asarray(logits, jnp.float32)))
    kept = np.isfinite(sampler.truncate(jnp.asarray(logp), top_k, top_p))
    for row, kept_row in zip(logp.astype(np.float64), kept, strict=True):
        order = np.argsort(-row)
        order = order[np.isfinite(row[order])][: top_k or None]
        if top_p < 1:
            weight = np.exp(row[order])
            order = order[: np.searchsorted(weight.cumsum() / weight.sum(), top_p) + 1]
        assert set(np.flatnonzero(kept_row)) == set(order)


def test_truncated_sampling_keeps_whole_log_probs(params, prompts):
    out = sample(params, prompts, top_k=3, top_p=0.8, end_ids=())
    logp = forced_logp(params, prompts, out.token_PGC, out.role_PGC == ANSWER)
    rank = (logp > at(logp, out.token_PGC)[..., None]).sum(-1)
    assert rank.max() in (1, 2)
    np.testing.assert_allclose(out.logp_PGC, at(logp, out.token_PGC), atol=1e-4)
