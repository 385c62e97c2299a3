"""Reads compiled programs: which arrays they hold."""

import math
import re

SHAPE = re.compile(r"\b(pred|[a-z]+\d+[a-z0-9]*)\[([\d,]*)\]")  # f32[8,128], bf16[4], pred[], f8e4m3fn[2]


def largest_buffers(compiled_text: str) -> list[tuple[int, str, tuple[int, ...]]]:
    """(elements, dtype, shape) of every array named in `jit(f).lower(...).compile().as_text()`, largest first.

    Values inside fusions are counted too though they are never stored: the largest buffer is at most what this says. On
    a mesh the text is one device's program, and so are the shapes.
    """
    found = {(dtype, tuple(int(n) for n in dims.split(",") if n)) for dtype, dims in SHAPE.findall(compiled_text)}
    return sorted(((math.prod(shape), dtype, shape) for dtype, shape in found), reverse=True)
