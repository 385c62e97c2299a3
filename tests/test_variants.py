"""Every variant's sizes against transformers' own, both spellings of config.json, and axis names of parameters (host code)."""

import math

import hf
import pytest
import torch
from flax import nnx
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from safer_jax import mesh
from safer_jax.model import variants, vlm

# The config.json of Qwen/Qwen2.5-VL-3B-Instruct as the hub has it: flat keys, and its own spelling of some.
HUB_3B = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "vision_token_id": 151654,
    "image_token_id": 151655,
    "video_token_id": 151656,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "max_position_embeddings": 128000,
    "max_window_layers": 70,
    "model_type": "qwen2_5_vl",
    "num_attention_heads": 16,
    "num_hidden_layers": 36,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
    "vision_config": {
        "depth": 32,
        "hidden_act": "silu",
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "in_chans": 3,
        "out_hidden_size": 2048,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "tokens_per_second": 2,
        "temporal_patch_size": 2,
    },
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vocab_size": 151936,
}
ALL = {**variants.VARIANTS, **{name: hf.config_of(name) for name in hf.CONFIGS}}


def nested(config: variants.ModelConfig) -> dict:
    """As transformers 5 writes it: text_config with rope_parameters."""
    written = Qwen2_5_VLConfig(**variants.to_hf(config, end_id=hf.EOS, pad_id=hf.PAD)).to_dict()
    assert "rope_parameters" in written["text_config"] and "hidden_size" not in written
    return written


@pytest.mark.parametrize("name", ALL)
def test_both_spellings_are_read(name):
    assert variants.from_hf(variants.to_hf(ALL[name], end_id=hf.EOS, pad_id=hf.PAD)) == ALL[name]
    assert variants.from_hf(nested(ALL[name])) == ALL[name]


def test_the_hubs_3b_is_the_variant_3b():
    assert variants.from_hf(HUB_3B) == variants.VARIANTS["3b"]
    assert variants.from_hf(Qwen2_5_VLConfig(**HUB_3B).to_dict()) == variants.VARIANTS["3b"]


def test_left_out_keys_take_transformers_defaults():
    short = {**variants.to_hf(variants.VARIANTS["3b"], end_id=hf.EOS, pad_id=hf.PAD)}
    optional = ("rms_norm_eps", "rope_theta", "tie_word_embeddings", "initializer_range", "vision_start_token_id")
    short = {key: value for key, value in short.items() if key not in optional}
    short["vision_config"] = {
        key: value
        for key, value in short["vision_config"].items()
        if key not in ("depth", "num_heads", "window_size", "fullatt_block_indexes", "patch_size")
    }
    assert variants.from_hf(short) == variants.from_hf(Qwen2_5_VLConfig(**short).to_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "qwen2_vl"}, "'qwen2_vl'"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "'yarn'"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"hidden_act": "gelu"}, "'gelu'"),
        ({"num_key_value_heads": 3}, "16 attention heads are no multiple of 3 kv heads"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [8, 12, 12]}}, "mrope_section .* 128"),
        ({"num_attention_heads": 15}, "hidden_size 2048"),
        ({"vision_config": {**HUB_3B["vision_config"], "window_size": 100}}, "window_size 100"),
        ({"vision_config": {**HUB_3B["vision_config"], "fullatt_block_indexes": [32]}}, "depth 32"),
        ({"vision_config": {"depth": 2}}, "has no 'hidden_size'"),
    ],
)
def test_what_is_not_ported_is_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        variants.from_hf({**HUB_3B, **change})


@pytest.mark.parametrize(("name", "billions"), [("3b", 3.755), ("7b", 8.292), ("32b", None), ("72b", None)])
def test_parameters_are_as_many_as_transformers_has(name, billions):
    config = variants.VARIANTS[name]
    ours = sum(math.prod(leaf.shape) for _, leaf in nnx.to_flat_state(vlm.abstract(config)[1]))
    with torch.device("meta"):
        theirs = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**variants.to_hf(config, end_id=2, pad_id=0)))
    assert ours == sum(weight.numel() for weight in theirs.parameters())
    assert billions is None or round(ours / 1e9, 3) == billions


@pytest.mark.parametrize("name", variants.VARIANTS)
def test_every_parameter_names_as_many_axes_as_it_has(name):
    for path, leaf in nnx.to_flat_state(vlm.abstract(variants.VARIANTS[name])[1]):
        names = leaf.get_metadata().get("out_sharding")
        assert names is not None and len(names) == len(leaf.shape), f"{path}: {names} for {leaf.shape}"
        assert set(names) <= set(mesh.TABLE), f"{path}: {names}"
