"""images.py against transformers' own image processor, window index and EXIF rules, and against broken files."""

import io
import itertools
import struct
import warnings
import zlib

import jax
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from transformers import vision_utils
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as hf_smart_resize

from safer_jax import images

GEOMETRY = images.Geometry(patch=14, merge=2, window=112)
LIMITS = images.Limits(min_pixels=3136, max_pixels=28 * 28 * 100, max_bytes=10_000_000, max_source_pixels=4_000_000)


def picture(mode: str, width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colour and noise, so that a wrong axis, filter or channel order shows everywhere."""
    random = np.random.default_rng(seed)
    row, column = np.mgrid[:height, :width]
    waves = [128 + 80 * np.sin(row / (5 + c) + column / (9 - c)) for c in range(4)]
    pixel = np.clip(np.stack(waves, -1) + random.normal(0, 30, (height, width, 4)), 0, 255).astype(np.uint8)
    if mode == "P":
        return Image.fromarray(pixel[..., :3]).quantize(40)
    if mode == "1":
        return Image.fromarray(pixel[..., 0]).convert("1")
    if mode == "CMYK":
        return Image.fromarray(pixel, "CMYK")
    return Image.fromarray(pixel).convert(mode)


def encoded(image: Image.Image, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def hf_pixels(data: bytes, geometry: images.Geometry, limits: images.Limits):
    processor = Qwen2VLImageProcessorPil(
        patch_size=geometry.patch,
        merge_size=geometry.merge,
        min_pixels=limits.min_pixels,
        max_pixels=limits.max_pixels,
    )
    out = processor(images=[Image.open(io.BytesIO(data))], return_tensors="np")
    return out["pixel_values"], tuple(out["image_grid_thw"][0].tolist())


def our_pixels(data: bytes, geometry: images.Geometry, limits: images.Limits):
    pixel_XI, grid = images.patches(images.decode(data, limits), geometry, limits)
    values = images.normalise(pixel_XI).reshape(len(pixel_XI), 3, 1, geometry.patch**2)
    return np.repeat(values, 2, axis=2).reshape(len(pixel_XI), -1), grid


def same_as_transformers(data: bytes, geometry: images.Geometry = GEOMETRY, limits: images.Limits = LIMITS):
    theirs, (_, *their_grid) = hf_pixels(data, geometry, limits)
    ours, grid = our_pixels(data, geometry, limits)
    assert list(grid) == their_grid
    assert images.size(data, limits, geometry) == grid
    assert ours.dtype == theirs.dtype == np.float32
    np.testing.assert_array_equal(ours.view(np.int32), theirs.view(np.int32))


@pytest.mark.parametrize(
    "width,height",
    [(280, 280), (56, 56), (30, 47), (5, 9), (3, 590), (1000, 7), (641, 427), (427, 641), (42, 70), (1199, 801)],
)
def test_whole_images_equal_transformers_bit_for_bit(width, height):
    same_as_transformers(encoded(picture("RGB", width, height), "PNG"))


@pytest.mark.parametrize(
    "mode,form",
    [
        ("L", "PNG"),
        ("LA", "PNG"),
        ("P", "PNG"),
        ("1", "PNG"),
        ("RGBA", "PNG"),
        ("RGB", "JPEG"),
        ("L", "JPEG"),
        ("CMYK", "JPEG"),
        ("RGB", "WEBP"),
        ("RGBA", "WEBP"),
        ("P", "GIF"),
        ("RGB", "BMP"),
    ],
)
def test_every_mode_equals_transformers_bit_for_bit(mode, form):
    same_as_transformers(encoded(picture(mode, 150, 101), form))


def test_palette_with_a_transparent_entry_is_laid_on_white():
    data = encoded(picture("P", 90, 60), "PNG", transparency=3)
    same_as_transformers(data)
    see_through = encoded(Image.new("RGBA", (56, 56), (10, 20, 30, 0)), "PNG")
    assert np.all(np.asarray(images.decode(see_through, LIMITS)) == 255)


def test_other_geometries_equal_transformers():
    data = encoded(picture("RGB", 200, 120), "PNG")
    for patch, merge in [(8, 2), (16, 2), (14, 3), (4, 1)]:
        limits = images.Limits((patch * merge) ** 2, 60 * (patch * merge) ** 2, 10**7, 10**7)
        same_as_transformers(data, images.Geometry(patch, merge, 4 * patch * merge), limits)


def test_smart_resize_equals_transformers_on_many_sizes():
    random = np.random.default_rng(1)
    for _ in range(3000):
        height, width = (int(side) for side in np.exp(random.uniform(0, 8, 2)) + 1)
        low = int(random.integers(1, 40)) * 784
        limits = images.Limits(low, low + int(random.integers(0, 2000)) * 784, 1, 1)
        if max(height, width) / min(height, width) > 200:
            with pytest.raises(images.ImageError, match="side ratio"):
                images.smart_resize(height, width, GEOMETRY, limits)
        else:
            want = hf_smart_resize(height, width, 28, limits.min_pixels, limits.max_pixels)
            assert images.smart_resize(height, width, GEOMETRY, limits) == want


def test_all_768_levels_are_exact_in_numpy_and_under_jit():
    processor = Qwen2VLImageProcessorPil()
    level = np.broadcast_to(np.arange(256, dtype=np.uint8)[None, None], (3, 1, 256))
    want = processor.normalize(processor.rescale(level, 1 / 255), processor.image_mean, processor.image_std)[:, 0]
    assert (images.MEAN, images.STD) == (tuple(processor.image_mean), tuple(processor.image_std))
    pixel_XI = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3 * 4, axis=1)
    for values in (images.normalise(pixel_XI), np.asarray(jax.jit(images.normalise)(pixel_XI))):
        got = values.reshape(256, 3, 4).transpose(1, 2, 0)
        np.testing.assert_array_equal(got.view(np.int32), np.repeat(want[:, None], 4, axis=1).view(np.int32))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_exif_turns_the_image_upright(orientation, form):
    exif = Image.Exif()
    exif[images.ORIENTATION] = orientation
    data = encoded(picture("RGB", 180, 60), form, exif=exif)
    want = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    image = images.decode(data, LIMITS)
    np.testing.assert_array_equal(np.asarray(image), want)
    assert images.size(data, LIMITS, GEOMETRY) == images.patches(image, GEOMETRY, LIMITS)[1]
    assert (image.height > image.width) == (orientation > 4)


def test_exif_behind_the_pixels_of_a_png_is_found():
    exif = Image.Exif()
    exif[images.ORIENTATION] = 6
    data = encoded(picture("RGB", 180, 60), "PNG")
    body = b"eXIf" + exif.tobytes()[6:]
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    data = data[:-12] + chunk + data[-12:]
    assert images.decode(data, LIMITS).size == (60, 180)
    assert images.size(data, LIMITS, GEOMETRY)[0] > images.size(data, LIMITS, GEOMETRY)[1]


def test_the_first_frame_of_an_animation_is_used():
    frames = [picture("P", 60, 60, seed) for seed in (0, 1)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(np.asarray(images.decode(data, LIMITS)), np.asarray(frames[0].convert("RGB")))


GOOD = encoded(picture("RGB", 120, 90), "PNG")
BAD_FILES = {
    "empty": (b"", "row 'a', image 2: the file is empty"),
    "text": (
        b"<html>not found</html>",
        "row 'a', image 2: .*beginning b'<html>no' have no header of JPEG, PNG.*convert",
    ),
    "tiff": (encoded(picture("RGB", 60, 60), "TIFF"), "have no header of JPEG"),
    "truncated png": (GOOD[:-2000], "row 'a', image 2: PNG file of .* does not decode"),
    "truncated jpeg": (encoded(picture("RGB", 120, 90), "JPEG")[:-500], "row 'a', image 2: JPEG file of .* truncated"),
    "header only": (GOOD[:40], "row 'a', image 2: 40 bytes beginning .*PNG.* have no header"),
    "16 bits": (encoded(Image.fromarray(np.zeros((60, 60), np.uint16)), "PNG"), "more than 8 bits a channel"),
    "strip": (encoded(picture("RGB", 402, 2), "PNG"), "row 'a', image 2: 402 x 2 pixels, a side ratio above 200"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_named(case):
    data, message = BAD_FILES[case]
    with pytest.raises(images.ImageError, match=message):
        images.decode(data, LIMITS, "row 'a', image 2")


def test_too_many_bytes_are_refused():
    tight = images.Limits(3136, 78400, len(GOOD) - 1, 10**6)
    for call in (lambda: images.decode(GOOD, tight, "x"), lambda: images.size(GOOD, tight, GEOMETRY, "x")):
        with pytest.raises(
            images.ImageError, match=f"x: {len(GOOD)} bytes, .*limit of {len(GOOD) - 1}.*max_image_bytes"
        ):
            call()


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header promises any size."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"\0" * 1000))]
    out = b"\x89PNG\r\n\x1a\n"
    for kind, body in [*chunks, (b"IEND", b"")]:
        out += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return out


def test_a_decompression_bomb_is_refused_from_its_header():
    for call in (images.decode, lambda data, limits, name: images.size(data, limits, GEOMETRY, name)):
        with pytest.raises(images.ImageError, match="x: 2001 x 2000 pixels, .*limit of 4000000.*max_source_pixels"):
            call(bomb(2001, 2000), LIMITS, "x")
        with pytest.raises(images.ImageError, match="^x: .*max_source_pixels"):
            call(bomb(50_000, 50_000), LIMITS, "x")


def test_size_decodes_nothing(monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("pixels were decoded"))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("pixels were decoded"))
    for form in ("PNG", "JPEG", "WEBP", "GIF", "BMP"):
        assert images.size(SAVED[form], LIMITS, GEOMETRY) == (6, 8)


SAVED = {form: encoded(picture("RGB", 120, 90), form) for form in ("PNG", "JPEG", "WEBP", "GIF", "BMP")}


@pytest.mark.parametrize("form", SAVED)
def test_damaged_bytes_give_an_image_or_an_image_error(form):
    random, data, refused = np.random.default_rng(2), SAVED[form], 0
    for trial in range(150):
        broken = bytearray(data if trial % 3 else data[: int(random.integers(1, len(data)))])
        reach = len(broken) if trial % 2 else min(len(broken), 100)  # headers deserve half of the damage
        for place in random.integers(0, reach, 4):
            broken[place] = int(random.integers(256))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                assert images.decode(bytes(broken), LIMITS).mode == "RGB"
            except images.ImageError:
                refused += 1
    assert refused > 20


def test_windows_are_those_of_transformers():
    for geometry in (GEOMETRY, images.Geometry(14, 2, 56), images.Geometry(8, 1, 24), images.Geometry(4, 3, 24)):
        m, block = geometry.merge, geometry.merge**2
        for rows, columns in [(1, 1), (4, 4), (8, 4), (3, 5), (9, 2), (5, 13), (4, 7)]:
            slot_X, slots = images.window_slots((rows * m, columns * m), geometry)
            index, bounds = vision_utils.get_vision_window_index(
                torch.tensor([[1, rows * m, columns * m]]), m, geometry.window, geometry.patch
            )
            bounds = bounds.unique_consecutive()
            theirs = [index[a // block : b // block].tolist() for a, b in itertools.pairwise(bounds)]
            assert slots == len(theirs) * geometry.window_slots
            patch_at = np.full(slots, -1)
            patch_at[slot_X] = np.arange(len(slot_X))
            for window, blocks in zip(patch_at.reshape(len(theirs), -1), theirs, strict=True):
                want = [b * block + i for b in blocks for i in range(block)]
                assert window.tolist() == want + [-1] * (geometry.window_slots - len(want))


def test_window_slots_of_a_small_grid_by_hand():
    geometry = images.Geometry(patch=1, merge=1, window=2)  # 3 x 3 patches: windows of 4, 2, 2 and 1
    slot_X, slots = images.window_slots((3, 3), geometry)
    assert slot_X.tolist() == [0, 1, 4, 2, 3, 5, 8, 9, 12] and slots == 16


def test_patch_positions_point_at_the_pixels():
    geometry, limits = images.Geometry(2, 2, 8), images.Limits(1, 10**6, 10**6, 10**6)
    image = picture("RGB", 12, 8)
    pixel_XI, grid = images.patches(image, geometry, limits)
    pixel = np.asarray(image)
    assert grid == (4, 6)
    for values, (row, column) in zip(pixel_XI, images.patch_positions(grid, geometry), strict=True):
        want = pixel[2 * row : 2 * row + 2, 2 * column : 2 * column + 2].transpose(2, 0, 1).reshape(-1)
        np.testing.assert_array_equal(values, want)


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="window must be a positive multiple of patch"):
        images.Geometry(patch=14, merge=2, window=100)
    with pytest.raises(ValueError, match="prompt.max_pixels"):
        images.Limits(100, 50, 1, 1)
    with pytest.raises(ValueError, match="max_source_pixels"):
        images.Limits(1, 50, 1, 0)
