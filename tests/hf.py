"""Random Qwen2.5-VL policies in transformers (torch, float32) and in ours with the same weights, and prompts for both."""

import numpy as np
import torch
from flax import nnx
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from safer_jax import convert, images
from safer_jax.model import variants, vlm
from safer_jax.shapes import Prompts

IMAGE, VIDEO, START, END, PAD, EOS = 6, 7, 3, 4, 0, 2
FIRST_TEXT = 8
CONFIGS = {
    "tiny": dict(),
    "one_kv_head": dict(heads=4, kv_heads=1, depth=2),
    "no_grouping": dict(width=96, heads=2, kv_heads=2, depth=3, mrope_section=(8, 8, 8)),
    "seven_to_one": dict(width=224, heads=14, kv_heads=2, depth=1, mrope_section=(2, 3, 3), ffn=320),
    "untied": dict(tied=False, vocab=391, depth=2, rope_theta=1e4, norm_eps=1e-5),
    "deep_vision": dict(depth=2, vision_depth=5, full_blocks=(1, 4), vision_heads=2, window=112),
    "wide_window": dict(depth=2, vision_depth=3, full_blocks=(0,), vision_width=48, vision_ffn=100, window=84),
    "all_windows": dict(depth=2, vision_depth=2, full_blocks=(), patch=8, window=32),
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
    tensors = {name: tensor.detach().numpy() for name, tensor in hf.state_dict().items()}
    if config.tied:
        tensors.pop("lm_head.weight", None)
    tree = convert.tree_from_tensors(tensors, config)
    graph, params = vlm.abstract(config)
    flat = nnx.to_flat_state(params)
    return graph, nnx.from_flat_state([(path, leaf.replace(_at(tree, path))) for path, leaf in flat])


def _at(tree, path):
    for part in path:
        tree = tree[part]
    return np.asarray(tree)


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
