"""The optimizer against torch's, updates that are skipped, and where a state lies on a mesh (array code)."""

import hf
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

from configs import base
from safer_jax import config, mesh, state
from safer_jax.model import variants, vlm


def settings(**changes) -> config.Optimizer:
    values = base.get_config()
    values.optimizer.update(changes)
    return config.resolve(values).optimizer


SHAPES = {
    "text.embed": (6, 4),
    "text.layers.norm1": (2, 4),
    "text.layers.q": (2, 4, 2, 2),
    "text.layers.q_bias": (2, 2, 2),
    "text.norm": (4,),
    "vision.layers.qkv": (2, 3, 3, 1, 3),
    "vision.merger.fc1_bias": (5,),
    "vision.patch_embed": (3, 2, 2, 2, 3),
}
MATRICES = ("text.embed", "text.layers.q", "vision.layers.qkv", "vision.patch_embed")


def tree_of(arrays):
    return nnx.from_flat_state([(tuple(name.split(".")), nnx.Param(jnp.asarray(x))) for name, x in arrays.items()])


@pytest.mark.parametrize("train_vision", [True, False])
def test_optimizer_is_torchs(train_vision):
    """AdamW after clip_grad_norm_ over all tensors that train, with a linear warm-up: float32 within 1e-6."""
    rng = np.random.default_rng(0)
    draw = lambda: {name: rng.standard_normal(shape, np.float32) for name, shape in SHAPES.items()}
    start = draw()
    theirs = {name: torch.nn.Parameter(torch.tensor(x)) for name, x in start.items()}
    trained = {name: weight for name, weight in theirs.items() if train_vision or name.startswith("text.")}
    decay = lambda chosen: {"params": [trained[name] for name in trained if (name in MATRICES) == chosen]}
    groups = [{**decay(True), "weight_decay": 0.1}, {**decay(False), "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=0.01, betas=(0.8, 0.95), eps=1e-7)
    schedule = torch.optim.lr_scheduler.LambdaLR(adamw, lambda count: min(1.0, (count + 1) / 3))

    chosen = settings(
        b1=0.8,
        b2=0.95,
        eps=1e-7,
        clip_norm=4.0,
        train_vision=train_vision,
    )
    optimizer = state.optimizer(chosen, lr=0.01, warmup_steps=3, weight_decay=0.1)
    now = state.create(tree_of(start), optimizer)
    names = lambda path: ".".join(entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey))
    moments = {names(path) for path, _ in jax.tree.leaves_with_path(now.opt_state)}
    assert {name for name in moments if name} == set(trained), "a frozen tower has no moments"
    apply = jax.jit(lambda now, gradient: state.apply_gradient(now, gradient, jnp.float32(0), optimizer))
    for scale in (1.0, 0.1, 3.0, 0.2, 1.0):  # norms from about 1 to 40, some beyond the clip and some not
        gradient = {name: scale * x if name in trained else 0 * x for name, x in draw().items()}
        for name, weight in trained.items():
            weight.grad = torch.tensor(gradient[name])
        norm = torch.nn.utils.clip_grad_norm_(trained.values(), 4.0)
        adamw.step()
        schedule.step()
        now, metrics = apply(now, tree_of(gradient))
        assert float(metrics["grad_norm"]) == pytest.approx(norm.item(), rel=1e-5), "before clipping"
        for name, value in hf.flat(now.params).items():
            np.testing.assert_allclose(value, theirs[name].detach().numpy(), atol=1e-6, err_msg=name)
    for name in set(SHAPES) - set(trained):
        np.testing.assert_array_equal(hf.flat(now.params)[name], start[name])
    assert int(state.updates(now.opt_state)) == 5


def assert_same_bits(ours, theirs):
    bits = lambda tree: [np.asarray(leaf).view(np.uint32) for leaf in jax.tree.leaves(tree)]
    jax.tree.map(np.testing.assert_array_equal, bits(ours), bits(theirs))


@pytest.mark.parametrize(("bad", "loss"), [(np.inf, 0.0), (np.nan, 0.0), (1e30, 0.0), (1.0, np.nan), (1.0, np.inf)])
def test_what_is_not_finite_is_skipped_and_counted(bad, loss):
    """An inf or NaN in one tensor, a norm that overflows, a loss that is not finite."""
    optimizer = state.optimizer(settings(), lr=0.01, warmup_steps=3, weight_decay=0.1)
    apply = jax.jit(lambda now, gradient, loss: state.apply_gradient(now, gradient, loss, optimizer))
    good = {name: np.full(shape, 0.5, np.float32) for name, shape in SHAPES.items()}
    before, metrics = apply(state.create(tree_of(good), optimizer), tree_of(good), jnp.float32(1))
    assert (int(before.skipped), int(before.skipped_in_a_row), int(metrics["skipped"])) == (0, 0, 0)
    broken = tree_of({**good, "text.layers.q_bias": good["text.layers.q_bias"] * np.float32(bad)})
    now = before
    for count in (1, 2):
        now, metrics = apply(now, broken, jnp.float32(loss))
        assert_same_bits((now.params, now.opt_state), (before.params, before.opt_state))
        assert (int(now.skipped), int(now.skipped_in_a_row), int(metrics["skipped"])) == (count, count, 1)
    now, metrics = apply(now, tree_of(good), jnp.float32(1))
    assert (int(now.skipped), int(now.skipped_in_a_row), int(metrics["skipped"])) == (2, 0, 0)
    assert not np.array_equal(now.params["text"]["norm"][...], before.params["text"]["norm"][...])


@pytest.mark.parametrize("train_vision", [True, False])
def test_moments_lie_where_their_parameters_lie(train_vision):
    optimizer = state.optimizer(settings(train_vision=train_vision), lr=1e-3, warmup_steps=0, weight_decay=0.0)
    abstract = jax.eval_shape(lambda params: state.create(params, optimizer), vlm.abstract(variants.VARIANTS["3b"])[1])
    placed = state.shardings(abstract, mesh.make(1, 4, 2))
    share = lambda tree, placed: {
        ".".join(path): placed.get_value().shard_shape(leaf.shape)
        for (path, leaf), (_, placed) in zip(nnx.to_flat_state(tree), nnx.to_flat_state(placed), strict=True)
        if jax.tree.leaves(leaf)
    }
    cut = share(abstract.params, placed.params)
    assert cut["text.layers.q"] == (36, 512, 8, 128) and cut["text.embed"] == (75_968, 512)
    trained = {path: shape for path, shape in cut.items() if train_vision or not path.startswith("vision.")}
    for moment in ("mu", "nu"):
        moments = [optax.tree.get(tree.opt_state, moment) for tree in (abstract, placed)]
        assert share(*moments) == trained
    assert all(getattr(placed, name).is_fully_replicated for name in ("step", "cursor", "skipped", "skipped_in_a_row"))


def test_a_state_can_be_given_away():
    """Donated: no array stands in it twice. The next stage keeps step and skips, and starts its draws and moments anew."""
    optimizer = optax.adam(0.1)
    now = state.create(tree_of({"text.norm": np.ones(3, np.float32)}), optimizer)
    now = jax.jit(lambda now: jax.tree.map(lambda x: x + 2, now), donate_argnums=0)(now)
    after = state.start_stage(now, optimizer)
    assert (int(after.step), int(after.skipped), int(after.skipped_in_a_row), int(after.cursor)) == (2, 2, 0, 0)
    np.testing.assert_array_equal(after.params["text"]["norm"][...], 3)
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(after.opt_state))
