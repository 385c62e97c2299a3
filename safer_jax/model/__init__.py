"""Qwen2.5-VL in flax.nnx: variants (shapes), vision (patches -> tokens), text (decoder), vlm (both; start here)."""
