"""Meshes, the table of axes, global arrays in and out, and the model on meshes of eight fake devices (host code)."""

import hf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from safer_jax import mesh
from safer_jax.model import variants, vlm


@pytest.mark.parametrize(
    ("asked", "made"),
    [((8, 1, 1), (8, 1, 1)), ((-1, 1, 1), (8, 1, 1)), ((2, -1, 2), (2, 2, 2)), ((1, 2, -1), (1, 2, 4))],
)
def test_one_axis_takes_the_rest_of_the_devices(asked, made):
    assert tuple(mesh.make(*asked).shape.items()) == tuple(zip(("data", "fsdp", "tensor"), made, strict=True))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ((2, 2, 1), "mesh.data=2, mesh.fsdp=2, mesh.tensor=1 make 4 devices, but there are 8"),
        ((-1, 3, 1), "make 3 devices or a multiple, but there are 8"),
        ((16, 1, 1), "make 16 devices"),
        ((-1, -1, 1), "at most one is -1"),
        ((0, 1, 8), "mesh.data=0.*positive"),
        ((-2, 1, 4), "mesh.data=-2"),
    ],
)
def test_a_mesh_that_does_not_fit_names_its_sizes(asked, message):
    with pytest.raises(mesh.MeshError, match=message):
        mesh.make(*asked)


def test_put_cuts_the_batch_and_gather_brings_it_back():
    made = mesh.make(2, 2, 2)
    batch = {"a": np.arange(24).reshape(8, 3), "b": np.arange(4.0)}
    there = mesh.put(batch, made)
    assert {shard.data.shape for shard in there["a"].addressable_shards} == {(2, 3)}
    jax.tree.map(np.testing.assert_array_equal, mesh.gather(there), batch)
    whole = mesh.replicate(batch, made)
    assert {shard.data.shape for shard in whole["a"].addressable_shards} == {(8, 3)}
    jax.tree.map(np.testing.assert_array_equal, mesh.gather(whole), batch)


def test_a_batch_that_cannot_be_cut_is_refused():
    with pytest.raises(mesh.MeshError, match="6 prompts cannot be cut over data x fsdp = 4"):
        mesh.put({"a": np.zeros((6, 2))}, mesh.make(2, 2, 2))


def shards(config, sizes, column):
    """{path: (shape of a parameter, shape of one device's share)}."""
    params = vlm.abstract(config)[1]
    placed = nnx.to_flat_state(mesh.shardings(params, mesh.make(*sizes), column))
    return {
        ".".join(path): (leaf.shape, sharding.get_value().shard_shape(leaf.shape))
        for (path, leaf), (_, sharding) in zip(nnx.to_flat_state(params), placed, strict=True)
    }


def test_parameters_are_cut_where_the_table_says():
    cut = shards(variants.VARIANTS["3b"], (1, 4, 2), mesh.TRAIN)
    assert cut["text.embed"] == ((151_936, 2048), (75_968, 512))
    assert cut["text.layers.q"] == ((36, 2048, 16, 128), (36, 512, 8, 128))
    assert cut["text.layers.k"] == ((36, 2048, 2, 128), (36, 512, 1, 128))
    assert cut["text.layers.o"] == ((36, 16, 128, 2048), (36, 8, 128, 512))
    assert cut["text.layers.down"] == ((36, 11_008, 2048), (36, 5504, 512))
    assert cut["text.layers.norm1"] == ((36, 2048), (36, 512))
    assert cut["vision.layers.qkv"] == ((32, 1280, 3, 16, 80), (32, 320, 3, 8, 80))
    assert cut["vision.patch_embed"] == ((3, 2, 14, 14, 1280), (3, 2, 14, 14, 320))
    assert all(ours[0] == whole[0] for path, (whole, ours) in cut.items() if ".layers." in path), "layers are not cut"


def test_a_dimension_that_does_not_divide_stays_whole():
    cut = shards(variants.VARIANTS["3b"], (1, 2, 4), mesh.TRAIN)
    assert cut["text.layers.k"] == ((36, 2048, 2, 128), (36, 1024, 2, 128))  # 2 kv heads on 4 devices
    assert cut["text.layers.q"] == ((36, 2048, 16, 128), (36, 1024, 4, 128))


@pytest.mark.parametrize("name", variants.VARIANTS)
def test_the_samplers_copy_is_whole_over_data_and_fsdp(name):
    config = variants.VARIANTS[name]
    assert all(whole == ours for whole, ours in shards(config, (2, 4, 1), mesh.SAMPLE).values())
    cut = shards(config, (1, 4, 2), mesh.SAMPLE)
    assert cut["text.layers.gate"][1] == (config.text.depth, config.text.width, config.text.ffn // 2)


def test_constrain_changes_nothing_without_a_mesh_and_pins_with_one():
    x = jnp.ones((8, 4, 6))
    np.testing.assert_array_equal(mesh.constrain(x, "prompt", None, "ffn"), x)
    with jax.set_mesh(mesh.make(2, 2, 2)):
        pinned = jax.jit(lambda x: mesh.constrain(2 * x, "prompt", None, "ffn"))(x)
        odd = jax.jit(lambda x: mesh.constrain(2 * x, "prompt", None, "ffn"))(x[:3])
    assert pinned.sharding.spec == PartitionSpec(("data", "fsdp"), None, "tensor")
    assert odd.sharding.shard_shape(odd.shape) == (3, 4, 3)


CONFIG = hf.config_of("wide_window")


@pytest.fixture(scope="module")
def model():
    graph, _ = vlm.abstract(CONFIG)
    params = vlm.init_params(CONFIG, jax.random.key(0))
    rows = hf.rows(CONFIG, 0, [[(4, 6)], [(6, 6), (4, 4)], [], [(8, 4)]] * 2, range(5, 13))
    prompts = hf.collate(CONFIG, rows, 56)
    rng = np.random.default_rng(0)
    token = rng.integers(hf.FIRST_TEXT, CONFIG.text.vocab, (8, 2, 5)).astype(np.int32)
    is_valid = np.arange(5) < rng.integers(1, 6, (8, 2, 1))

    @jax.jit
    def forward(params, prompts, token, is_valid):
        model = nnx.merge(graph, params)
        hidden_PGCD = model(prompts, token, is_valid)
        return jnp.where(is_valid[..., None], hidden_PGCD @ model.head_VD().T, 0.0)

    arrays = (prompts, token, is_valid)
    return params, arrays, forward, np.asarray(forward(params, *jax.tree.map(jnp.asarray, arrays)))


TRAINING = [((8, 1, 1), mesh.TRAIN), ((1, 8, 1), mesh.TRAIN), ((1, 1, 8), mesh.TRAIN), ((2, 2, 2), mesh.TRAIN)]


@pytest.mark.parametrize(("sizes", "column"), [*TRAINING, ((2, 2, 2), mesh.SAMPLE)])
def test_model_on_a_mesh_equals_one_device(model, sizes, column):
    params, arrays, forward, alone = model
    made = mesh.make(*sizes)
    placed = jax.device_put(params, mesh.shardings(vlm.abstract(CONFIG)[1], made, column))
    with jax.set_mesh(made):
        logits = forward(placed, *mesh.put(arrays, made))
    np.testing.assert_allclose(logits, alone, atol=2e-5)
