"""A web page without a framework: elements that escape, figures as text, charts in SVG, one style (host code).

Knows nothing of runs. A page needs nothing from a network, and its policy forbids it everything but its own script.
"""

import base64
import hashlib
import html
import io
import itertools
import json
import math
import re
import statistics
from collections.abc import Callable
from typing import Any

from safer_jax import images

POINTS_SHOWN, SMOOTHED_FROM = 400, 24  # points a curve; a curve with fewer points than the latter is not smoothed
CELL, LABEL = 4, 24  # pixels within which points are one dot; characters of a bar's name
LARGEST = 1e30  # from here on a value counts as not finite


class Html(str):
    """Markup, safe to place in the page as it stands."""


def element(name: str, *children: Any, **attributes: Any) -> Html:
    """`<name attributes>children</name>`; `class_` is class, `stroke_width` stroke-width; None and False leave out."""
    is_left_out = lambda value: value is None or value is False  # 0 is not
    kept = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items() if not is_left_out(value)}
    start = name + "".join(f' {key}="{html.escape(str(value))}"' for key, value in kept.items())
    body = "".join(child if isinstance(child, Html) else html.escape(str(child)) for child in children)
    return Html(f"<{start}>{body}</{name}>")


def number(value: Any, is_rate: bool = False) -> str:
    """A figure as people read it: 0.713, 65.2, 1,234, 71.3%, 1.2e−6; a dash where there is none."""
    if not is_finite(value):
        return "–"
    if is_rate:
        text = f"{100 * value:.1f}%"
    elif value == 0 or 1e-3 <= abs(value) < 1e7:
        text = f"{value:,.{3 if abs(value) < 10 else 1 if abs(value) < 1000 else 0}f}"
    else:
        text = plain(value, 3)
    return text.replace("-", "−")


def plain(value: Any, digits: int = 4) -> str:
    """A figure without trailing zeros: 1, 0.75, 12,500, 1e−6; a dash where there is none."""
    if not is_finite(value):
        return "–"
    text = f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e7 else f"{value:.{digits}g}"
    return re.sub(r"e([+-])0*", r"e\1", text).replace("e+", "e").replace("-", "−")


def change(value: float, is_rate: bool = False) -> str:
    """A difference with its sign: +0.560, −8.68; of rates in percentage points, +34.6; a dash where there is none."""
    if not is_finite(value):
        return "–"
    digits = 3 if abs(value) < 1 else 2 if abs(value) < 10 else 1
    return (f"{100 * value:+.1f}" if is_rate else f"{value:+.{digits}f}").replace("-", "−")


def is_finite(value: Any) -> bool:
    """True for a number that can be drawn."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < LARGEST


def smooth(values: list[float]) -> list[float]:
    """Centred moving mean over about a tenth of the curve; it narrows at both ends."""
    if len(values) < SMOOTHED_FROM:
        return values
    total, reach = [0.0, *itertools.accumulate(values)], max(1, len(values) // 20)
    spans = [(max(0, i - reach), min(len(values), i + reach + 1)) for i in range(len(values))]
    return [(total[high] - total[low]) / (high - low) for low, high in spans]


def thin(curve: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most POINTS_SHOWN points, which keep every peak: the lowest and the highest of each stretch."""
    if len(curve) <= POINTS_SHOWN:
        return curve
    size = math.ceil(2 * len(curve) / POINTS_SHOWN)
    stretches = [curve[start : start + size] for start in range(0, len(curve), size)]
    value = lambda point: point[1]
    return sorted({point for stretch in stretches for point in (min(stretch, key=value), max(stretch, key=value))})


def ticks(low: float, high: float, least: float = 0.0) -> list[float]:
    """Round numbers within [low, high], at most six, at least `least` apart."""
    scale = 10.0 ** math.floor(math.log10((high - low) / 5))
    gap = max(least, next(scale * factor for factor in (1, 2, 5, 10) if (high - low) / (scale * factor) <= 5))
    return [count * gap for count in range(math.ceil(low / gap - 1e-9), math.floor(high / gap + 1e-9) + 1)]


def line_chart(
    title: str, curves: dict[str, list[tuple[int, Any]]], note: str = "", scale: str = "", mark: int = 0
) -> Html:
    """A figure with a line for each named curve of (step, value), named at its end; nothing if no value is finite.

    The line is a moving mean, the values themselves stand behind it as dots; a value that is not finite is an x at the
    top. `scale`: rate (0 to 100%) | log | empty (linear; log for positive values with high peaks).
    `mark` is the last step of the warm start, drawn when it lies between the points.
    """
    finite = {name: [point for point in curve if is_finite(point[1])] for name, curve in curves.items()}
    finite = {name: curve for name, curve in finite.items() if curve}
    if not finite:
        return Html()
    means = {name: list(zip([x for x, _ in curve], smooth([y for _, y in curve]))) for name, curve in finite.items()}
    is_rate, width, height, left, top = scale == "rate", 460, 216, 46, 10
    ends = {name: f"{name} {number(curve[-1][1], is_rate)}" for name, curve in means.items()}
    ends = ends if len(ends) > 1 else {name: end.removeprefix(f"{name} ") for name, end in ends.items()}
    right, bottom = width - 10 - 6.1 * max(map(len, ends.values())), height - 22
    steps = [x for curve in finite.values() for x, _ in curve]
    first, final = min(steps), max(max(steps), min(steps) + 1)
    low, high, unscaled = vertical(list(finite.values()), scale)
    scaled = math.log10 if unscaled is power else float
    at_x = lambda step: round(left + (step - first) / (final - first) * (right - left), 1)
    at_y = lambda value: round(bottom - (scaled(value) - low) / (high - low) * (bottom - top), 1)

    drawn = []
    for tick in ticks(low, high, 1.0 if unscaled is power else 0.0):
        value = unscaled(tick)
        drawn.append(element("line", class_="grid", x1=left, x2=right, y1=at_y(value), y2=at_y(value)))
        label = f"{100 * value:.0f}%" if is_rate else plain(value)
        drawn.append(element("text", label, x=left - 6, y=at_y(value) + 3.5, class_="y"))
    for tick in ticks(first, final, 1.0):
        drawn.append(element("text", plain(round(tick)), x=at_x(tick), y=height - 6, class_="x"))
    if first < mark < final:
        drawn.append(element("line", class_="mark", x1=at_x(mark), x2=at_x(mark), y1=top, y2=bottom))
        drawn.append(element("text", "GRPO →", x=at_x(mark) + 4, y=top + 8))
    label_y = apart({name: at_y(curve[-1][1]) + 3.5 for name, curve in means.items()}, 13.0, top)
    for name in label_y:
        style, is_short = f"s{list(finite).index(name) % 6}", len(finite[name]) < SMOOTHED_FROM
        dots = [element("circle", cx=at_x(x), cy=at_y(y), r=2.6 if is_short else 1.3) for x, y in thin(finite[name])]
        drawn.append(element("g", *dots, class_=f"{style} {'points' if is_short else 'raw'}"))
        path = "M" + "L".join(f"{at_x(x)},{at_y(y)}" for x, y in thin(means[name]))
        drawn.append(element("path", d=path, class_=style))
        drawn.append(element("text", ends[name], x=right + 7, y=label_y[name], class_=f"{style} end"))
    lost = sorted({x for curve in curves.values() for x, y in curve if not is_finite(y) and first <= x <= final})
    drawn += [element("text", "×", x=at_x(x), y=top + 4, class_="x lost") for x in lost[:POINTS_SHOWN]]
    drawn.append(element("line", class_="cursor", x1=-9, x2=-9, y1=top, y2=bottom))
    told = (f"{n} from {number(curve[0][1], is_rate)} to {number(curve[-1][1], is_rate)}" for n, curve in means.items())
    alt = f"{title}, steps {first} to {max(steps)}: {'; '.join(told)}"
    data = [[name, [[x, number(y, is_rate)] for x, y in thin(curve)]] for name, curve in finite.items()]
    frame = json.dumps([left, right, first, final, width])
    box = {"viewBox": f"0 0 {width} {height}", "role": "img", "aria_label": alt}
    svg = element("svg", *drawn, **box, data_curves=json.dumps(data), data_frame=frame)
    note = f"{note} · log scale".removeprefix(" · ") if unscaled is power else note
    return element("figure", element("figcaption", element("h3", title), element("p", note)), svg)


def sparkline(title: str, curve: list[tuple[int, float]], low: float, high: float) -> Html:
    """A small curve without axes over the band from `low` to `high`, either of which may be infinite; its last mean a dot."""
    width, height, edge = 300, 54, 4
    steps, values = [x for x, _ in curve], smooth([y for _, y in curve])
    ends = [*values, *(end for end in (low, high) if is_finite(end))]
    bottom, top = min(ends), max(ends)
    margin = 0.08 * (top - bottom) or 1.0
    bottom, top, span = bottom - margin, top + margin, max(steps[-1] - steps[0], 1)
    at_x = lambda step: round(edge + (step - steps[0]) / span * (width - 2 * edge), 1)
    at_y = lambda value: round((top - min(max(value, bottom), top)) / (top - bottom) * height, 1)
    band = element("rect", class_="band", x=0, y=at_y(high), width=width, height=round(at_y(low) - at_y(high), 1))
    path = "M" + "L".join(f"{at_x(x)},{at_y(y)}" for x, y in thin(list(zip(steps, values))))
    drawn = (band, element("path", d=path), element("circle", cx=at_x(steps[-1]), cy=at_y(values[-1]), r=3))
    alt = f"{title} {steps[0]} to {steps[-1]}: from {plain(values[0])} to {plain(values[-1])}"
    return element("svg", *drawn, class_="spark s0", viewBox=f"0 0 {width} {height}", role="img", aria_label=alt)


def vertical(curves: list[list[tuple[int, float]]], scale: str) -> tuple[float, float, Callable[[float], float]]:
    """The ends of the vertical axis and the function from the axis to values: `float`, or `power` on a log axis."""
    values = [value for curve in curves for _, value in curve]
    peak = 20 * max(statistics.median(value for _, value in curve) for curve in curves)
    if scale == "rate":
        return min(0.0, *values), max(1.0, *values), float
    if min(values) > 0 and (scale == "log" or max(values) > peak):
        low, high = math.log10(min(values)), math.log10(max(values))
        return low - 0.05, high + 0.05, power
    low, high = float(min(values)), float(max(values))
    low, high = (0.0 if 0 < low < 0.5 * high or low == high > 0 else low), (high if high > low or high > 0 else 0.0)
    high += 0.04 * (high - low) or 1.0
    return low, high, float


def scatter(
    title: str,
    clouds: dict[str, list[tuple[Any, Any]]],
    axes: tuple[str, str],
    box: tuple[float, float, float, float] | None = None,
    note: str = "",
) -> Html:
    """A figure with a dot for each (x, y) of each named cloud, the first in colour over the others in grey; nothing if
    no point is finite.

    Points that fall together are one dot, its area by their number. `axes` names x and y; `box` is a region
    (x low, x high, y low, y high) to draw, its infinite sides at the figure's edge.
    """
    finite = {name: [p for p in points if is_finite(p[0]) and is_finite(p[1])] for name, points in clouds.items()}
    if not any(finite.values()):
        return Html()
    width, height, left, right, top, bottom = 460, 300, 46, 450, 26, 260
    xs, ys = zip(*(point for points in finite.values() for point in points))
    ends = [*box] if box else []
    x_low, x_high = around([*xs, *(x for x in ends[:2] if is_finite(x))])
    y_low, y_high = around([*ys, *(y for y in ends[2:] if is_finite(y))])
    at_x = lambda x: round(left + (min(max(x, x_low), x_high) - x_low) / (x_high - x_low) * (right - left), 1)
    at_y = lambda y: round(bottom - (min(max(y, y_low), y_high) - y_low) / (y_high - y_low) * (bottom - top), 1)

    drawn = []
    for y in ticks(y_low, y_high):
        drawn.append(element("line", class_="grid", x1=left, x2=right, y1=at_y(y), y2=at_y(y)))
        drawn.append(element("text", plain(y), x=left - 6, y=at_y(y) + 3.5, class_="y"))
    drawn += [element("text", plain(x), x=at_x(x), y=bottom + 16, class_="x") for x in ticks(x_low, x_high)]
    drawn.append(element("text", axes[1], x=left, y=top - 10))
    drawn.append(element("text", axes[0], x=right, y=height - 6, class_="y"))
    place = right
    for number, (name, points) in reversed(list(enumerate(finite.items()))):
        cells: dict[tuple[int, int], list[tuple[float, float]]] = {}
        for x, y in points:
            cells.setdefault((int(at_x(x) // CELL), int(at_y(y) // CELL)), []).append((at_x(x), at_y(y)))
        style = "s0 dots" if number == 0 else "rest dots"
        dots = []
        for cell in cells.values():
            x, y = (round(statistics.fmean(values), 1) for values in zip(*cell))
            dots.append(element("circle", cx=x, cy=y, r=round(min(1.6 * len(cell) ** 0.5, 1.5 * CELL), 1)))
        drawn.append(element("g", *dots, class_=style))
        label = f"{name} {len(points):,}"
        drawn.append(element("text", f"● {label}", x=place, y=top - 10, class_=f"{style} y"))
        place -= 6.1 * len(label) + 26
    if box:
        x, y = at_x(box[0]), at_y(box[3])
        drawn.append(element("rect", class_="box", x=x, y=y, width=at_x(box[1]) - x, height=at_y(box[2]) - y))
    alt = f"{title}: {axes[1]} over {axes[0]}, {', '.join(f'{name} {len(points)}' for name, points in finite.items())}"
    svg = element("svg", *drawn, viewBox=f"0 0 {width} {height}", role="img", aria_label=alt)
    return element("figure", element("figcaption", element("h3", title), element("p", note)), svg)


def around(values: list[float]) -> tuple[float, float]:
    """The ends of an axis on which these values stand clear of the edge."""
    low, high = min(values), max(values)
    margin = 0.04 * (high - low) or 0.5
    return low - margin, high + margin


def bar_chart(title: str, parts: dict[str, tuple[int, int]], note: str = "") -> Html:
    """A figure with a bar for each name of (part, whole): the part in colour in front of the whole in grey."""
    if not parts:
        return Html()
    width, row, left, right, top = 460, 22, 150, 380, 4
    most = max(whole for _, whole in parts.values()) or 1
    drawn = []
    for number, (name, (part, whole)) in enumerate(parts.items()):
        y = top + number * row
        short = name if len(name) <= LABEL else f"{name[: LABEL - 1]}…"
        drawn.append(element("text", element("title", name), short, x=left - 8, y=y + 12.5, class_="y"))
        for value, style in ((whole, "rest"), (part, "s0")):
            length = round((right - left) * value / most, 1)
            drawn.append(element("rect", class_=f"{style} bar", x=left, y=y + 2, width=length, height=row - 8))
        told = f"{part:,} of {whole:,}"
        drawn.append(element("text", told, x=left + (right - left) * whole / most + 7, y=y + 12.5))
    alt = f"{title}: {', '.join(f'{name} {part} of {whole}' for name, (part, whole) in parts.items())}"
    box = {"viewBox": f"0 0 {width} {top + row * len(parts)}", "role": "img", "aria_label": alt}
    return element(
        "figure", element("figcaption", element("h3", title), element("p", note)), element("svg", *drawn, **box)
    )


def interval_chart(
    title: str,
    intervals: dict[str, tuple[Any, Any, Any, str]],
    ends: tuple[float, float] = (0.0, 1.0),
    note: str = "",
    is_rate: bool = True,
) -> Html:
    """A figure with a dot and its interval for each name of (value, low, high, what to say beside it), on one axis with
    these ends; a value that is not finite is a dash. Nothing if there are none."""
    if not intervals:
        return Html()
    width, row, left, right, top = 590, 22, 202, 362, 4
    bottom = top + row * len(intervals)
    at_x = lambda value: round(
        left + (min(max(value, ends[0]), ends[1]) - ends[0]) / (ends[1] - ends[0]) * (right - left), 1
    )
    drawn, told = [], []
    for value in ticks(*ends):
        drawn.append(element("line", class_="grid", x1=at_x(value), x2=at_x(value), y1=top, y2=bottom))
        drawn.append(
            element(
                "text", f"{100 * value:.0f}%" if is_rate else plain(value), x=at_x(value), y=bottom + 14, class_="x"
            )
        )
    for place, (name, (value, low, high, beside)) in enumerate(intervals.items()):
        y = top + place * row + row / 2
        short = name if len(name) <= 34 else f"{name[:33]}…"
        drawn.append(element("text", element("title", name), short, x=left - 10, y=y + 3.5, class_="y"))
        if is_finite(value):
            if is_finite(low) and is_finite(high):
                drawn.append(element("line", class_="s0 range", x1=at_x(low), x2=at_x(high), y1=y, y2=y))
            drawn.append(element("circle", class_="s0 dots", cx=at_x(value), cy=y, r=4))
        spread = (
            f" {number(low, is_rate)} to {number(high, is_rate)}".replace("% to", " to")
            if is_finite(low) and is_finite(high)
            else ""
        )
        words = element("tspan", number(value, is_rate), class_="value")
        drawn.append(
            element("text", words, f"{spread}, {beside}" if is_finite(value) else f" {beside}", x=right + 12, y=y + 3.5)
        )
        told.append(f"{name} {number(value, is_rate)}{spread}")
    box = {"viewBox": f"0 0 {width} {bottom + 20}", "role": "img", "aria_label": f"{title}: {'; '.join(told)}"}
    caption = element("figcaption", element("h3", title), element("p", note))
    return element("figure", caption, element("svg", *drawn, **box), class_="narrow")


def picture(data: bytes, limits: images.Limits, side: int, name: str, style: str = "") -> Html:
    """An image file, reduced to `side` pixels; a line of text where it cannot be shown."""
    try:
        image = images.decode(data, limits, name)
    except images.ImageError as error:
        return element("p", str(error), class_="quiet")
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    source = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    drawn = element("image", href=source, width=image.width, height=image.height)
    box = f"0 0 {image.width} {image.height}"
    return element("svg", drawn, viewBox=box, role="img", aria_label=name, style=style or False)


def apart(wanted: dict[str, float], gap: float, top: float) -> dict[str, float]:
    """Heights of the names, from the top: as wanted, but `gap` apart, the push shared between those above and below."""
    pushed, last = {}, -math.inf
    for name in sorted(wanted, key=wanted.get):
        last = pushed[name] = max(wanted[name], last + gap)
    shift = sum(pushed[name] - wanted[name] for name in wanted) / len(wanted)
    return {name: y - max(0.0, min(shift, min(pushed.values()) - top)) for name, y in pushed.items()}


def power(exponent: float) -> float:
    """Ten to the exponent: from a log axis to values."""
    return 10.0**exponent


def document(title: str, *parts: Html, style: str = "") -> bytes:
    """The whole page, in UTF-8; `style` is CSS of its own. A lone surrogate, which has no UTF-8 form, becomes a question
    mark."""
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"{element('title', title)}<style>{STYLE}{style}</style></head>"
        f"<body>{element('main', *parts)}<script>{SCRIPT}</script></body></html>"
    )
    return page.encode("utf-8", "replace")


STYLE = """
:root { color-scheme: light dark; --page: #fcfbf8; --ink: #1f1e1c; --soft: #625e57; --rule: #dedad1; --panel: #f4f1ea;
  --s0: #1d5c9e; --s1: #a8430f; --s2: #23703f; --s3: #7a3d9c; --s4: #7d6100; --s5: #a02a58;
  --good: #23703f; --bad: #a82a1f; --odd: #8a5a00 }
@media screen and (prefers-color-scheme: dark) { :root { --page: #151618; --ink: #e7e4de; --soft: #a5a198;
  --rule: #35363a; --panel: #1e2023; --s0: #7db3ee;
  --s1: #f0986a; --s2: #7ccb97; --s3: #c79ae6; --s4: #d9bd5c; --s5: #f08db0;
  --good: #7ccb97; --bad: #f5938a; --odd: #e0b15c } }
* { box-sizing: border-box; margin: 0 }
body { background: var(--page); color: var(--ink); font: 16px/1.55 "Helvetica Neue", Arial, sans-serif }
main { max-width: 68rem; margin: 0 auto; padding: 3.5rem 1.5rem }
h1, h2, .lead, .prompt, .reflection .text {
  font-family: "Iowan Old Style", "Palatino Linotype", Palatino, Georgia, serif }
h1 { font-size: 2.6rem; font-weight: 500; line-height: 1.15; overflow-wrap: anywhere }
h2 { font-size: 1.55rem; font-weight: 500; margin: 3.5rem 0 1rem; padding-top: .9rem }
h2, .step { border-top: 1px solid var(--rule) }
h3 { font-size: .95rem; font-weight: 600 }
small, .quiet, figcaption p, caption, footer { color: var(--soft); font-size: .84rem }
.facts { display: flex; flex-wrap: wrap; gap: .6rem 2rem; margin: 1rem 0 2.2rem }
dt { color: var(--soft); font-size: .78rem } dd { overflow-wrap: anywhere }
.lead { font-size: 1.45rem; margin-bottom: 1rem } .lead b { font-weight: 500; white-space: nowrap }
.wide { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
caption { caption-side: bottom; text-align: left; padding-top: .5rem }
th, td { padding: .34rem 0 .34rem 2.2rem; text-align: right; border-bottom: 1px solid var(--rule); white-space: nowrap }
tbody th { text-align: left; padding-left: 0; font-weight: 400 } thead th { font-size: .84rem; font-weight: 600 }
.better, .right { color: var(--good) } .worse, .wrong { color: var(--bad) } td small { color: inherit }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 25rem), 1fr)); gap: 2rem 2.5rem }
figure { break-inside: avoid; min-width: 0 } figcaption { min-height: 2.9rem }
figure svg { display: block; width: 100%; font-size: 11px; touch-action: pan-y }
figcaption p, svg text { font-variant-numeric: tabular-nums } svg text { fill: var(--soft) }
svg .y { text-anchor: end } svg .x { text-anchor: middle } svg .lost { fill: var(--bad); font-weight: 700 }
.grid { stroke: var(--rule) } .mark { stroke: var(--soft); stroke-dasharray: 2 3 } .cursor { stroke: var(--soft) }
path { fill: none; stroke: var(--c); stroke-width: 1.8; stroke-linejoin: round } .raw { opacity: .3 }
.s0 { --c: var(--s0) } .s1 { --c: var(--s1) } .s2 { --c: var(--s2) } .s3 { --c: var(--s3) } .s4 { --c: var(--s4) }
.s5 { --c: var(--s5) } .rest { --c: var(--soft) } svg text.end, .raw, .points, .dots, .bar { fill: var(--c) }
.rest { opacity: .4 } g.s0.dots { opacity: .8 } svg text.dots { fill: var(--c); opacity: 1 }
.box { fill: none; stroke: var(--ink); stroke-dasharray: 4 3 }
.narrow { max-width: 34rem } .words th, .words td { white-space: normal; text-align: left; padding-left: .9rem;
  font-size: .84rem } .words th:first-child { padding-left: 0 } .range { stroke: var(--c); stroke-width: 3; stroke-linecap: round; opacity: .45 } .value { fill: var(--ink); font-weight: 600 }
path.s1 { stroke-dasharray: 7 3 } path.s2 { stroke-dasharray: 2 2.5 } path.s3 { stroke-dasharray: 9 3 2 3 }
.signs { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr)); gap: 1.8rem 2.2rem;
  margin: 1.2rem 0 } .signs .verdict { font-weight: 400; white-space: nowrap } .watched { color: var(--odd) }
.signs h3 { display: flex; justify-content: space-between; align-items: baseline; gap: .5rem } .signs > div { min-width: 0 }
.spark { display: block; width: 100%; margin: .35rem 0 } .spark circle { fill: var(--c) } .band { fill: var(--rule); opacity: .6 }
.advice { font-size: .88rem } .unmeasured dl { margin: .6rem 0 0 1.1rem; font-size: .84rem } .unmeasured dd { margin-bottom: .4rem }
.symbols { position: absolute } summary { cursor: pointer } summary h3 { display: inline; margin-right: .6rem }
.step { padding: .7rem 0 } .step:first-of-type { margin-top: 1rem }
article { display: grid; grid-template-columns: 15rem minmax(0, 1fr); gap: 2rem; padding: 1.6rem 0 }
article + article { border-top: 1px dotted var(--rule) } .asked svg { display: block; width: 100%; max-height: 17rem }
.asked { overflow-wrap: anywhere } .asked > * + * { margin-top: .6rem } .prompt { font-size: 1.1rem; line-height: 1.4 }
.answers details { padding: .5rem 0 } .answers details + details { border-top: 1px solid var(--rule) }
summary { font-variant-numeric: tabular-nums }
.verdicts { display: flex; flex-wrap: wrap; gap: .35rem .6rem; margin: .6rem 0 }
.verdict { border: 1px solid; border-radius: 3px; padding: 0 .45rem; font-size: .8rem } .wrong { border-style: dashed }
.verdict.open { color: var(--soft); border-style: dotted } .verdict b { font-weight: 600 }
.text { white-space: pre-wrap; overflow-wrap: anywhere; margin: .5rem 0; font-size: .92rem }
.text i { font: .76em/1 ui-monospace, Menlo, Consolas, monospace; color: var(--soft) }
.think { color: var(--soft); border-left: 2px solid var(--rule); padding-left: .9rem }
.answer { background: var(--panel); border-radius: 4px; padding: .6rem .9rem }
.outside { text-decoration: underline dotted }
.judged { overflow-wrap: anywhere } .judged .verdicts { align-items: baseline } .judged small { min-width: 0 }
.scores, .scores div, .score { display: grid; font-size: .8rem } .scores { grid-template-columns: 5.2rem 1fr }
.scores b { font-weight: 600 } .scores b:empty { display: none } .scores b:empty + div { grid-column: 1 / -1 }
.scores div { grid-template-columns: repeat(auto-fill, 9.7rem); gap: 0 .7rem }
.scores + .scores { margin-top: .15rem }
.score { grid-template-columns: 1fr auto 1.1rem; gap: .4rem; align-items: center }
.scores .verdict { justify-self: start; line-height: 1.3 }
span.bar, .bar i { display: block; width: 59px; height: 7px; color: var(--soft);
  background: repeating-linear-gradient(90deg, var(--rule) 0 5px, transparent 5px 6px) }
.better .bar, .worse .bar, .bar i { color: inherit } .bar i { --rule: currentColor; width: calc(var(--v) * 6px - 1px) }
blockquote { font-style: italic; font-size: .9rem; white-space: pre-wrap; overflow-wrap: anywhere; margin-top: .5rem }
blockquote::before { content: "“" } blockquote::after { content: "”" } h4 { font-size: .88rem; font-weight: 600 }
h4 small { font-weight: 400 } h4 .verdict { font-weight: 400 }
.attempts { list-style: none; padding: 0 0 0 .3rem; margin: .8rem 0 }
.attempts li { border-left: 2px solid var(--soft); padding: 0 0 1.3rem 1.1rem; position: relative; min-width: 0 }
.attempts li::before { content: ""; position: absolute; left: -6px; top: 6px; width: 10px; height: 10px;
  border-radius: 50%; border: 2px solid var(--soft); background: var(--soft) }
.attempts .superseded, .attempts .reflection { border-left-style: dashed }
.attempts .superseded::before, .attempts .reflection::before { background: var(--page) }
.reflection .text { font-size: 1rem }
.attempts li:last-child { border-color: transparent; padding-bottom: 0 } .attempts table { font-size: .84rem }
.config { columns: 17rem; column-gap: 2.5rem } .config > div { break-inside: avoid; padding-bottom: 1.4rem }
.config dl { display: grid; grid-template-columns: auto 1fr; gap: .1rem 1rem; font-size: .84rem }
.config dd { text-align: right }
footer ul { padding-left: 1.1rem } footer li { overflow-wrap: anywhere }
@media (max-width: 46rem) { th, td { padding-left: .7rem } th { white-space: normal } table { font-size: .9rem }
  article, .scores { grid-template-columns: 1fr } article { gap: 1rem } main { padding: 2rem 1rem } }
@media print { :root { color-scheme: light; --page: #fff } main { max-width: none; padding: 0 } body { font-size: 10pt }
  .charts { grid-template-columns: 1fr 1fr; gap: 1rem 1.5rem } h2, summary { break-after: avoid }
  article { break-inside: avoid; grid-template-columns: 11rem minmax(0, 1fr) } }
"""

# The read-out: the values nearest to the pointer, in place of the figure's note.
SCRIPT = """
for (const chart of document.querySelectorAll("svg[data-curves]")) {
  const curves = JSON.parse(chart.dataset.curves), [left, right, first, last, width] = JSON.parse(chart.dataset.frame);
  const told = chart.parentNode.querySelector("p"), note = told.textContent, cursor = chart.querySelector(".cursor");
  const move = x => { cursor.setAttribute("x1", x); cursor.setAttribute("x2", x); };
  chart.addEventListener("pointermove", event => {
    const box = chart.getBoundingClientRect(), x = (event.clientX - box.left) / box.width * width;
    const step = first + (x - left) / (right - left) * (last - first);
    const near = points => points.reduce((a, b) => Math.abs(b[0] - step) < Math.abs(a[0] - step) ? b : a);
    const at = near(curves.map(([, points]) => near(points)))[0];
    move(left + (at - first) / (last - first) * (right - left));
    told.textContent = `step ${at}: ` + curves.map(([name, points]) => `${name} ${near(points)[1]}`).join(", ");
  });
  chart.addEventListener("pointerleave", () => { told.textContent = note; move(-9); });
}
"""
