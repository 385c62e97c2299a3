"""The shapes of a Qwen2.5-VL: published variants, and both spellings of a Hugging Face config.json (host code)."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """The vision tower. `window` is in pixels; blocks listed in `full_blocks` attend to the whole image."""

    depth: int
    width: int
    ffn: int
    heads: int
    patch: int = 14
    merge: int = 2
    window: int = 112
    full_blocks: tuple[int, ...] = (7, 15, 23, 31)

    @property
    def head_size(self) -> int:
        return self.width // self.heads

    @property
    def window_slots(self) -> int:
        return (self.window // self.patch) ** 2


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The decoder. `mrope_section` splits the head_size / 2 rotary frequencies over time, height and width."""

    vocab: int
    width: int
    ffn: int
    depth: int
    heads: int
    kv_heads: int
    mrope_section: tuple[int, int, int] = (16, 24, 24)
    rope_theta: float = 1e6
    norm_eps: float = 1e-6

    @property
    def head_size(self) -> int:
        return self.width // self.heads


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A whole policy: vision tower, decoder, head and the ids that the prompt layout needs."""

    vision: VisionConfig
    text: TextConfig
    tied: bool
    image_id: int = 151655
    video_id: int = 151656
    vision_start_id: int = 151652
    vision_end_id: int = 151653
    init_std: float = 0.02

    def __post_init__(self):
        _check(self)


def _check(config: ModelConfig) -> None:
    text, vision = config.text, config.vision
    checks = (
        (text.width % text.heads == 0, f"hidden_size {text.width} is no multiple of {text.heads} attention heads"),
        (text.heads % text.kv_heads == 0, f"{text.heads} attention heads are no multiple of {text.kv_heads} kv heads"),
        (
            2 * sum(text.mrope_section) == text.head_size,
            f"mrope_section {text.mrope_section} must sum to half the head size {text.head_size}",
        ),
        (vision.width % vision.heads == 0, f"vision width {vision.width} is no multiple of {vision.heads} heads"),
        (vision.head_size % 4 == 0, f"vision head size {vision.head_size} is no multiple of 4 (2-D rotary)"),
        (
            vision.window % (vision.patch * vision.merge) == 0,
            f"window_size {vision.window} is no multiple of patch x merge = {vision.patch * vision.merge}",
        ),
        (
            all(0 <= block < vision.depth for block in vision.full_blocks),
            f"fullatt_block_indexes {vision.full_blocks} name a block beyond depth {vision.depth}",
        ),
    )
    problems = [message for holds, message in checks if not holds]
    if problems:
        raise ValueError("this is no Qwen2.5-VL config: " + "; ".join(problems))


def _published(vocab: int, width: int, ffn: int, depth: int, heads: int, kv_heads: int, *, tied=False, vision_ffn=3420):
    vision = VisionConfig(depth=32, width=1280, ffn=vision_ffn, heads=16)
    return ModelConfig(vision, TextConfig(vocab, width, ffn, depth, heads, kv_heads), tied)


# The four published sizes, and a policy small enough for a laptop with the demo set's own tokenizer: one 112 x 112 image
# is 64 patches and 16 tokens.
VARIANTS = {
    "tiny": ModelConfig(
        VisionConfig(depth=2, width=64, ffn=192, heads=4, window=56, full_blocks=(1,)),
        TextConfig(vocab=512, width=128, ffn=384, depth=4, heads=4, kv_heads=2, mrope_section=(4, 6, 6)),
        tied=True,
        image_id=6,
        video_id=7,
        vision_start_id=3,
        vision_end_id=4,
        init_std=0.05,
    ),
    "3b": _published(151_936, 2048, 11_008, 36, 16, 2, tied=True),
    "7b": _published(152_064, 3584, 18_944, 28, 28, 4),
    "32b": _published(152_064, 5120, 27_648, 64, 40, 8, vision_ffn=3456),
    "72b": _published(152_064, 8192, 29_568, 80, 64, 8, vision_ffn=3456),
}


def from_hf(config: Mapping[str, Any]) -> ModelConfig:
    """The shapes in a Hugging Face config.json, old flat keys or the nested ones of transformers 5.

    Raises ValueError naming the key when one is missing or asks for something this port does not do.
    """
    if config.get("model_type") != "qwen2_5_vl":
        raise ValueError(f"model_type is {config.get('model_type')!r}; this port reads 'qwen2_5_vl'")
    text = {**config, **(config.get("text_config") or {})}
    vision = config.get("vision_config") or {}
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    unsupported = (
        (kind in ("default", "mrope"), f"rope type {kind!r}; only mrope without length scaling is ported"),
        (not text.get("use_sliding_window"), "use_sliding_window is true; only full attention is ported"),
        (text.get("hidden_act", "silu") == "silu", f"hidden_act {text.get('hidden_act')!r}; only 'silu' is ported"),
        (vision.get("hidden_act", "silu") == "silu", f"vision hidden_act {vision.get('hidden_act')!r}"),
        (vision.get("temporal_patch_size", 2) == 2, f"temporal_patch_size {vision.get('temporal_patch_size')}"),
        (vision.get("in_channels", vision.get("in_chans", 3)) == 3, "vision in_channels other than 3"),
    )
    problems = [message for holds, message in unsupported if not holds]
    if problems:
        raise ValueError("config.json: " + "; ".join(problems))
    try:
        return ModelConfig(
            vision=VisionConfig(
                depth=vision.get("depth", 32),
                width=vision["hidden_size"],
                ffn=vision["intermediate_size"],
                heads=vision.get("num_heads", 16),
                patch=vision.get("patch_size", vision.get("spatial_patch_size", 14)),
                merge=vision.get("spatial_merge_size", 2),
                window=vision.get("window_size", 112),
                full_blocks=tuple(vision.get("fullatt_block_indexes", (7, 15, 23, 31))),
            ),
            text=TextConfig(
                vocab=text["vocab_size"],
                width=text["hidden_size"],
                ffn=text["intermediate_size"],
                depth=text["num_hidden_layers"],
                heads=text["num_attention_heads"],
                kv_heads=text.get("num_key_value_heads") or text["num_attention_heads"],
                mrope_section=tuple(rope.get("mrope_section", (16, 24, 24))),
                rope_theta=float(rope.get("rope_theta", text.get("rope_theta", 1e6))),
                norm_eps=text.get("rms_norm_eps", 1e-5),
            ),
            tied=bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))),
            image_id=config["image_token_id"],
            video_id=config["video_token_id"],
            vision_start_id=config.get("vision_start_token_id", 151652),
            vision_end_id=config.get("vision_end_token_id", 151653),
            init_std=text.get("initializer_range", 0.02),
        )
    except KeyError as missing:
        raise ValueError(f"config.json has no {missing.args[0]!r}; is it the config of a Qwen2.5-VL?") from missing


def to_hf(config: ModelConfig, *, end_id: int, pad_id: int, dtype: str = "float32") -> dict[str, Any]:
    """A config.json for a policy that was never a Hugging Face checkpoint (hub spelling: flat keys)."""
    text, vision = config.text, config.vision
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "torch_dtype": dtype,
        "tie_word_embeddings": config.tied,
        "bos_token_id": pad_id,
        "eos_token_id": end_id,
        "pad_token_id": pad_id,
        "image_token_id": config.image_id,
        "video_token_id": config.video_id,
        "vision_start_token_id": config.vision_start_id,
        "vision_end_token_id": config.vision_end_id,
        "vocab_size": text.vocab,
        "hidden_size": text.width,
        "intermediate_size": text.ffn,
        "num_hidden_layers": text.depth,
        "num_attention_heads": text.heads,
        "num_key_value_heads": text.kv_heads,
        "hidden_act": "silu",
        "initializer_range": config.init_std,
        "max_position_embeddings": 128_000,
        "rms_norm_eps": text.norm_eps,
        "rope_theta": text.rope_theta,
        "rope_scaling": {"type": "mrope", "mrope_section": list(text.mrope_section)},
        "use_sliding_window": False,
        "vision_config": {
            "model_type": "qwen2_5_vl",
            "depth": vision.depth,
            "hidden_act": "silu",
            "hidden_size": vision.width,
            "intermediate_size": vision.ffn,
            "num_heads": vision.heads,
            "in_channels": 3,
            "out_hidden_size": text.width,
            "patch_size": vision.patch,
            "spatial_merge_size": vision.merge,
            "temporal_patch_size": 2,
            "window_size": vision.window,
            "fullatt_block_indexes": list(vision.full_blocks),
        },
    }
