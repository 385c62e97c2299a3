"""A policy small enough to sample from in tests, many of whose tokens end a row, and its log-probs in float64."""

import hf
import jax
import numpy as np
from flax import nnx

from safer_jax.model import variants, vlm

VOCAB = 1300  # three blocks of the two-stage search, the last one not full
END_IDS = tuple(number for number in range(11, VOCAB, 28) if number % 7 != 3) + (1299,)  # many, so that rows do end
BANNED = np.isin(np.arange(VOCAB), [hf.PAD, hf.IMAGE, VOCAB - 2]) | (np.arange(VOCAB) % 7 == 3)
TEMPERATURE = 0.7

CONFIG = variants.ModelConfig(
    variants.VisionConfig(depth=2, width=32, ffn=48, heads=2, window=56, full_blocks=(1,)),
    variants.TextConfig(VOCAB, width=64, ffn=96, depth=2, heads=8, kv_heads=2, mrope_section=(1, 1, 2)),
    tied=True,
    image_id=hf.IMAGE,
    video_id=hf.VIDEO,
    vision_start_id=hf.START,
    vision_end_id=hf.END,
    init_std=0.3,  # logits wide enough that tokens differ in likelihood
)
GRAPH = vlm.abstract(CONFIG)[0]


@jax.jit
def hidden_of(params, prompts, token, is_valid):
    return nnx.merge(GRAPH, params)(prompts, token, is_valid)


def forced_logp(params, prompts, token, is_valid, temperature=TEMPERATURE, banned=BANNED):
    """Teacher-forced log-probs of every id, in float64: [P, G, C, V]."""
    hidden = np.asarray(hidden_of(params, prompts, token, is_valid), np.float64)
    logits = hidden @ np.asarray(params["text"]["embed"][...], np.float64).T / temperature
    logits[..., banned] = -np.inf
    top = logits.max(-1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))


def at(value_PGCV, token_PGC):
    return np.take_along_axis(value_PGCV, token_PGC[..., None], -1)[..., 0]
