"""Hugging Face checkpoints of Qwen2.5-VL <-> our parameter tree, both directions from one table (host code).

Nothing here holds a model: tensors are read by offset from the safetensors shards, one stacked group of layers is
built at a time and written before the next is read. `tree_from_tensors` and `tensors_from_tree` are the in-memory
forms of the same table, for tests and small models.
"""

import functools
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from safer_jax.model import variants

# Storage types by their name in a safetensors header. A stacked group takes the type which holds all its layers.
DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}


class ConvertError(ValueError):
    """A checkpoint which cannot be converted; the message lists every problem found, not only the first."""

    def __init__(self, title: str, problems: list[str], fix: str):
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        super().__init__("\n".join([f"{title}: {count}", *(f"  - {problem}" for problem in problems), fix]))
        self.problems = problems


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
            if tensor.dtype != leaf.dtype:  # a group of mixed types takes the one that holds them all exactly
                leaf = leaf.astype(np.promote_types(leaf.dtype, tensor.dtype), copy=False)
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


def check_tensors(found: Mapping[str, tuple[tuple[int, ...], str]], config: variants.ModelConfig, where: str) -> None:
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
        if dtype not in DTYPES:
            problems.append(f"type: {name} is {dtype}, known are {', '.join(DTYPES)}")
    if problems:
        raise ConvertError(
            f"the tensors of {where} do not fit its config.json",
            problems,
            "Fix: use the config.json that belongs to these weights; quantised or adapted checkpoints must be merged first.",
        )


def tree_from_tensors(tensors: Mapping[str, np.ndarray], config: variants.ModelConfig) -> dict[str, Any]:
    """Our parameters, nested dicts of numpy arrays, from tensors under hub or `state_dict` names.

    Raises ConvertError listing all that is missing, unexpected, of a wrong shape or type.
    """
    named = _by_hub_name(tensors, "the given tensors")
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
    compare_shapes(found, wanted, where)


def compare_shapes(
    found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]], where: str
) -> None:
    """Raises ConvertError listing every path of one side only, and every pair of unlike shapes."""
    problems = [f"missing: {path} {list(wanted[path])}" for path in wanted if path not in found]
    problems += [f"unexpected: {path} {list(found[path])}" for path in found if path not in wanted]
    problems += [
        f"shape: {path} is {list(found[path])}, the model wants {list(wanted[path])}"
        for path in wanted
        if path in found and tuple(found[path]) != tuple(wanted[path])
    ]
    if problems:
        raise ConvertError(
            f"the parameters of {where} are not those of this model", problems, "Fix: set model.variant to theirs."
        )


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, node in tree.items():
        path = f"{prefix}{key}"
        leaves.update(_flatten(node, f"{path}.") if isinstance(node, Mapping) else {path: node})
    return leaves


def _by_hub_name(tensors: Mapping[str, Any], where: str) -> dict[str, Any]:
    named: dict[str, Any] = {}
    twice = [name for name in tensors if hub_name(name) != name and hub_name(name) in tensors]
    if twice:
        problems = [f"{name} and {hub_name(name)}" for name in twice]
        raise ConvertError(f"{where} names tensors twice, in both layouts", problems, "Fix: keep one layout.")
    for name, tensor in tensors.items():
        named[hub_name(name)] = tensor
    return named


def _dtype_name(dtype: np.dtype) -> str:
    return next((name for name, known in DTYPES.items() if known == dtype), str(dtype))


def _check_tied(found: Mapping[str, Any], read: Callable[[str], np.ndarray], config: variants.ModelConfig) -> None:
    if not config.tied or HEAD not in found:
        return
    if not np.array_equal(read(HEAD).view(np.uint8), read(EMBED).view(np.uint8)):
        raise ConvertError(
            "the config ties the head to the embedding, the weights do not",
            [f"{HEAD} differs from {EMBED}"],
            'Fix: set "tie_word_embeddings": false in config.json, or drop the head.',
        )
