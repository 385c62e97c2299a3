"""Random Qwen2.5-VL policies in transformers (torch, float32) and in ours with the same weights, and prompts for both."""

import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from safer_jax import convert, images, prompts
from safer_jax.model import variants, vlm
from safer_jax.shapes import Prompts

torch.set_num_threads(1)  # more only spin beside XLA's threads at these sizes

IMAGE, VIDEO, START, END, PAD, EOS = 6, 7, 3, 4, 0, 2
FIRST_TEXT = 8
CONFIGS = {
    "tiny": {},
    "one_kv_head": {"heads": 4, "kv_heads": 1, "depth": 2, "full_blocks": (), "patch": 8, "window": 32},
    "no_grouping": {"width": 96, "heads": 2, "kv_heads": 2, "depth": 3, "mrope_section": (8, 8, 8)},
    "seven_to_one": {"width": 224, "heads": 14, "kv_heads": 2, "depth": 1, "mrope_section": (2, 3, 3), "ffn": 320},
    "untied": {
        "tied": False,
        "vocab": 391,
        "depth": 2,
        "rope_theta": 1e4,
        "norm_eps": 1e-5,
        "vision_width": 48,
        "vision_ffn": 100,
    },
    "deep_vision": {"depth": 2, "vision_depth": 5, "full_blocks": (1, 4), "vision_heads": 2, "window": 112},
    "wide_window": {
        "depth": 5,
        "heads": 8,
        "vision_depth": 3,
        "full_blocks": (0,),
        "mrope_section": (2, 3, 3),
        "window": 84,
    },
}


def config_of(name: str) -> variants.ModelConfig:
    """One of the parity shapes, head counts, depths and windows unlike each other."""
    change = dict(CONFIGS[name])
    get = lambda key, default: change.get(key, default)
    text = variants.TextConfig(
        vocab=get("vocab", 320),
        width=get("width", 128),
        ffn=get("ffn", 192),
        depth=get("depth", 4),
        heads=get("heads", 4),
        kv_heads=get("kv_heads", 2),
        mrope_section=get("mrope_section", (4, 6, 6)),
        rope_theta=get("rope_theta", 1e6),
        norm_eps=get("norm_eps", 1e-6),
    )
    vision = variants.VisionConfig(
        depth=get("vision_depth", 2),
        width=get("vision_width", 64),
        ffn=get("vision_ffn", 96),
        heads=get("vision_heads", 4),
        patch=get("patch", 14),
        window=get("window", 56),
        full_blocks=get("full_blocks", (1,)),
    )
    return variants.ModelConfig(vision, text, get("tied", True), IMAGE, VIDEO, START, END, init_std=0.1)


def build(config: variants.ModelConfig, seed: int = 0):
    """(torch model, our graph, our params) with equal random weights, biases and norms random too."""
    torch.manual_seed(seed)
    hf = Qwen2_5_VLForConditionalGeneration._from_config(
        Qwen2_5_VLConfig(**variants.to_hf(config, end_id=EOS, pad_id=PAD)), attn_implementation="eager"
    ).float()
    with torch.no_grad():
        for name, weight in hf.named_parameters():
            scale = 0.3 if weight.ndim == 1 else weight.shape[-1] ** -0.5 if weight.ndim == 2 else 0.05
            weight.copy_(torch.randn_like(weight) * scale + ("norm" in name or "ln_q" in name))
    hf.eval()
    return hf, *ours(hf, config)


def ours(hf, config: variants.ModelConfig):
    """(graph, params) of ours with the weights of a transformers model."""
    graph, params = vlm.abstract(config)
    weights = tree(hf.state_dict(), config)
    leaves = [(path, leaf.replace(jnp.asarray(weights[".".join(path)]))) for path, leaf in nnx.to_flat_state(params)]
    return graph, nnx.from_flat_state(leaves)


def rows(config: variants.ModelConfig, seed: int, grids: list[list[tuple[int, int]]], texts: list[int]):
    """Random rows: ids with placeholders, and uint8 patches of each image in transformers' order."""
    rng = np.random.default_rng(seed)
    out = []
    for row_grids, text in zip(grids, texts, strict=True):
        words = lambda n: rng.integers(FIRST_TEXT, config.text.vocab, n).tolist()
        ids, pixels = words(text // 2), []
        for grid in row_grids:
            ids += [START] + [IMAGE] * (grid[0] * grid[1] // config.vision.merge**2) + [END] + words(3)
            shape = (grid[0] * grid[1], 3 * config.vision.patch**2)
            pixels.append(rng.integers(0, 256, shape, dtype=np.uint8))
        out.append((np.array(ids + words(text - text // 2), np.int32), pixels, row_grids))
    return out


def collate(config: variants.ModelConfig, rows, slots: int) -> Prompts:
    """The rows as the policy reads them, through prompts.collate; draws count from 0."""
    geometry = images.Geometry(config.vision.patch, config.vision.merge, config.vision.window)
    encoded = []
    for number, (ids, pixels, grids) in enumerate(rows):
        image_slot = np.full(len(ids), -1, np.int32)
        image_slot[ids == IMAGE] = prompts.merged_slots(grids, geometry)
        position, following = prompts.positions(ids, grids, config.vision.merge, IMAGE)
        cut = list(zip(pixels, grids, strict=True))
        encoded.append(prompts.Encoded(str(number), ids, cut, image_slot, position, following))
    used = lambda grids: sum(images.window_slots(grid, geometry)[1] for grid in grids)
    patch_slots = max(used(grids) for _, _, grids in rows)
    patch_slots += geometry.window_slots if patch_slots else 0  # one window stays empty
    return prompts.collate(encoded, range(len(rows)), slots, patch_slots, geometry)


def inputs(config: variants.ModelConfig, rows, slots: int) -> dict[str, torch.Tensor]:
    """The same rows as transformers reads them: left-padded ids, all images' patches with both frames."""
    ids, mask = np.full((len(rows), slots), PAD), np.zeros((len(rows), slots), np.int64)
    for number, (row, _, _) in enumerate(rows):
        ids[number, slots - len(row) :], mask[number, slots - len(row) :] = row, 1
    out = {"input_ids": ids, "attention_mask": mask, "mm_token_type_ids": (ids == IMAGE).astype(np.int64)}
    images_of = [(pixel, grid) for _, pixels, grids in rows for pixel, grid in zip(pixels, grids, strict=True)]
    if images_of:
        frames = [images.normalise(pixel).reshape(len(pixel), 3, 1, -1).repeat(2, 2) for pixel, _ in images_of]
        out["pixel_values"] = np.concatenate([frame.reshape(len(frame), -1) for frame in frames])
        out["image_grid_thw"] = np.array([(1, *grid) for _, grid in images_of])
    return {name: torch.from_numpy(value) for name, value in out.items()}


def tree(tensors: dict[str, torch.Tensor], config: variants.ModelConfig) -> dict[str, np.ndarray]:
    """Tensors under transformers' names (weights, or their gradients) as {our path: array}."""
    arrays = {name: tensor.detach().numpy() for name, tensor in tensors.items()}
    if config.tied:
        arrays.pop("lm_head.weight", None)
    return _flat(convert.tree_from_tensors(arrays, config))


def flat(params: nnx.State) -> dict[str, np.ndarray]:
    """Our parameters, or their gradients, as {path: array}."""
    return {".".join(path): np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(params)}


def _flat(tree, prefix: str = ""):
    if not isinstance(tree, dict):
        return {prefix[:-1]: np.asarray(tree)}
    return {path: leaf for name, part in tree.items() for path, leaf in _flat(part, f"{prefix}{name}.").items()}
