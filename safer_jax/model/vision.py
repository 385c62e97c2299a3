"""Qwen2.5-VL's vision tower: patches of uint8 pixels to merged tokens of the decoder's width (array code)."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt8

from safer_jax import images
from safer_jax.mesh import constrain
from safer_jax.model.attention import rotate, self_attention
from safer_jax.model.parts import Init, linear, rms_norm, scan_layers
from safer_jax.model.variants import VisionConfig

NORM_EPS = 1e-6  # fixed in the published code, not a field of its config


class Layer(nnx.Module):
    """A block. Its weights are made stacked over z layers; the scan hands it one layer's slice."""

    def __init__(self, config: VisionConfig, init: Init):
        z, w, f, n, h = config.depth, config.width, config.ffn, config.heads, config.head_size
        self.norm1 = init.ones(layers_=z, vision_width=w)
        self.qkv = init.normal(layers_=z, vision_width=w, qkv_=3, heads=n, head_=h)
        self.qkv_bias = init.zeros(layers_=z, qkv_=3, heads=n, head_=h)
        self.out = init.normal(layers_=z, heads=n, head_=h, vision_width=w)
        self.out_bias = init.zeros(layers_=z, vision_width=w)
        self.norm2 = init.ones(layers_=z, vision_width=w)
        self.gate = init.normal(layers_=z, vision_width=w, ffn=f)
        self.gate_bias = init.zeros(layers_=z, ffn=f)
        self.up = init.normal(layers_=z, vision_width=w, ffn=f)
        self.up_bias = init.zeros(layers_=z, ffn=f)
        self.down = init.normal(layers_=z, ffn=f, vision_width=w)
        self.down_bias = init.zeros(layers_=z, vision_width=w)

    def __call__(
        self,
        x: Float[Array, "P X W"],
        angle: Float[Array, "P X half"],
        segment: Int[Array, "P X"],
        is_full: Bool[Array, ""],
        window_slots: int,
    ) -> Float[Array, "P X W"]:
        normed = rms_norm(x, self.norm1[...], NORM_EPS)
        # Each apart: in one product the heads, cut over `tensor`, stand between other axes, and flattening those would
        # gather the weight and its gradient on every device.
        q, k, v = (linear(normed, self.qkv[:, part]) + self.qkv_bias[part] for part in range(3))
        q, k = rotate(q, angle), rotate(k, angle)

        def whole_image(_):
            same = segment[:, :, None] == segment[:, None, :]
            return self_attention(q, k, v, same & (segment > 0)[:, None, :])

        def window(_):
            split = lambda t: t.reshape(-1, window_slots, *t.shape[2:])
            return self_attention(split(q), split(k), split(v), split(segment > 0)[:, None, :]).reshape(q.shape)

        mixed = jax.lax.cond(is_full, whole_image, window, None)
        x = x + linear(mixed.reshape(x.shape), self.out[...].reshape(x.shape[-1], -1)) + self.out_bias[...]
        normed = rms_norm(x, self.norm2[...], NORM_EPS)
        gate, up = (
            linear(normed, self.gate[...]) + self.gate_bias[...],
            linear(normed, self.up[...]) + self.up_bias[...],
        )
        return constrain(x + linear(jax.nn.silu(gate) * up, self.down[...]) + self.down_bias[...], "prompt", None, None)


class Merger(nnx.Module):
    """merge^2 neighbouring patches, which stand in consecutive slots, to one token."""

    def __init__(self, config: VisionConfig, out_width: int, init: Init):
        w, merged = config.width, config.width * config.merge**2
        self.norm = init.ones(vision_width=w)
        self.fc1 = init.normal(merged_=merged, ffn=merged)
        self.fc1_bias = init.zeros(ffn=merged)
        self.fc2 = init.normal(ffn=merged, width=out_width)
        self.fc2_bias = init.zeros(width=out_width)

    def __call__(self, x: Float[Array, "P X W"]) -> Float[Array, "P Y D"]:
        prompts = x.shape[0]
        normed = rms_norm(x, self.norm[...], NORM_EPS)
        packed = normed.reshape(prompts, -1, self.fc1.shape[0])
        hidden = jax.nn.gelu(linear(packed, self.fc1[...]) + self.fc1_bias[...], approximate=False)
        return linear(hidden, self.fc2[...]) + self.fc2_bias[...]


class Vision(nnx.Module):
    """Patch embedding, blocks with window or whole-image attention, merger."""

    def __init__(self, config: VisionConfig, out_width: int, init: Init):
        p = config.patch
        self.config = config
        # Two frames, as the checkpoint has it; a still image shows the same frame twice.
        self.patch_embed = init.normal(color_=3, frame_=2, row_=p, column_=p, vision_width=config.width)
        self.layers = Layer(config, init)
        self.merger = Merger(config, out_width, init)

    def __call__(
        self,
        pixel: UInt8[Array, "P X I"],
        position: Int[Array, "P X 2"],
        segment: Int[Array, "P X"],
        *,
        remat: bool = False,
    ) -> Float[Array, "P Y D"]:
        """Merged tokens in slot order, Y = X / merge^2. Shapes as in shapes.Prompts; X is a multiple of a window."""
        config = self.config
        both_frames = self.patch_embed[...].sum(1).reshape(-1, config.width)
        x = images.normalise(pixel).astype(both_frames.dtype)
        x = linear(x, both_frames)
        angle = rotary_angle(position, config.head_size)
        is_full_Z = np.isin(np.arange(config.depth), config.full_blocks)

        def step(layer, x, is_full):
            return layer(x, angle, segment, is_full, config.window_slots), None

        x, _ = scan_layers(self.layers, step, constrain(x, "prompt", None, None), is_full_Z, remat=remat)
        return self.merger(x)


def rotary_angle(position: Int[Array, "P X 2"], head_size: int) -> Float[Array, "P X half"]:
    """A quarter of the head turns with the patch's row, a quarter with its column, and the halves repeat."""
    half = head_size // 2
    frequency = 10_000.0 ** -(np.arange(0, half, 2, dtype=np.float32) / half)
    angle = position[..., None].astype(jnp.float32) * frequency
    return angle.reshape(*position.shape[:-1], half)
