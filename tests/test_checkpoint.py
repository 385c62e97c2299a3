"""Checkpoints: bitwise round trips over meshes and processes, damage found and survived (host code)."""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from safer_jax import checkpoint
from safer_jax.shapes import TrainState

ROOT = pathlib.Path(__file__).parents[1]


class Small(nnx.Module):
    """Two parameters at different depths, one of them bfloat16."""

    def __init__(self, width: int = 8):
        random = np.random.default_rng(0)
        self.embed = nnx.Param(jnp.asarray(random.normal(size=(16, width)), jnp.float32))
        self.text = nnx.Dict(norm=nnx.Param(jnp.asarray(random.normal(size=(width,)), jnp.bfloat16)))


def small_state(step: int = 3, width: int = 8) -> TrainState:
    params = nnx.split(Small(width))[1]
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    opt_state = optimizer.update(params, optimizer.init(params), params)[1]
    scalars = [jnp.asarray(value, jnp.int32) for value in (step, 10 * step, 2, 1)]
    return TrainState(params, opt_state, *scalars)


def shardings_on(state, mesh):
    def sharding(leaf):
        return NamedSharding(mesh, PartitionSpec("data", "fsdp") if leaf.ndim == 2 else PartitionSpec())

    return jax.tree.map(sharding, state)


def abstract(state, shardings=None):
    if shardings is None:
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)
    return jax.tree.map(lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s), state, shardings)


def assert_same(got, wanted):
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def flip(path, bit):
    content = bytearray(path.read_bytes())
    content[bit // 8 % len(content)] ^= 1 << bit % 8
    path.write_bytes(content)


def data_files(target):
    return sorted(path for path in target.rglob("*") if path.is_file() and path.stat().st_size)


def test_round_trip_is_bitwise(tmp_path):
    state = small_state()
    special = state._replace(skipped=jnp.asarray([np.nan, -0.0, np.inf, 1e-42], jnp.float32))
    checkpoint.save(tmp_path, 3, special, {"reference": "abc", "nested": {"rows": [1, 2], 5: 1, 10: (2,)}})
    got, extra = checkpoint.restore(tmp_path, abstract(special))
    assert_same(got, special)
    assert isinstance(got, TrainState) and isinstance(got.params, nnx.State)
    assert extra == {"reference": "abc", "nested": {"rows": [1, 2], "5": 1, "10": [2]}}
    assert checkpoint.steps(tmp_path) == [3] and checkpoint.latest(tmp_path) == 3


def test_steps_and_keep(tmp_path):
    assert checkpoint.steps(tmp_path / "none") == [] and checkpoint.latest(tmp_path / "none") is None
    for step in (1, 2, 9, 10):
        checkpoint.save(tmp_path, step, small_state(step), {}, keep=2)
    assert checkpoint.steps(tmp_path) == [9, 10]
    assert int(checkpoint.restore(tmp_path, abstract(small_state()), step=9)[0].step) == 9
    with pytest.raises(checkpoint.CheckpointError, match=r"no finished checkpoint of step 5; it has \[9, 10\]"):
        checkpoint.restore(tmp_path, abstract(small_state()), step=5)
    with pytest.raises(checkpoint.CheckpointError, match="none: has no finished checkpoint"):
        checkpoint.restore(tmp_path / "none", abstract(small_state()))


def test_going_back_removes_the_abandoned_future(tmp_path, capsys):
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, step, small_state(step), {}, keep=2)
    checkpoint.save(tmp_path, 2, small_state(2)._replace(cursor=jnp.int32(77)), {}, keep=2)
    assert checkpoint.steps(tmp_path) == [2]
    assert "checkpoint 3 is removed" in capsys.readouterr().err
    assert int(checkpoint.restore(tmp_path, abstract(small_state()))[0].cursor) == 77


def test_mesh_may_change(tmp_path):
    devices = np.array(jax.devices())
    state = small_state()
    wide, tall = (Mesh(devices.reshape(shape), ("data", "fsdp")) for shape in ((2, 4), (8, 1)))
    checkpoint.save(tmp_path, 1, jax.device_put(state, shardings_on(state, wide)), {})
    wanted = shardings_on(state, tall)
    got, _ = checkpoint.restore(tmp_path, abstract(state, wanted))
    assert_same(got, state)
    assert [leaf.sharding for leaf in jax.tree.leaves(got)] == jax.tree.leaves(wanted)
    assert len(got.params["embed"].get_value().addressable_shards[0].data) == 2


def test_flipped_bits_are_caught(tmp_path):
    checkpoint.save(tmp_path / "good", 1, small_state(), {"a": 1})
    files = data_files(tmp_path / "good" / "1")
    assert len(files) > 5
    bits = np.random.default_rng(0).integers(0, 1 << 30, size=len(files))
    for path, bit in zip(files, bits, strict=True):
        original = path.read_bytes()
        flip(path, int(bit))
        with pytest.raises(checkpoint.CheckpointError, match="SHA-256|cannot be read") as error:
            checkpoint.restore(tmp_path / "good", abstract(small_state()))
        assert str(path) in str(error.value)
        path.write_bytes(original)
    checkpoint.restore(tmp_path / "good", abstract(small_state()))


def test_changed_manifest_is_caught(tmp_path):
    """One bit turns the saved 1 into a 0 that is valid in every other way."""
    checkpoint.save(tmp_path, 1, small_state(), {"epoch": 1})
    path = tmp_path / "1" / "manifest.json"
    path.write_text(path.read_text().replace('"epoch": 1', '"epoch": 0'))
    with pytest.raises(checkpoint.CheckpointError, match="manifest.json: its content is not what was written"):
        checkpoint.restore(tmp_path, abstract(small_state()))


def test_killed_removal_leaves_an_unfinished_checkpoint(tmp_path, monkeypatch):
    for step in (1, 2):
        checkpoint.save(tmp_path, step, small_state(step), {})

    def killed(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path, 2, small_state(2), {})
    assert checkpoint.steps(tmp_path) == [1] and (tmp_path / "2" / "state").exists()


@pytest.mark.parametrize("harm", ["flip", "cut", "delete"])
def test_damaged_newest_falls_back(tmp_path, capsys, harm):
    for step in (1, 2):
        checkpoint.save(tmp_path, step, small_state(step), {"step": step})
    path = max(data_files(tmp_path / "2" / "state"), key=lambda path: path.stat().st_size)
    {"flip": lambda: flip(path, 999), "cut": lambda: os.truncate(path, 5), "delete": path.unlink}[harm]()
    got, extra = checkpoint.restore(tmp_path, abstract(small_state()))
    assert int(got.step) == extra["step"] == 1
    told = capsys.readouterr().err
    assert "DAMAGED CHECKPOINT, step 2" in told and str(path) in told
    assert {"flip": "SHA-256", "cut": "has 5 bytes", "delete": "is missing"}[harm] in told
    with pytest.raises(checkpoint.CheckpointError, match="damaged checkpoint, nothing was restored"):
        checkpoint.restore(tmp_path, abstract(small_state()), step=2)


def test_other_model_lists_the_leaves(tmp_path):
    checkpoint.save(tmp_path, 1, small_state(), {})
    with pytest.raises(checkpoint.CheckpointError) as error:
        checkpoint.restore(tmp_path, abstract(small_state(width=4)))
    text = str(error.value)
    assert "checkpoint of another model" in text
    assert "params.embed: checkpoint has float32[16, 8], wanted float32[16, 4]" in text
    assert "opt_state.1.0.mu.text.norm: checkpoint has bfloat16[8], wanted bfloat16[4]" in text
    state = small_state()
    state.params["embed"] = nnx.Param(jnp.zeros((16, 8), jnp.bfloat16))
    state.params["head"] = nnx.Param(jnp.zeros((16, 8)))
    del state.params["text"]
    with pytest.raises(checkpoint.CheckpointError) as error:
        checkpoint.restore(tmp_path, abstract(state))
    text = str(error.value)
    assert "params.embed: checkpoint has float32[16, 8], wanted bfloat16[16, 8]" in text
    assert "params.text.norm: only in the checkpoint, bfloat16[8]" in text
    assert "params.head: not in the checkpoint, wanted float32[16, 8]" in text


def test_a_run_gives_its_parameters_alone(tmp_path):
    """Cast to the wanted dtype; the optimizer's leaves beside them are neither wanted nor in the way."""
    for step in (3, 5):
        checkpoint.save(tmp_path / "checkpoints", step, small_state(step), {})
    wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), small_state().params)
    for step, chosen in ((5, None), (3, 3)):
        got = checkpoint.load_run(tmp_path, wanted, chosen)
        for ours, saved in zip(jax.tree.leaves(got), jax.tree.leaves(small_state(step).params), strict=True):
            assert ours.dtype == jnp.float32
            np.testing.assert_array_equal(ours, saved.astype(jnp.float32))
    other = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), small_state(width=4).params)
    with pytest.raises(checkpoint.CheckpointError, match=r"params.embed: checkpoint has float32\[16, 8\]"):
        checkpoint.load_run(tmp_path, other)


def test_what_cannot_be_saved_is_named(tmp_path):
    with pytest.raises(checkpoint.CheckpointError, match="key: is a random key; save its jax.random.key_data"):
        checkpoint.save(tmp_path, 1, {"key": jax.random.key(0)}, {})
    with pytest.raises(checkpoint.CheckpointError, match="name: is a str, must be an array"):
        checkpoint.save(tmp_path, 1, {"name": "x"}, {})
    assert checkpoint.steps(tmp_path) == []


def test_unfinished_save_counts_for_nothing(tmp_path):
    """Whatever a kill leaves: any subset of the files, in the order in which they are written."""
    for step in (1, 2):
        checkpoint.save(tmp_path / "whole", step, small_state(step), {})
    files = sorted(data_files(tmp_path / "whole" / "2"), key=lambda path: path.stat().st_mtime_ns)
    assert files[-1].name == "manifest.json"
    for count in range(len(files)):
        run = tmp_path / f"killed{count}"
        shutil.copytree(tmp_path / "whole" / "1", run / "1")
        for path in files[:count]:
            copy = run / path.relative_to(tmp_path / "whole")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
        assert int(checkpoint.restore(run, abstract(small_state()))[0].step) == 1
    checkpoint.save(run, 2, small_state(2), {})
    assert int(checkpoint.restore(run, abstract(small_state()))[0].step) == 2


SAVER = """
import sys, jax.numpy as jnp
from safer_jax import checkpoint
step = 0
while True:
    step += 1
    checkpoint.save(sys.argv[1], step, {"x": jnp.full((1 << 18,), step, jnp.int32)}, {"step": step}, keep=2)
    print(step, flush=True)
"""


def test_kill_at_any_moment(tmp_path):
    """kill -9 of a process that saves as fast as it can: what is finished afterwards is whole."""
    random = np.random.default_rng(0)
    for attempt in range(2):
        process = subprocess.Popen([sys.executable, "-c", SAVER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE)
        for _ in range(3):
            process.stdout.readline()
        time.sleep(random.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=20)
        finished = checkpoint.steps(tmp_path)
        assert finished and [checkpoint.damage(tmp_path / str(step)) for step in finished] == [""] * len(finished)
        state, extra = checkpoint.restore(tmp_path, {"x": jax.ShapeDtypeStruct((1 << 18,), jnp.int32)})
        assert extra["step"] == finished[-1] and bool((state["x"] == finished[-1]).all())


def test_restore_params_reads_them_alone(tmp_path):
    state = small_state()
    checkpoint.save(tmp_path / "checkpoints", 4, state, {})
    leaves = checkpoint.restore_params(tmp_path, 4)
    assert set(leaves) == {"embed", "text.norm"} and len(leaves) == 2
    assert leaves.described["text.norm"] == {"dtype": "bfloat16", "shape": [8]}
    for name, leaf in (("embed", state.params["embed"]), ("text.norm", state.params["text"]["norm"])):
        assert type(leaves[name]) is np.ndarray and leaves[name].dtype == leaf.dtype
        assert leaves[name].tobytes() == np.asarray(leaf.get_value()).tobytes()
    with pytest.raises(KeyError):
        leaves["none"]
    path = max(data_files(tmp_path / "checkpoints" / "4" / "state"), key=lambda path: path.stat().st_size)
    flip(path, 100)
    with pytest.raises(checkpoint.CheckpointError, match="SHA-256"):
        checkpoint.restore_params(tmp_path)


def test_restore_params_needs_params(tmp_path):
    checkpoint.save(tmp_path / "checkpoints", 0, {"x": np.arange(3)}, {})
    with pytest.raises(checkpoint.CheckpointError, match="holds no params; its leaves are x"):
        checkpoint.restore_params(tmp_path)
    got, _ = checkpoint.restore(tmp_path / "checkpoints", {"x": np.empty(3, int)})
    assert type(got["x"]) is np.ndarray and got["x"].tolist() == [0, 1, 2]


STREAM = """
import sys
sys.path.append("tests")
import memory
from safer_jax import checkpoint
leaves = checkpoint.restore_params(sys.argv[1])
leaves["leaf0"]
before = memory.peak()
total = sum(leaves[name].nbytes for name in leaves)
print(memory.peak() - before, total)
"""
# What glibc keeps of freed memory, five leaves of this size, says nothing about what is held.
NOTHING_KEPT = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}


def test_restore_params_memory_is_one_leaf(tmp_path):
    params = {f"leaf{i}": np.random.default_rng(i).normal(size=(1 << 21,)).astype(np.float32) for i in range(16)}
    checkpoint.save(tmp_path / "checkpoints", 0, {"params": params}, {})
    environment = os.environ | NOTHING_KEPT
    command = [sys.executable, "-c", STREAM, tmp_path]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    grown, total = map(int, done.stdout.split())
    assert total == 16 * (1 << 23) and grown < 1 << 23, f"read {total} bytes one by one, memory grew by {grown}"


PAIR = """
import sys, jax, numpy as np
address, rank, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(address, 2, rank)
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from safer_jax import checkpoint
sharding = NamedSharding(Mesh(np.array(jax.devices()), ("x",)), PartitionSpec("x"))
value = np.arange(16.0, dtype=np.float32)
state = {"a": jax.make_array_from_callback((16,), sharding, lambda index: value[index])}
for step in (1, 2):
    checkpoint.save(folder, step, state, {"step": step}, keep=2)
if rank == 0:
    path = max((p for p in __import__("pathlib").Path(folder, "2").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    path.write_bytes(path.read_bytes()[:-1])
jax.experimental.multihost_utils.sync_global_devices("harmed")
abstract = {"a": jax.ShapeDtypeStruct((16,), np.float32, sharding=sharding)}
got, extra = checkpoint.restore(folder, abstract)
assert extra == {"step": 1}, extra
for shard in got["a"].addressable_shards:
    assert np.array_equal(shard.data, value[shard.index])
try:
    checkpoint.restore(folder, abstract, step=2)
except checkpoint.CheckpointError as error:
    print("refused:", error)
"""


def test_two_processes_agree(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [
        sys.executable,
        "-c",
        PAIR.replace("import sys, jax,", "import sys, jax, jax.experimental.multihost_utils,"),
    ]
    pair = [
        subprocess.Popen([*command, address, str(rank), tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    told = [process.communicate(timeout=90)[0] for process in pair]
    assert [process.returncode for process in pair] == [0, 0]
    assert "nothing was restored" in told[0] and "process 0 says why" in told[1]
    assert json.loads((tmp_path / "1" / "manifest.json").read_text())["leaves"]["a"]["shape"] == [16]
