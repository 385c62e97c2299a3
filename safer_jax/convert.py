"""Hugging Face checkpoints of Qwen2.5-VL <-> our parameter tree, both directions from one table (host code).

A converted checkpoint is a folder of

    params/   the stacked parameters, each leaf in chunks that a host can read alone, with a manifest of SHA-256
    assets/   every other file of the source, byte for byte, and stored_dtypes.json: what type each tensor had

Nothing here holds a model: tensors are read and written at their offsets in the safetensors shards, one stacked group
of layers at a time (`from_hf`, `to_hf`). `tree_from_tensors` and `tensors_from_tree` are the in-memory forms of the same
table, for tests and small models.
"""

import contextlib
import functools
import hashlib
import json
import math
import os
import pathlib
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from safer_jax import checkpoint, shards
from safer_jax.model import variants

ASSET_BYTES = 1 << 26  # a tokenizer is some 10 MB; a larger file is no asset, whatever its name
SHARD_BYTES = 5_000_000_000
STORED_DTYPES = "stored_dtypes.json"
WEIGHTS = re.compile(r"\.(safetensors|bin|pt|pth|gguf|h5|msgpack|onnx)(\.index\.json)?$")


class Row(NamedTuple):
    """One line of the table: our path, the hub's name ({z} counts stacked layers), "their axes -> our axes".

    Brackets hold axes which theirs has merged into one. Letters as in `shapes`, lower case for the vision tower.
    """

    path: str
    name: str
    axes: str


def _layers(path: str, name: str, rows: list[tuple[str, str, str]]) -> list[Row]:
    return [Row(f"{path}.{ours}", f"{name}.{{z}}.{theirs}", axes) for ours, theirs, axes in rows]


TABLE = [
    Row("vision.patch_embed", "visual.patch_embed.proj.weight", "w c t p q -> c t p q w"),
    *_layers(
        "vision.layers",
        "visual.blocks",
        [
            ("norm1", "norm1.weight", "w -> w"),
            ("qkv", "attn.qkv.weight", "(3 n h) w -> w 3 n h"),
            ("qkv_bias", "attn.qkv.bias", "(3 n h) -> 3 n h"),
            ("out", "attn.proj.weight", "w (n h) -> n h w"),
            ("out_bias", "attn.proj.bias", "w -> w"),
            ("norm2", "norm2.weight", "w -> w"),
            ("gate", "mlp.gate_proj.weight", "f w -> w f"),
            ("gate_bias", "mlp.gate_proj.bias", "f -> f"),
            ("up", "mlp.up_proj.weight", "f w -> w f"),
            ("up_bias", "mlp.up_proj.bias", "f -> f"),
            ("down", "mlp.down_proj.weight", "w f -> f w"),
            ("down_bias", "mlp.down_proj.bias", "w -> w"),
        ],
    ),
    Row("vision.merger.norm", "visual.merger.ln_q.weight", "w -> w"),
    Row("vision.merger.fc1", "visual.merger.mlp.0.weight", "m k -> k m"),
    Row("vision.merger.fc1_bias", "visual.merger.mlp.0.bias", "m -> m"),
    Row("vision.merger.fc2", "visual.merger.mlp.2.weight", "D m -> m D"),
    Row("vision.merger.fc2_bias", "visual.merger.mlp.2.bias", "D -> D"),
    Row("text.embed", "model.embed_tokens.weight", "V D -> V D"),
    *_layers(
        "text.layers",
        "model.layers",
        [
            ("norm1", "input_layernorm.weight", "D -> D"),
            ("q", "self_attn.q_proj.weight", "(N H) D -> D N H"),
            ("q_bias", "self_attn.q_proj.bias", "(N H) -> N H"),
            ("k", "self_attn.k_proj.weight", "(K H) D -> D K H"),
            ("k_bias", "self_attn.k_proj.bias", "(K H) -> K H"),
            ("v", "self_attn.v_proj.weight", "(K H) D -> D K H"),
            ("v_bias", "self_attn.v_proj.bias", "(K H) -> K H"),
            ("o", "self_attn.o_proj.weight", "D (N H) -> N H D"),
            ("norm2", "post_attention_layernorm.weight", "D -> D"),
            ("gate", "mlp.gate_proj.weight", "F D -> D F"),
            ("up", "mlp.up_proj.weight", "F D -> D F"),
            ("down", "mlp.down_proj.weight", "D F -> F D"),
        ],
    ),
    Row("text.norm", "model.norm.weight", "D -> D"),
    Row("text.head", "lm_head.weight", "V D -> V D"),
]
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


class Group(NamedTuple):
    """A row of the table at the sizes of one model: one leaf of our tree and the tensors it is made of."""

    path: str
    names: tuple[str, ...]  # hub names, in layer order; one where the leaf is not stacked
    their_shape: tuple[int, ...]  # of each tensor
    our_shape: tuple[int, ...]  # of the leaf, layers included
    split: tuple[int, ...]  # their shape with the merged axes taken apart
    order: tuple[int, ...]  # our axes as indices into `split`

    @property
    def is_stacked(self) -> bool:
        return len(self.our_shape) > len(self.order)

    def to_ours(self, tensor: np.ndarray) -> np.ndarray:
        """One tensor [their_shape] as one layer of ours, a view."""
        return tensor.reshape(self.split).transpose(self.order)

    def to_theirs(self, layer: np.ndarray) -> np.ndarray:
        """The inverse of `to_ours`; contiguous."""
        return np.ascontiguousarray(layer.transpose(np.argsort(self.order))).reshape(self.their_shape)

    def stack(self, read: Callable[[str], np.ndarray]) -> np.ndarray:
        """Our leaf from `read(hub name) -> tensor`: the leaf and one tensor are held, never all the layers twice."""
        if not self.is_stacked:
            return np.ascontiguousarray(self.to_ours(read(self.names[0])))
        first = read(self.names[0])
        leaf = np.empty(self.our_shape, first.dtype)
        for z, name in enumerate(self.names):
            tensor = first if z == 0 else read(name)
            if tensor.dtype != leaf.dtype:  # float32 holds the values of all known types exactly
                leaf = leaf.astype(np.float32, copy=False)
            leaf[z] = self.to_ours(tensor)
        return leaf

    def unstack(self, leaf: np.ndarray) -> dict[str, np.ndarray]:
        layers = leaf if self.is_stacked else leaf[None]
        return {name: self.to_theirs(layer) for name, layer in zip(self.names, layers, strict=True)}


def sizes(config: variants.ModelConfig) -> dict[str, int]:
    """The size of every axis letter of the table, and the depth of both stacks."""
    text, vision = config.text, config.vision
    decoder = {"D": text.width, "F": text.ffn, "V": text.vocab, "N": text.heads, "K": text.kv_heads}
    tower = {"w": vision.width, "f": vision.ffn, "n": vision.heads, "h": vision.head_size}
    patch = {"c": 3, "t": 2, "p": vision.patch, "q": vision.patch}
    merged = dict.fromkeys("mk", vision.merge**2 * vision.width)
    depth = {"text": text.depth, "vision": vision.depth}
    return {"3": 3, "H": text.head_size, **decoder, **tower, **patch, **merged, **depth}


def groups(config: variants.ModelConfig) -> list[Group]:
    """The table at the sizes of `config`, without the head where it is tied to the embedding."""
    size = sizes(config)
    return [_group(row, size) for row in TABLE if not (config.tied and row.name == HEAD)]


def _group(row: Row, size: Mapping[str, int]) -> Group:
    theirs, ours = row.axes.split(" -> ")
    merged = [(inner or single).split() for inner, single in re.findall(r"\(([^)]*)\)|(\S+)", theirs)]
    flat = [axis for axes in merged for axis in axes]
    our_shape = tuple(size[axis] for axis in ours.split())
    names = (row.name,)
    if "{z}" in row.name:
        depth = size[row.path.split(".")[0]]
        names, our_shape = tuple(row.name.format(z=z) for z in range(depth)), (depth, *our_shape)
    return Group(
        path=row.path,
        names=names,
        their_shape=tuple(math.prod(size[axis] for axis in axes) for axes in merged),
        our_shape=our_shape,
        split=tuple(size[axis] for axis in flat),
        order=tuple(flat.index(axis) for axis in ours.split()),
    )


def hub_name(name: str) -> str:
    """A `state_dict` name (model.visual.*, model.language_model.*) as the hub's (visual.*, model.*)."""
    if name.startswith("model.visual."):
        return name.removeprefix("model.")
    return re.sub(r"^model\.language_model\.", "model.", name)


def check_tensors(found: Mapping[str, shards.Described], config: variants.ModelConfig, where: str) -> None:
    """Raises ConvertError listing every missing, unexpected, wrongly shaped or typed tensor.

    `found` is hub name -> (shape, type as in a safetensors header). A head in a tied checkpoint is let through here;
    its values are compared with the embedding when they are read.
    """
    wanted = {name: group.their_shape for group in groups(config) for name in group.names}
    wanted_or_tied = {**wanted, HEAD: wanted[EMBED]}
    problems = [f"missing: {name} {list(shape)}" for name, shape in wanted.items() if name not in found]
    for name, (shape, dtype) in found.items():
        if name not in wanted_or_tied:
            problems.append(f"unexpected: {name} {list(shape)}")
            continue
        if tuple(shape) != wanted_or_tied[name]:
            problems.append(f"shape: {name} is {list(shape)}, the config says {list(wanted_or_tied[name])}")
        if dtype not in shards.DTYPES:
            problems.append(f"type: {name} is {dtype}, known are {', '.join(shards.DTYPES)}")
    if problems:
        raise shards.ConvertError(
            f"the tensors of {where} do not fit its config.json",
            problems,
            "Fix: use the config.json that belongs to these weights; quantised or adapted checkpoints must be merged first.",
        )


def tree_from_tensors(tensors: Mapping[str, np.ndarray], config: variants.ModelConfig) -> dict[str, Any]:
    """Our parameters, nested dicts of numpy arrays, from tensors under hub or `state_dict` names.

    Raises ConvertError listing all that is missing, unexpected, of a wrong shape or type.
    """
    named = shards.renamed(tensors, hub_name, "the given tensors")
    found = {name: (tensor.shape, _dtype_name(tensor.dtype)) for name, tensor in named.items()}
    check_tensors(found, config, "the given tensors")
    _check_tied(named, named.__getitem__, config)
    tree: dict[str, Any] = {}
    for group in groups(config):
        *parents, leaf = group.path.split(".")
        node = functools.reduce(lambda node, key: node.setdefault(key, {}), parents, tree)
        node[leaf] = group.stack(named.__getitem__)
    return tree


def tensors_from_tree(tree: Mapping[str, Any], config: variants.ModelConfig) -> dict[str, np.ndarray]:
    """The inverse of `tree_from_tensors`: hub name -> array, without the head where it is tied.

    Raises ConvertError listing every missing, unexpected or wrongly shaped leaf of `tree` (nested mappings).
    """
    leaves = _flatten(tree)
    check_leaves({path: tuple(leaf.shape) for path, leaf in leaves.items()}, config, "the given tree")
    return {
        name: tensor
        for group in groups(config)
        for name, tensor in group.unstack(np.asarray(leaves[group.path])).items()
    }


def check_leaves(found: Mapping[str, tuple[int, ...]], config: variants.ModelConfig, where: str) -> None:
    """Raises ConvertError listing every missing, unexpected or wrongly shaped leaf; `found` is path -> shape."""
    wanted = {group.path: group.our_shape for group in groups(config)}
    problems = [f"missing: {path} {list(shape)}" for path, shape in wanted.items() if path not in found]
    problems += [f"unexpected: {path} {list(shape)}" for path, shape in found.items() if path not in wanted]
    problems += [
        f"shape: {path} is {list(found[path])}, the config says {list(wanted[path])}"
        for path in wanted
        if path in found and tuple(found[path]) != wanted[path]
    ]
    if problems:
        fix = "Fix: use the config.json that belongs to these weights."
        raise shards.ConvertError(f"the parameters of {where} do not fit its config.json", problems, fix)


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, node in tree.items():
        path = f"{prefix}{key}"
        leaves.update(_flatten(node, f"{path}.") if isinstance(node, Mapping) else {path: node})
    return leaves


def _dtype_name(dtype: np.dtype) -> str:
    return next((name for name, known in shards.DTYPES.items() if known == dtype), str(dtype))


def _check_tied(found: Mapping[str, Any], read: Callable[[str], np.ndarray], config: variants.ModelConfig) -> None:
    if not config.tied or HEAD not in found:
        return
    if not np.array_equal(read(HEAD).view(np.uint8), read(EMBED).view(np.uint8)):
        raise shards.ConvertError(
            "the config ties the head to the embedding, the weights do not",
            [f"{HEAD} differs from {EMBED}"],
            'Fix: set "tie_word_embeddings": false in config.json, or drop the head.',
        )


def load_params(folder: str | os.PathLike, abstract_params: Any) -> Any:
    """The weights of a converted checkpoint or a run, on the shardings and in the dtypes of `abstract_params`.

    Args:
      folder: what `from_hf` wrote, or a training run, whose newest checkpoint it is.
      abstract_params: pytree of jax.ShapeDtypeStruct (with shardings; default device where they have none), such as the
        abstract parameters of an nnx module.

    Raises:
      ConvertError: `folder` is something else.
      CheckpointError: damaged, or leaves missing, unexpected or of another shape; all are listed.
    """
    folder = pathlib.Path(folder)
    if (folder / "checkpoints").is_dir():
        return checkpoint.load_run(folder, abstract_params)
    if not (folder / "params").is_dir():
        raise shards.ConvertError(f"{folder} holds no converted weights", ["it has no params/"], _convert_first(folder))
    return checkpoint.load_leaves(folder / "params", abstract_params)


def read_config(folder: str | os.PathLike) -> variants.ModelConfig:
    """The shapes in `folder`/config.json. Raises ConvertError naming the file when it is missing or no such config."""
    path = pathlib.Path(folder) / "config.json"
    try:
        return variants.from_hf(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        fix = "Fix: SRC must be a complete Hugging Face folder (config.json, *.safetensors, tokenizer files)."
        raise shards.ConvertError(f"{path.parent} has no config.json", [str(error)], fix) from error
    except ValueError as error:
        fix = "Fix: copy config.json again from where the weights came."
        raise shards.ConvertError(f"{path} is not the config of a Qwen2.5-VL", [str(error)], fix) from error


def from_hf(source: str | os.PathLike, target: str | os.PathLike) -> None:
    """Converts a Hugging Face folder into ours, one stacked group at a time.

    Args:
      source: config.json, *.safetensors (sharded with an index, or model.safetensors) and whatever else is to be
        carried over. Hub and `state_dict` names are read.
      target: a folder that is empty or does not exist. It appears when it is complete, never before.

    Raises:
      ConvertError: listing all that is wrong with the source or the target.
    """
    source, target = pathlib.Path(source), pathlib.Path(target)
    config = read_config(source)
    tensors = shards.Shards(source, hub_name)
    check_tensors(tensors.described, config, str(source))
    _check_tied(tensors, tensors.__getitem__, config)
    parts = groups(config)
    described = {name: tensors.described[name] for group in parts for name in group.names}
    with _building(target, shards.total(described)) as partial:
        _copy_assets(source, partial / "assets", skip=())
        (partial / "assets" / STORED_DTYPES).write_text(_pack_dtypes(described), encoding="utf-8")
        hashes = {path.name: _sha256(path) for path in sorted((partial / "assets").iterdir())}
        leaves = _stacked(parts, tensors, Progress(shards.total(described)))
        checkpoint.write_leaves(partial / "params", leaves, {"assets": hashes})


def to_hf(
    source: str | os.PathLike, target: str | os.PathLike, step: int | None = None, shard_bytes: int = SHARD_BYTES
) -> None:
    """Writes a Hugging Face folder from a converted checkpoint or a training run: hub names, the source's dtypes.

    Args:
      source: what `from_hf` wrote, or a run's folder; of a run the parameters alone are written, cast to the dtypes of
        the checkpoint that it started from.
      target: a folder that is empty or does not exist. It appears when it is complete, never before.
      step: which checkpoint of a run; None = the newest.
      shard_bytes: a shard takes tensors up to this size, at least one.

    Raises:
      ConvertError, CheckpointError: listing all that is wrong.
    """
    source, target = pathlib.Path(source), pathlib.Path(target)
    leaves = _open(source, step)
    config = read_config(source / "assets")
    check_leaves({path: tuple(leaf["shape"]) for path, leaf in leaves.described.items()}, config, str(source))
    parts = groups(config)
    dtypes = _read_dtypes(source / "assets", [name for group in parts for name in group.names])
    shapes = {name: (group.their_shape, dtypes[name]) for group in parts for name in group.names}
    with _building(target, shards.total(shapes)) as partial:
        _copy_assets(source / "assets", partial, skip=(STORED_DTYPES,))
        shards.write(partial, shapes, _unstacked(parts, leaves, dtypes, Progress(shards.total(shapes))), shard_bytes)


def random(variant: str, target: str | os.PathLike, seed: int = 0, shard_bytes: int = SHARD_BYTES) -> None:
    """A Hugging Face folder of random bfloat16 weights at the shapes of a variant: for dry runs and measurements."""
    if variant not in variants.VARIANTS:
        raise shards.ConvertError("unknown variant", [repr(variant)], f"Fix: one of {', '.join(variants.VARIANTS)}.")
    config = variants.VARIANTS[variant]
    is_tiny = config.text.vocab < 1000
    end_id, pad_id = (2, 0) if is_tiny else (151_645, 151_643)
    parts = groups(config)
    shapes = {name: (group.their_shape, "BF16") for group in parts for name in group.names}
    with _building(pathlib.Path(target), shards.total(shapes)) as partial:
        content = variants.to_hf(config, end_id=end_id, pad_id=pad_id, dtype="bfloat16")
        (partial / "config.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        draw = _drawn(parts, config.init_std, np.random.default_rng(seed), Progress(shards.total(shapes)))
        shards.write(partial, shapes, draw, shard_bytes)


class Progress:
    """One line per finished leaf: its name, bytes of all, and the time that the rest will take."""

    def __init__(self, total: int):
        self.total, self._done, self._start = total, 0, time.monotonic()

    def add(self, label: str, count: int) -> None:
        self._done += count
        spent = time.monotonic() - self._start
        left = spent * (self.total - self._done) / max(self._done, 1)
        share = self._done / max(self.total, 1)
        line = f"{label:<40} {self._done / 1e9:7.2f} of {self.total / 1e9:.2f} GB {share:5.0%}  {left:.0f} s left"
        print(line, file=sys.stderr, flush=True)


def _stacked(parts: list[Group], tensors: shards.Shards, progress: Progress) -> Iterator[tuple[str, np.ndarray]]:
    for group in parts:
        yield group.path, group.stack(tensors.__getitem__)
        progress.add(group.path, shards.total({name: tensors.described[name] for name in group.names}))


def _unstacked(
    parts: list[Group], leaves: Mapping[str, np.ndarray], dtypes: Mapping[str, str], progress: Progress
) -> Iterator[tuple[str, np.ndarray]]:
    for group in parts:
        leaf = leaves[group.path]
        for z, name in enumerate(group.names):
            layer = leaf[z] if group.is_stacked else leaf
            yield name, _cast(name, group.to_theirs(layer), shards.DTYPES[dtypes[name]])
        del leaf, layer  # before the next one is read
        progress.add(group.path, shards.total({name: (group.their_shape, dtypes[name]) for name in group.names}))


def _drawn(
    parts: list[Group], scale: float, generator: np.random.Generator, progress: Progress
) -> Iterator[tuple[str, np.ndarray]]:
    for group in parts:
        mean = 1 if "norm" in group.path else 0
        for name in group.names:
            tensor = np.empty(group.their_shape, shards.DTYPES["BF16"])
            flat = tensor.reshape(-1)
            for start in range(0, flat.size, 1 << 22):
                block = flat[start : start + (1 << 22)]
                block[:] = generator.standard_normal(block.size, np.float32) * scale + mean
            yield name, tensor
        progress.add(group.path, shards.total({name: (group.their_shape, "BF16") for name in group.names}))


def _cast(name: str, tensor: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if tensor.dtype == dtype:
        return tensor
    with np.errstate(over="ignore"):
        cast = tensor.astype(dtype)
    if np.isinf(cast).any() and not np.isinf(tensor).any():
        fix = f"Fix: set the type of this tensor to F32 in assets/{STORED_DTYPES}."
        raise shards.ConvertError(f"{name} does not fit {dtype}", [f"largest value {np.abs(tensor).max():.4g}"], fix)
    return cast


@contextlib.contextmanager
def _building(target: pathlib.Path, count: int) -> Iterator[pathlib.Path]:
    """A folder beside `target` that takes its name when all is written, and goes when anything fails."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        fix = "Fix: give a new folder, or delete this one."
        raise shards.ConvertError(f"{target} is in the way", ["it exists and is not an empty folder"], fix)
    target.absolute().parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(target.absolute().parent).free
    if free < count:
        problem = f"{count / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free"
        raise shards.ConvertError(
            f"no room for {target}", [problem], "Fix: free some or give a folder on another disk."
        )
    partial = target.absolute().with_name(f".{target.absolute().name}.partial")
    if partial.exists():
        print(f"{partial}: left by a conversion that was killed, starting again", file=sys.stderr, flush=True)
        shutil.rmtree(partial)
    partial.mkdir()
    try:
        yield partial
        os.replace(partial, target)
    finally:
        if partial.exists():
            shutil.rmtree(partial)


def _open(source: pathlib.Path, step: int | None) -> checkpoint.Leaves:
    """The verified parameters of a converted checkpoint or of a run."""
    if (source / "checkpoints").is_dir():
        return checkpoint.restore_params(source, step)
    if not (source / "params").is_dir():
        raise shards.ConvertError(
            f"{source} is neither a converted checkpoint nor a run",
            ["it has neither params/ nor checkpoints/"],
            "Fix: give the folder that from-hf wrote, or the --workdir of a training run.",
        )
    if step is not None:
        fix = "Fix: leave --step out, or give the folder of a run."
        raise shards.ConvertError(f"{source} is a converted checkpoint", [f"it has no step {step}"], fix)
    leaves = checkpoint.read_leaves(source / "params")
    problems = [
        f"{name}: {'its bytes are not those that were written (SHA-256)' if path.is_file() else 'is missing'}"
        for name, digest in leaves.extra["assets"].items()
        if not (path := source / "assets" / name).is_file() or _sha256(path) != digest
    ]
    if problems:
        raise shards.ConvertError(f"the files of {source / 'assets'} have changed", problems, "Fix: convert again.")
    return leaves


def _convert_first(folder: pathlib.Path) -> str:
    if any(folder.glob("*.safetensors")):
        return f"Fix: it is a Hugging Face folder; run `python tools/convert.py from-hf {folder} NEW_FOLDER`."
    return "Fix: give the folder that `python tools/convert.py from-hf SRC DST` wrote."


def _copy_assets(source: pathlib.Path, target: pathlib.Path, skip: tuple[str, ...]) -> None:
    """Every file of `source` that holds no weights, byte for byte (links, as in the hub's cache, are followed)."""
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir()):
        if not path.is_file() or path.name.startswith(".") or path.name in skip or WEIGHTS.search(path.name):
            continue
        if path.stat().st_size > ASSET_BYTES:
            print(f"not carried over: {path} has {path.stat().st_size:,} bytes", file=sys.stderr, flush=True)
            continue
        shutil.copyfile(path, target / path.name)


def _pack_dtypes(described: Mapping[str, shards.Described]) -> str:
    most = Counter(dtype for _, dtype in described.values()).most_common(1)[0][0]
    content = {"most": most, "others": {name: dtype for name, (_, dtype) in described.items() if dtype != most}}
    return json.dumps(content, indent=2) + "\n"


def _read_dtypes(assets: pathlib.Path, names: list[str]) -> dict[str, str]:
    """Storage type of every tensor: as the source had it, else as config.json says (a run from random weights)."""
    try:
        content = json.loads((assets / STORED_DTYPES).read_text(encoding="utf-8"))
        most, others = content["most"], content["others"]
    except FileNotFoundError:
        config = json.loads((assets / "config.json").read_text(encoding="utf-8"))
        said = config.get("dtype") or config.get("torch_dtype") or "float32"
        most, others = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}.get(said, said), {}
    except (ValueError, KeyError) as error:
        fix = "Fix: convert again."
        raise shards.ConvertError(f"{assets / STORED_DTYPES} cannot be read", [repr(error)], fix) from error
    dtypes = {name: others.get(name, most) for name in names}
    problems = [f"{name}: {dtype}" for name, dtype in dtypes.items() if dtype not in shards.DTYPES]
    if problems:
        raise shards.ConvertError(
            f"{assets} asks for unknown types", problems, f"Fix: known are {', '.join(shards.DTYPES)}."
        )
    return dtypes


def _sha256(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
