"""Conversion is held to transformers and the safetensors library: same tensors bit for bit, same logits, both ways."""

import functools
import importlib.util
import json
import pathlib
import shutil
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch
from jax.sharding import NamedSharding, PartitionSpec
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from safer_jax import checkpoint, convert, shards
from safer_jax.model import variants

IMAGE, START, END = 6, 3, 4
CONFIG = variants.ModelConfig(
    variants.VisionConfig(depth=2, width=32, ffn=40, heads=2, window=56, full_blocks=(1,)),
    variants.TextConfig(vocab=100, width=48, ffn=56, depth=3, heads=6, kv_heads=2, mrope_section=(1, 1, 2)),
    tied=True,
    image_id=IMAGE,
    video_id=7,
    vision_start_id=START,
    vision_end_id=END,
)
UNTIED = variants.ModelConfig(**{**CONFIG.__dict__, "tied": False})
ASSETS = {
    "tokenizer.json": b'{"any": "bytes \xc3\xa9"}',
    "chat_template.jinja": b"{{ messages }}\r\n",
    "preprocessor_config.json": b"{}",
    "README.md": b"# model\n",
}


def model(config: variants.ModelConfig, dtype: torch.dtype) -> Qwen2_5_VLForConditionalGeneration:
    torch.manual_seed(0)
    made = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**variants.to_hf(config, end_id=2, pad_id=0)))
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(torch.randn_like(weight) * 0.05)
    return made.to(dtype).eval()


def save(made: Qwen2_5_VLForConditionalGeneration, folder: pathlib.Path, size: str = "40KB") -> pathlib.Path:
    made.save_pretrained(folder, max_shard_size=size)
    for name, content in ASSETS.items():
        (folder / name).write_bytes(content)
    return folder


def read(folder: pathlib.Path) -> dict[str, torch.Tensor]:
    """All tensors by the safetensors library."""
    return {
        name: tensor
        for path in folder.glob("*.safetensors")
        for name, tensor in safetensors.torch.load_file(path).items()
    }


def write(folder: pathlib.Path, tensors: dict[str, torch.Tensor], config: dict | None = None) -> pathlib.Path:
    """A folder with one file, by the safetensors library."""
    folder.mkdir(parents=True)
    tensors = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    content = config or variants.to_hf(CONFIG, end_id=2, pad_id=0)
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def assert_same(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> None:
    assert got.keys() == want.keys()
    for name, tensor in want.items():
        assert got[name].dtype == tensor.dtype and got[name].shape == tensor.shape, name
        assert torch.equal(got[name].view(torch.uint8), tensor.view(torch.uint8)), name


@torch.no_grad()
def logits(made: Qwen2_5_VLForConditionalGeneration) -> torch.Tensor:
    ids = torch.tensor([[10, START, *[IMAGE] * 6, END, 11, 12, 13]])
    pixels = torch.sin(torch.arange(24 * 1176, dtype=torch.float32)).reshape(24, 1176).to(made.dtype)
    grid = torch.tensor([[1, 4, 6]])
    kinds = (ids == IMAGE).int()
    return made(input_ids=ids, pixel_values=pixels, image_grid_thw=grid, mm_token_type_ids=kinds).logits


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tied bfloat16 model in many shards; and what from_hf makes of it. Not to be changed."""
    root = tmp_path_factory.mktemp("tied")
    save(model(CONFIG, torch.bfloat16), root / "hf")
    convert.from_hf(root / "hf", root / "ours")
    return root


@pytest.fixture
def copied(folder, tmp_path):
    shutil.copytree(folder / "hf", tmp_path / "hf")
    return tmp_path / "hf"


@pytest.mark.parametrize("config, dtype", [(CONFIG, torch.bfloat16), (UNTIED, torch.float32)], ids=["tied", "untied"])
def test_there_and_back_is_the_same_for_transformers(tmp_path, config, dtype):
    source = save(model(config, dtype), tmp_path / "hf")
    convert.from_hf(source, tmp_path / "ours")
    convert.to_hf(tmp_path / "ours", tmp_path / "back", shard_bytes=40_000)
    want = read(source)
    assert_same(read(tmp_path / "back"), want)
    assert ("lm_head.weight" in want) == (not config.tied)
    for path in source.iterdir():
        if "safetensors" not in path.name:
            assert (tmp_path / "back" / path.name).read_bytes() == path.read_bytes(), path.name
    carried = {path.name for path in (tmp_path / "back").iterdir() if "safetensors" not in path.name}
    assert carried == {*ASSETS, "config.json", "generation_config.json"}
    load = functools.partial(Qwen2_5_VLForConditionalGeneration.from_pretrained, output_loading_info=True, dtype=dtype)
    (before, _), (after, info) = load(source), load(tmp_path / "back")
    assert not any(info.values()), info
    torch.testing.assert_close(logits(after.eval()), logits(before.eval()), rtol=0, atol=0)


def test_shards_are_named_and_indexed_as_transformers_does(folder, tmp_path):
    convert.to_hf(folder / "ours", tmp_path / "back", shard_bytes=40_000)
    index = json.loads((tmp_path / "back" / "model.safetensors.index.json").read_text())
    theirs = json.loads((folder / "hf" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == theirs["weight_map"].keys()
    assert index["metadata"]["total_size"] == theirs["metadata"]["total_size"]
    files = sorted(path.name for path in (tmp_path / "back").glob("*.safetensors"))
    assert files == [f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))]
    for file in files:
        with safetensors.safe_open(tmp_path / "back" / file, "pt") as shard:
            assert shard.metadata() == {"format": "pt"}
            names = list(shard.keys())
            assert all(index["weight_map"][name] == file for name in names)
            size = sum(shard.get_tensor(name).nbytes for name in names)
            assert size <= 40_000 or len(names) == 1
    convert.to_hf(folder / "ours", tmp_path / "one")
    assert [path.name for path in (tmp_path / "one").glob("*.safetensors*")] == ["model.safetensors"]


def test_state_dict_names_and_nested_config_give_the_same_leaves(folder, tmp_path):
    made = model(CONFIG, torch.bfloat16)
    nested = made.config.to_dict()
    assert "hidden_size" not in nested and "text_config" in nested
    names = {name: tensor for name, tensor in made.state_dict().items() if name != "lm_head.weight"}
    assert all(name.startswith(("model.visual.", "model.language_model.")) for name in names)
    convert.from_hf(write(tmp_path / "hf", names, nested), tmp_path / "ours")
    got, want = checkpoint.read_leaves(tmp_path / "ours/params"), checkpoint.read_leaves(folder / "ours/params")
    assert list(got) == list(want)
    for name in want:
        np.testing.assert_array_equal(got[name].view(np.uint16), want[name].view(np.uint16), err_msg=name)


def test_every_layer_keeps_its_own_type(folder, tmp_path):
    mixed = dict(read(folder / "hf"))
    mixed["model.layers.0.mlp.up_proj.weight"] = mixed["model.layers.0.mlp.up_proj.weight"].to(torch.float16)
    mixed["model.layers.1.mlp.up_proj.weight"] = torch.randn(56, 48)  # float32
    mixed["model.layers.0.mlp.gate_proj.weight"] = torch.randn(56, 48).to(torch.float16)  # beside bfloat16
    mixed["visual.merger.mlp.0.bias"] = mixed["visual.merger.mlp.0.bias"].to(torch.float32) / 3
    source = write(tmp_path / "hf", mixed)
    convert.from_hf(source, tmp_path / "ours")
    leaves = checkpoint.read_leaves(tmp_path / "ours/params")
    assert leaves.described["text.layers.up"]["dtype"] == "float32"
    convert.to_hf(tmp_path / "ours", tmp_path / "back", shard_bytes=30_000)
    assert_same(read(tmp_path / "back"), mixed)


def test_leaves_are_input_first_with_heads_apart(folder):
    """Against plain slices of the tensors, head by head."""
    tensors = {name: tensor.float().numpy() for name, tensor in read(folder / "hf").items()}
    text = convert.tree_from_tensors(tensors, CONFIG)["text"]["layers"]
    vision = convert.tree_from_tensors(tensors, CONFIG)["vision"]
    k = tensors["model.layers.2.self_attn.k_proj.weight"]
    np.testing.assert_array_equal(text["k"][2, :, 1], k[8:16].T)
    np.testing.assert_array_equal(text["o"][1, 4], tensors["model.layers.1.self_attn.o_proj.weight"][:, 32:40].T)
    qkv = tensors["visual.blocks.1.attn.qkv.weight"]
    np.testing.assert_array_equal(vision["layers"]["qkv"][1, :, 2, 1], qkv[64 + 16 : 64 + 32].T)
    np.testing.assert_array_equal(vision["patch_embed"][..., 5], tensors["visual.patch_embed.proj.weight"][5])
    back = convert.tensors_from_tree(convert.tree_from_tensors(tensors, CONFIG), CONFIG)
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name], tensor)


def test_a_tied_head_must_be_the_embedding(folder, tmp_path):
    tensors = read(folder / "hf")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    convert.from_hf(write(tmp_path / "equal", tensors), tmp_path / "ours")
    convert.to_hf(tmp_path / "ours", tmp_path / "back")
    assert "lm_head.weight" not in read(tmp_path / "back")
    tensors["lm_head.weight"][99, 47] += 1
    with pytest.raises(shards.ConvertError, match="lm_head.weight differs"):
        convert.from_hf(write(tmp_path / "unequal", tensors), tmp_path / "other")


def test_all_that_is_wrong_with_the_tensors_is_listed(folder, tmp_path):
    tensors = read(folder / "hf")
    del tensors["model.layers.1.self_attn.v_proj.bias"], tensors["visual.blocks.0.norm2.weight"]
    tensors["model.layers.3.input_layernorm.weight"] = torch.ones(48)
    tensors["visual.blocks.1.mlp.down_proj.weight"] = torch.ones(40, 32)
    tensors["model.norm.weight"] = torch.ones(48, dtype=torch.float64)
    with pytest.raises(shards.ConvertError) as caught:
        convert.from_hf(write(tmp_path / "hf", tensors), tmp_path / "ours")
    assert sorted(caught.value.problems) == [
        "missing: model.layers.1.self_attn.v_proj.bias [16]",
        "missing: visual.blocks.0.norm2.weight [32]",
        "shape: visual.blocks.1.mlp.down_proj.weight is [40, 32], the config says [32, 40]",
        "type: model.norm.weight is F64, known are F32, F16, BF16",
        "unexpected: model.layers.3.input_layernorm.weight [48]",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf"]


def cut(path: pathlib.Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])


def change_index(source: pathlib.Path, **changes: str) -> None:
    path = source / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"].update(changes)
    path.write_text(json.dumps(index))


FIRST, SECOND = "model-00001-of-00007.safetensors", "model-00002-of-00007.safetensors"
BREAKS = {
    "truncated": (lambda s: cut(s / SECOND, -100), rf"{SECOND}: truncated or padded: its header describes"),
    "cut in the header": (lambda s: cut(s / SECOND, 100), rf"{SECOND}: truncated or no safetensors"),
    "empty": (lambda s: cut(s / SECOND, 0), rf"{SECOND}: truncated or no safetensors"),
    "garbage": (
        lambda s: (s / SECOND).write_bytes(b"\x10" + bytes(7) + b"{" * 16),
        rf"{SECOND}: corrupt header",
    ),
    "gone": (lambda s: (s / SECOND).unlink(), rf"{SECOND}: named by model.safetensors.index.json, is missing"),
    "index to nowhere": (
        lambda s: change_index(s, **{"model.norm.weight": "model-00009-of-00009.safetensors"}),
        "model-00009-of-00009.safetensors: named by model.safetensors.index.json, is missing",
    ),
    "index to outside": (
        lambda s: change_index(s, **{"model.norm.weight": "../x.safetensors"}),
        r"\.\./x.safetensors: named by .* is no plain file name",
    ),
    "index to the wrong shard": (
        lambda s: change_index(s, **{"visual.merger.ln_q.weight": FIRST}),
        f"visual.merger.ln_q.weight: model.safetensors.index.json says {FIRST}, which does not hold it",
    ),
    "broken index": (lambda s: cut(s / "model.safetensors.index.json", 50), "index.json: cannot be read"),
    "leftover": (
        lambda s: shutil.copy(s / SECOND, s / "old.safetensors"),
        "old.safetensors: not named by model.safetensors.index.json",
    ),
    "no weights": (
        lambda s: [path.unlink() for path in s.glob("*.safetensors*")],
        "there is no \\*.safetensors",
    ),
    "no config": (lambda s: (s / "config.json").unlink(), "has no config.json"),
    "another model": (
        lambda s: (s / "config.json").write_text('{"model_type": "llama"}'),
        "config.json is not the config of a Qwen2.5-VL.*\n.*'llama'",
    ),
    "broken config": (lambda s: cut(s / "config.json", 30), "config.json is not the config"),
}


@pytest.mark.parametrize("case", BREAKS)
def test_a_broken_source_is_named_and_nothing_is_left(copied, case):
    change, message = BREAKS[case]
    change(copied)
    with pytest.raises(shards.ConvertError, match=message):
        convert.from_hf(copied, copied.parent / "ours")
    assert [path.name for path in copied.parent.iterdir()] == ["hf"]


def test_the_target_must_be_free_and_a_stopped_conversion_leaves_nothing(folder, tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("keep")
    for convert_to_full in (
        lambda: convert.from_hf(folder / "hf", tmp_path / "full"),
        lambda: convert.to_hf(folder / "ours", tmp_path / "full"),
    ):
        with pytest.raises(shards.ConvertError, match="full is in the way"):
            convert_to_full()
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine"]
    (tmp_path / "empty").mkdir()
    (tmp_path / ".empty.partial").mkdir()  # as a killed conversion leaves it
    (tmp_path / ".empty.partial" / "old").write_text("")
    convert.to_hf(folder / "ours", tmp_path / "empty")
    assert not (tmp_path / "empty" / "old").exists()

    def stop(progress, label, count):
        if label == "text.layers.up":
            raise KeyboardInterrupt

    monkeypatch.setattr(convert.Progress, "add", stop)
    with pytest.raises(KeyboardInterrupt):
        convert.from_hf(folder / "hf", tmp_path / "new")
    with pytest.raises(KeyboardInterrupt):
        convert.to_hf(folder / "ours", tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "full"]


def abstract(gate: tuple = ()):
    """Wanted parameters, the gates cut as told, all else on every device."""
    mesh = jax.make_mesh((8,), ("fsdp",))
    shapes: dict = {}
    for group in convert.groups(CONFIG):
        node = shapes
        for key in group.path.split(".")[:-1]:
            node = node.setdefault(key, {})
        spec = PartitionSpec(*(gate if group.path == "text.layers.gate" else ()))
        leaf = jax.ShapeDtypeStruct(group.our_shape, jnp.float32, sharding=NamedSharding(mesh, spec))
        node[group.path.split(".")[-1]] = leaf
    return shapes


def test_params_load_onto_shardings_in_the_wanted_type(folder):
    wanted = abstract((None, None, "fsdp"))
    params = convert.load_params(folder / "ours", wanted)
    assert jax.tree.map(lambda leaf: leaf.sharding, params) == jax.tree.map(lambda leaf: leaf.sharding, wanted)
    tensors = {name: tensor.float().numpy() for name, tensor in read(folder / "hf").items()}
    want = convert.tree_from_tensors(tensors, CONFIG)
    jax.tree.map(np.testing.assert_array_equal, params, want)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))


def test_params_of_another_model_or_damaged_are_refused(folder, tmp_path):
    wanted = abstract()
    del wanted["text"]["norm"]
    wanted["text"]["head"] = jax.ShapeDtypeStruct((100, 48), jnp.float32)
    wanted["vision"]["merger"]["fc2"] = jax.ShapeDtypeStruct((128, 47), jnp.float32)
    with pytest.raises(checkpoint.CheckpointError) as caught:
        convert.load_params(folder / "ours", wanted)
    for name in ("text.norm: only in the checkpoint", "text.head: not in the checkpoint", r"fc2: checkpoint has"):
        assert name in str(caught.value)
    with pytest.raises(shards.ConvertError, match="from-hf"):
        convert.load_params(folder / "hf", abstract())
    shutil.copytree(folder / "ours", tmp_path / "ours")
    data = max((tmp_path / "ours/params/state").rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    with pytest.raises(checkpoint.CheckpointError, match="SHA-256"):
        convert.load_params(tmp_path / "ours", abstract())
    with pytest.raises(checkpoint.CheckpointError, match="SHA-256"):
        convert.to_hf(tmp_path / "ours", tmp_path / "back")
    shutil.rmtree(tmp_path / "ours")
    shutil.copytree(folder / "ours", tmp_path / "ours")
    (tmp_path / "ours/assets/tokenizer.json").write_text("{}")
    with pytest.raises(shards.ConvertError, match=r"tokenizer.json: its bytes are not"):
        convert.to_hf(tmp_path / "ours", tmp_path / "back")


def test_a_run_is_exported_in_the_types_of_its_source(folder, tmp_path):
    tensors = {name: tensor.float().numpy() for name, tensor in read(folder / "hf").items()}
    params = convert.tree_from_tensors(tensors, CONFIG)
    moved = jax.tree.map(lambda leaf: leaf + np.float32(0.3), params)
    for step, state in ((2, params), (5, moved)):
        opt_state = {"mu": params, "count": np.int32(step)}
        checkpoint.save(tmp_path / "run/checkpoints", step, {"params": state, "opt_state": opt_state}, {})
    shutil.copytree(folder / "ours/assets", tmp_path / "run/assets")
    convert.to_hf(tmp_path / "run", tmp_path / "two", step=2)
    assert_same(read(tmp_path / "two"), read(folder / "hf"))
    convert.to_hf(tmp_path / "run", tmp_path / "newest")
    want = {name: (tensor.float() + np.float32(0.3)).bfloat16() for name, tensor in read(folder / "hf").items()}
    assert_same(read(tmp_path / "newest"), want)
    with pytest.raises(checkpoint.CheckpointError, match=r"step 3; it has \[2, 5\]"):
        convert.to_hf(tmp_path / "run", tmp_path / "three", step=3)
    with pytest.raises(shards.ConvertError, match="has no step 3"):
        convert.to_hf(folder / "ours", tmp_path / "three", step=3)
    with pytest.raises(shards.ConvertError, match="neither a converted checkpoint nor a run"):
        convert.to_hf(folder / "hf", tmp_path / "three")
    (tmp_path / "run/assets/stored_dtypes.json").unlink()  # a run from random weights: config.json says the type
    content = json.loads((tmp_path / "run/assets/config.json").read_text())
    (tmp_path / "run/assets/config.json").write_text(json.dumps({**content, "dtype": "float16"}))
    convert.to_hf(tmp_path / "run", tmp_path / "half", step=2)
    assert {tensor.dtype for tensor in read(tmp_path / "half").values()} == {torch.float16}


def test_a_value_too_large_for_the_stored_type_is_refused(folder, tmp_path):
    tensors = {name: tensor.float().numpy() for name, tensor in read(folder / "hf").items()}
    tensors["visual.merger.mlp.2.bias"][3] = 1e6
    checkpoint.save(tmp_path / "run/checkpoints", 1, {"params": convert.tree_from_tensors(tensors, CONFIG)}, {})
    shutil.copytree(folder / "ours/assets", tmp_path / "run/assets")
    (tmp_path / "run/assets/stored_dtypes.json").write_text('{"most": "F16", "others": {}}')
    with pytest.raises(shards.ConvertError, match="visual.merger.mlp.2.bias does not fit float16"):
        convert.to_hf(tmp_path / "run", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_memory_is_a_group_and_not_the_model(tmp_path):
    """Of what numpy allocates (Orbax copies the leaf that it writes); tools/README.md has the process at real shapes."""
    text = variants.TextConfig(vocab=512, width=256, ffn=512, depth=8, heads=4, kv_heads=2, mrope_section=(8, 12, 12))
    config = variants.ModelConfig(CONFIG.vision, text, tied=True, image_id=IMAGE)
    generator, hub = np.random.default_rng(0), tmp_path / "hf"
    shapes = {name: (group.their_shape, "F32") for group in convert.groups(config) for name in group.names}
    tensors = ((name, generator.random(shape, np.float32)) for name, (shape, _) in shapes.items())
    shards.write(hub, shapes, tensors, shard_bytes=4_000_000)
    (hub / "config.json").write_text(json.dumps(variants.to_hf(config, end_id=2, pad_id=0)))
    group = 8 * 256 * 512 * 4
    assert shards.total(shapes) > 4.5 * group
    peaks = []
    for run in (
        lambda: convert.from_hf(hub, tmp_path / "ours"),
        lambda: convert.to_hf(tmp_path / "ours", tmp_path / "back", shard_bytes=4_000_000),
    ):
        tracemalloc.start()
        run()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert max(peaks) < 2.4 * group, [peak / group for peak in peaks]
    assert_same(read(tmp_path / "back"), read(hub))


def test_the_command(folder, tmp_path, monkeypatch, capsys):
    path = pathlib.Path(__file__).parents[1] / "tools/convert.py"
    spec = importlib.util.spec_from_file_location("convert_command", path)
    command = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(command)

    def call(*arguments: object) -> int:
        monkeypatch.setattr("sys.argv", ["convert.py", *map(str, arguments)])
        return command.main()

    assert [command.size(text) for text in ("40KB", "3mb", "5GB")] == [40_000, 3_000_000, 5_000_000_000]
    assert call("random", "--variant", "tiny", "--shard-size", "100KB", tmp_path / "hf") == 0
    assert call("from-hf", tmp_path / "hf", tmp_path / "ours") == 0
    assert call("to-hf", tmp_path / "ours", tmp_path / "back", "--shard-size", "1MB") == 0
    assert "text.layers.down" in (said := capsys.readouterr().err) and "s left" in said
    assert_same(read(tmp_path / "back"), read(tmp_path / "hf"))
    assert call("from-hf", tmp_path / "hf", tmp_path / "ours") == 2
    assert "error: " in (said := capsys.readouterr().err) and "is in the way" in said
    with pytest.raises(SystemExit):
        call("to-hf", tmp_path / "ours", tmp_path / "again", "--shard-size", "5")
    assert "write it as 5GB" in capsys.readouterr().err
    after = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / "back", output_loading_info=True)[1]
    assert not any(after.values()), after
