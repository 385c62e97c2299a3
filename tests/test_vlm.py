"""Our policy against transformers' in float32, and its three ways through the decoder against each other (array code)."""

import functools

import hf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from safer_jax import sampler
from safer_jax.model import vlm

SLOTS = 72
# Left padding in every row but the longest; two images whose borders cut windows; a row of text alone.
GRIDS, TEXTS = [[(8, 8)], [(4, 6), (10, 6)], []], [9, 14, 20]


class Pair:
    """One config in both libraries, with the rows of a batch."""

    def __init__(self, name: str):
        self.config = hf.config_of(name)
        self.torch, self.graph, self.params = hf.build(self.config)
        self.rows = hf.rows(self.config, 0, GRIDS, TEXTS)
        self.prompts = hf.collate(self.config, self.rows, SLOTS)
        self.inputs = hf.inputs(self.config, self.rows, SLOTS)


@pytest.fixture(scope="module", params=list(hf.CONFIGS))
def pair(request):
    return Pair(request.param)


@pytest.fixture(scope="module")
def tiny():
    return Pair("tiny")


def forward(graph, params, prompts):
    """Logits of every prompt slot, float32."""
    model = nnx.merge(graph, params)
    return (model.prefill(prompts)[0] @ model.head_VD().T).astype(jnp.float32)


def next_logp(logits, prompts):
    """Log-probability that slot s gives to the token of slot s+1."""
    logp = jax.nn.log_softmax(logits[:, :-1], axis=-1)
    return jnp.take_along_axis(logp, jnp.asarray(prompts.token_PS)[:, 1:, None], -1)[..., 0]


def is_text_next(prompts):
    """True where slot s is real and slot s+1 holds a text token."""
    return prompts.is_prompt_PS[:, :-1] & (prompts.token_PS[:, 1:] != hf.IMAGE)


def worst(ours, theirs):
    """The largest norm of a difference over the norm, and the parameter's name."""
    assert ours.keys() == theirs.keys()
    error = lambda name: float(np.linalg.norm(ours[name] - theirs[name]) / np.linalg.norm(theirs[name]))
    return max((error(name), name) for name in theirs)


def test_logits_log_probs_and_gradients_equal_transformers(pair):
    prompts, is_text = pair.prompts, is_text_next(pair.prompts)

    def loss(params, prompts):
        logits = forward(pair.graph, params, prompts)
        logp = next_logp(logits, prompts)
        return jnp.where(is_text, logp, 0.0).sum() / is_text.sum(), (logits, logp)

    gradient, (logits, logp) = jax.jit(jax.grad(loss, has_aux=True))(pair.params, prompts)

    pair.torch.zero_grad()
    their_logits = pair.torch(**pair.inputs).logits
    ids = pair.inputs["input_ids"][:, 1:, None]
    their_logp = torch.log_softmax(their_logits[:, :-1], -1).gather(-1, ids)[..., 0]
    their_logp[torch.from_numpy(is_text)].mean().backward()

    real = prompts.is_prompt_PS
    assert np.abs(logits - their_logits.detach().numpy())[real].max() < 1e-4
    assert np.abs(logp - their_logp.detach().numpy())[is_text].max() < 1e-5
    theirs = hf.tree({name: weight.grad for name, weight in pair.torch.named_parameters()}, pair.config)
    error, name = worst(hf.flat(gradient), theirs)
    assert error < 1e-4, f"{name}: {error:.2e}"


def test_greedy_generation_equals_transformers_over_64_steps(pair):
    banned = np.zeros(pair.config.text.vocab, bool)
    drawing = sampler.Drawing(temperature=0.0, end_ids=(), is_banned_V=banned)
    greedy = functools.partial(sampler.generate, group=1, max_tokens=64, drawing=drawing)
    run = jax.jit(lambda params, prompts: greedy(nnx.merge(pair.graph, params), prompts, jax.random.key(0))[0])
    ours = run(pair.params, pair.prompts)
    settings = {"do_sample": False, "max_new_tokens": 64, "eos_token_id": None, "pad_token_id": hf.PAD}
    with torch.no_grad():
        theirs = pair.torch.generate(**pair.inputs, **settings).numpy()[:, SLOTS:]
    assert theirs.shape == (3, 64)
    np.testing.assert_array_equal(ours.token_PGC[:, 0], theirs)


def test_log_probs_stay_near_in_bfloat16(tiny):
    run = jax.jit(lambda params, prompts: next_logp(forward(tiny.graph, params, prompts), prompts))
    is_text = is_text_next(tiny.prompts)
    exact, rounded = (run(params, tiny.prompts) for params in (tiny.params, vlm.cast(tiny.params, jnp.bfloat16)))
    gap = np.abs(exact - rounded)[is_text]
    print(f"bfloat16 against float32, log-prob of a token: mean gap {gap.mean():.4f}, largest {gap.max():.4f}")
    assert gap.max() < 0.5


# The group layout and the cache, on two prompts of three completions each.

LENGTHS = np.array([[7, 3, 6], [1, 7, 5]])


class Group:
    """Completions of unequal length, in the group layout and as one plain row each."""

    def __init__(self, pair: Pair):
        config, rows = pair.config, pair.rows[1:]
        rng = np.random.default_rng(1)
        self.token = rng.integers(hf.FIRST_TEXT, config.text.vocab, (2, 3, 7)).astype(np.int32)
        self.is_valid = np.arange(7) < LENGTHS[..., None]
        self.weight = rng.normal(size=self.token.shape) * self.is_valid  # so that each token counts differently
        self.prompts = hf.collate(config, rows, SLOTS)
        joined = [
            (np.concatenate([ids, self.token[p, g, : LENGTHS[p, g]]]), pixels, grids)
            for p, (ids, pixels, grids) in enumerate(rows)
            for g in range(3)
        ]
        self.plain = hf.collate(config, joined, SLOTS + 7)

    def of_plain(self, value_BS):
        """[B, S-1] at plain rows' tokens, that of slot s+1 at s, to [P, G, C]; 0 where no token stands."""
        out = jnp.zeros(self.token.shape, value_BS.dtype)
        for row, (p, g) in enumerate(np.ndindex(2, 3)):
            out = out.at[p, g, : LENGTHS[p, g]].set(value_BS[row, -LENGTHS[p, g] :])
        return out


@pytest.fixture(scope="module")
def group(tiny):
    return Group(tiny)


@pytest.fixture(scope="module")
def plain(tiny, group):
    """Log-probs [P, G, C] of every completion token and their gradients, each completion behind its own prompt."""

    def logp_of(params, plain, token, is_valid):
        return group.of_plain(next_logp(forward(tiny.graph, params, plain), plain))

    return value_and_gradient(logp_of, tiny, group, group.plain)


def value_and_gradient(logp_of, tiny, group, prompts):
    def loss(params, *arrays):
        logp = logp_of(params, *arrays)
        return (logp * group.weight).sum(), logp

    run = jax.jit(jax.grad(loss, has_aux=True))
    gradient, logp = run(tiny.params, prompts, group.token, group.is_valid)
    return np.asarray(logp), hf.flat(gradient)


def completion_logp(hidden, head_VD, token):
    logp = jax.nn.log_softmax(hidden @ head_VD.T, axis=-1)
    return jnp.take_along_axis(logp, token[..., None], -1)[..., 0]


def grouped(tiny, group, **options):
    """The same from one pass in the group layout."""

    def logp_of(params, prompts, token, is_valid):
        model = nnx.merge(tiny.graph, params)
        return completion_logp(model(prompts, token, is_valid, **options), model.head_VD(), token)

    return value_and_gradient(logp_of, tiny, group, group.prompts)


def test_group_layout_equals_plain_rows(tiny, group, plain):
    """With layers recomputed in the backward pass; the plain rows keep their activations."""
    logp, gradient = grouped(tiny, group, remat=True)
    assert np.abs(logp - plain[0])[group.is_valid].max() < 1e-5
    error, name = worst(gradient, plain[1])
    assert error < 1e-4, f"{name}: {error:.2e}"


def test_frozen_vision_leaves_the_rest_of_the_gradient_alone(tiny, group, plain):
    logp, gradient = grouped(tiny, group, train_vision=False)
    assert np.abs(logp - plain[0])[group.is_valid].max() < 1e-5
    assert all(not gradient[name].any() for name in gradient if name.startswith("vision."))
    only_text = lambda tree: {name: value for name, value in tree.items() if name.startswith("text.")}
    error, name = worst(only_text(gradient), only_text(plain[1]))
    assert error < 1e-4, f"{name}: {error:.2e}"


# (tokens a step, tokens of each row in it): one by one, and chunks whose shorter rows leave holes before the next.
STEPS = {
    "one by one": [(1, np.clip(LENGTHS - c, 0, 1)) for c in range(7)],
    "chunks": [(4, np.minimum(LENGTHS, [3, 2, 4])), (5, LENGTHS - np.minimum(LENGTHS, [3, 2, 4]))],
}


@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
def test_cached_steps_equal_one_pass(tiny, group, plain, steps):
    """Every token's log-prob, from a cache that was filled step by step into slots that rows of all lengths share."""
    slots = sum(tokens for tokens, _ in steps)

    @jax.jit
    def start(params, prompts):
        model = nnx.merge(tiny.graph, params)
        hidden, cache = model.prefill(prompts)
        return hidden[:, -1], cache, model.text.empty_cache(2, 3, slots, hidden.dtype)

    @jax.jit
    def feed(params, token, position, is_token, cache, own, slot):
        return nnx.merge(tiny.graph, params).extend(token, position, is_token, cache, own, slot)

    last, cache, own = start(tiny.params, group.prompts)
    hidden = np.zeros((2, 3, 8, last.shape[-1]), np.float32)
    hidden[:, :, 0] = last[:, None]
    fed, slot = np.zeros((2, 3), int), 0
    for tokens, counts in steps:
        index = fed[..., None] + np.arange(tokens)  # of the completion's tokens; beyond the row's count it is a hole
        is_token = np.arange(tokens) < counts[..., None]
        token = np.take_along_axis(group.token, np.minimum(index, 6), -1)
        position = (group.prompts.next_position_P[:, None, None] + index).astype(np.int32)
        out, own = feed(tiny.params, token, position, is_token, cache, own, jnp.int32(slot))
        for p, g, t in np.argwhere(is_token):
            hidden[p, g, fed[p, g] + t + 1] = out[p, g, t]
        fed, slot = fed + counts, slot + tokens
    np.testing.assert_array_equal(fed, LENGTHS)
    head = nnx.merge(tiny.graph, tiny.params).head_VD()
    logp = completion_logp(hidden[:, :, :7], head, group.token)
    assert np.abs(logp - plain[0])[group.is_valid].max() < 1e-5
