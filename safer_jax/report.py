"""One self-contained page of a run: before and after, curves, sample rollouts, configuration (host code).

`python -m safer_jax.report RUN` reads RUN/metrics.jsonl, RUN/config.json and RUN/rollouts/ and writes RUN/report.html,
at any moment of a run. What cannot be shown (a damaged line, a missing image) is named at the foot of the page.
Everything read is untrusted text: `element` escapes each string which is not already markup.
"""

import argparse
import base64
import io
import json
import math
import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from safer_jax import images, page, responses
from safer_jax.page import Html, element, number

STEPS_SHOWN, PROMPTS_SHOWN = 24, 32  # saved steps on the page, prompts a step
IMAGE_SIDE, IMAGE_BYTES = 512, 65_536  # an image of more bytes is embedded at this many pixels a side
IMAGE_LIMITS = images.Limits(min_pixels=1, max_pixels=1, max_bytes=2**25, max_source_pixels=2**26)

METRIC = {"step": int, "stage": str, "time": (int, float)}
ROLLOUT = {"step": int, "stage": str, "split": str, "id": str, "prompt": str, "response": str}
ROLLOUT_OPTIONAL = {"images": list, "terms": dict, "tags": dict, "advantage": (int, float), "tokens": (int, float)}


class Chart(NamedTuple):
    """Which figures of a stage share one set of axes."""

    title: str
    stage: str
    names: tuple[str, ...]
    note: str = ""
    scale: str = ""  # as of page.line_chart


REWARD = ("reward", "format", "tag", "behaviour")
ACCURACY = ("combined_accuracy", "visual_accuracy", "text_accuracy")
REFUSAL = ("refusal", "over_refusal")
LEARNING = (
    Chart("Reward in training", "grpo", REWARD, "mean over the rollouts of a step, with its terms"),
    Chart("Reward on the test split", "eval", REWARD, "the same figures on held-out rows"),
    Chart("Tags right in training", "grpo", ACCURACY, "share of rollouts, by modality", "rate"),
    Chart("Tags right on the test split", "eval", ACCURACY, "share of rows, by modality", "rate"),
    Chart("Refusals in training", "grpo", REFUSAL, "share of unsafe rows refused, of safe rows refused", "rate"),
    Chart("Refusals on the test split", "eval", REFUSAL, "share of unsafe rows refused, of safe rows refused", "rate"),
    Chart("Warm start: supervised loss", "sft", ("loss",), "nats a token of the reference responses"),
    Chart("Reward spread in training", "grpo", ("reward_std",), "standard deviation, what GRPO learns from"),
)
HEALTH = (
    Chart("KL to the reference", "grpo", ("kl",), "nats a token"),
    Chart("Entropy", "grpo", ("entropy",), "nats a sampled token"),
    Chart("Clip fraction", "grpo", ("clip_low", "clip_high"), "share of tokens whose ratio is clipped"),
    Chart("Largest ratio", "grpo", ("ratio_max",), "policy to old policy, over the tokens of a step"),
    Chart(
        "Sampler to trainer gap", "grpo", ("gap_mean", "gap_max"), "distance of their log-probabilities, in nats", "log"
    ),
    Chart("Gradient norm", "grpo", ("grad_norm",), "before clipping"),
    Chart("Response length", "grpo", ("tokens",), "tokens, mean of a step"),
    Chart("Cut responses", "grpo", ("cut",), "share ended by the length limit"),
    Chart("Dead groups", "grpo", ("dead_groups",), "groups with no spread of reward, hence no gradient"),
    Chart("Seconds a step", "grpo", ("seconds", "seconds_sample", "seconds_reward", "seconds_update"), "by stage"),
    Chart("Compilations after warm-up", "grpo", ("compiles",), "should stay at zero"),
)
BOOKKEEPING = {"step", "stage", "time", "when", "epoch"}
LABELS = {
    **{name: name.removesuffix("_accuracy") for name in ACCURACY},
    **{name: name.split("_", 1)[1] for name in ("gap_mean", "gap_max", "clip_low", "clip_high")},
    **{f"seconds_{stage}": stage for stage in ("sample", "reward", "update")},
    "seconds": "whole step",
    "lr": "learning rate",
    "grad_norm": "gradient norm",
    "tokens_per_s": "tokens a second",
}
STAGES = {"sft": "warm start", "grpo": "GRPO", "eval": "test split"}

# The headline table: name, label, is a rate, and which direction is better (0: neither).
FIGURES = (
    ("reward", "Mean reward", False, 1),
    ("format", "Format valid", True, 1),
    ("combined_accuracy", "Combined tag right", True, 1),
    ("visual_accuracy", "Visual tag right", True, 1),
    ("text_accuracy", "Text tag right", True, 1),
    ("refusal", "Unsafe rows refused", True, 1),
    ("over_refusal", "Safe rows refused (over-refusal)", True, -1),
    ("tokens", "Tokens a response", False, 0),
)
MOMENTS = {"before": "Before training", "warm": "After warm start", "after": "After GRPO"}
TAGS = {"visual": "image", "text": "text", "combined": "combine"}  # how the page and how the record name a modality
# A response's parts. A missing <think> is no error of form, so all up to </think> is thinking.
SECTION = re.compile(
    r"(?P<think>(?:(?!<answer>).)*?</think>|\s*<think>(?:(?!<answer>).)*)|(?P<answer>\s*<answer>.*?(?:</answer>|\Z))"
    r"|(?P<outside>.+?(?=<answer>|\Z))",
    re.IGNORECASE | re.DOTALL,
)
MARKUP = re.compile(r"(</?(?:think|answer|visual_safe|text_safe|combined_safe)>)", re.IGNORECASE)


def read_lines(path: Path, kinds: dict, optional: dict, notes: list[str]) -> list[dict]:
    """The whole records of a JSON Lines file. A line that is damaged, or lacks a field, is named in `notes`."""
    rows = []
    for count, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            notes.append(f"{path.name}, line {count}: not a whole JSON record, left out")
            continue
        row = row if isinstance(row, dict) else {}
        wrong = [name for name, kind in kinds.items() if not isinstance(row.get(name), kind)]
        wrong += [name for name, kind in optional.items() if not isinstance(row.get(name, None), (kind, type(None)))]
        if wrong:
            notes.append(f"{path.name}, line {count}: no usable {', '.join(wrong)}, left out")
        else:
            rows.append(row)
    return rows


def timeline(records: list[dict], notes: list[str]) -> tuple[list[dict], float]:
    """The records that stand, and the seconds run. A resumed run goes back and counts finished steps again: from the
    first step that comes twice, what the interrupted attempt wrote is void, and the pause between them was not run."""
    key = lambda record: (record["stage"], record.get("when"))
    kept, last, seconds, before = [], {}, 0.0, math.nan
    for record in records:
        step, now = record["step"], record["time"]
        if step <= last.get(key(record), -1):
            # An evaluation repeated at its own step does not void the update that led to that step.
            bound = step + 1 if record["stage"] == "eval" else step
            stays = [old for old in kept if old["step"] < bound and (old["step"] < step or key(old) != key(record))]
            notes.append(f"resumed at step {step}: {len(kept) - len(stays)} records of the earlier attempt left out")
            kept, last = stays, {key(old): old["step"] for old in stays}
        elif now > before:
            seconds += now - before
        kept.append(record)
        last[key(record)], before = step, now
    return kept, seconds


def points(records: list[dict], stage: str, name: str) -> list[tuple[int, Any]]:
    """(step, value) of a figure, in order of steps."""
    found = [(r["step"], r[name]) for r in records if r["stage"] == stage and isinstance(r.get(name), (int, float))]
    return sorted(found, key=lambda point: point[0])


def chart_sections(records: list[dict], terms: set[str], notes: list[str]) -> Html:
    """All curves. Figures no chart names are shown too: a reward term with the reward, anything else on its own."""
    curves = {}
    for stage in STAGES:
        names = dict.fromkeys(name for record in records if record["stage"] == stage for name in record)
        curves |= {(stage, n): c for n in names if n not in BOOKKEEPING and (c := points(records, stage, n))}
    for (stage, name), curve in curves.items():
        if lost := [step for step, value in curve if not page.is_finite(value)]:
            notes.append(f"{stage} {name}: {len(lost)} values not finite, first at step {lost[0]}")
    charted = {(chart.stage, name) for chart in LEARNING + HEALTH for name in chart.names}
    extra = [pair for pair in curves if pair not in charted]
    grown = {stage: tuple(n for s, n in extra if s == stage and n in terms) for stage in STAGES}
    learning = [c._replace(names=c.names + grown[c.stage]) if c.names == REWARD else c for c in LEARNING]
    other = [Chart(label(n).capitalize(), s, (n,), STAGES[s]) for s, n in extra if s == "sft" or n not in grown[s]]
    mark = max((record["step"] for record in records if record["stage"] == "sft"), default=0)
    sections = []
    for title, charts in (("Learning", learning), ("Health", HEALTH), ("Other figures", other)):
        drawn = [draw(chart, curves, mark) for chart in charts]
        if any(drawn):
            sections.append(element("section", element("h2", title), element("div", *drawn, class_="charts")))
    empty = element("section", element("h2", "Learning"), element("p", "No step has been logged yet."))
    return Html("".join(sections)) or empty


def draw(chart: Chart, curves: dict[tuple[str, str], list], mark: int) -> Html:
    """The chart with those of its figures that the run has."""
    present = {label(name): curves[chart.stage, name] for name in chart.names if (chart.stage, name) in curves}
    return page.line_chart(chart.title, present, chart.note, chart.scale, mark)


def label(name: str) -> str:
    return LABELS.get(name, name.replace("_", " "))


def picture(run: Path, name: str, title: str, symbols: dict[str, Html], notes: list[str]) -> Html:
    """An image of the run's folder, embedded in `symbols` once however often it is shown; a failure is a note."""
    try:
        if name not in symbols:
            symbols[name] = embed(run, name, f"image-{len(symbols)}")
    except (OSError, ValueError) as error:
        notes.append(str(error))
        return element("p", f"{title} cannot be shown", class_="quiet")
    id, box = re.match(r'<symbol id="([^"]*)" viewBox="([^"]*)"', symbols[name]).groups()
    return element("svg", element("use", href=f"#{id}"), viewBox=box, role="img", aria_label=title)


def embed(run: Path, name: str, id: str) -> Html:
    """A symbol that holds the image. Raises OSError or ValueError: outside the folder, missing, broken."""
    path = next((p for p in (run / "rollouts" / name, run / name) if p.is_file()), run / name)
    if not path.resolve().is_relative_to(run.resolve()):
        raise ValueError(f"image {name}: outside the run's folder")
    data = path.read_bytes()
    image = images.decode(data, IMAGE_LIMITS, f"image {name}")
    kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
    if len(data) > IMAGE_BYTES or not data.startswith((b"\x89PNG", b"\xff\xd8")):
        image.thumbnail((IMAGE_SIDE, IMAGE_SIDE))
        buffer, kind = io.BytesIO(), "jpeg"
        image.save(buffer, "JPEG", quality=85)
        data = buffer.getvalue()
    width, height = image.size
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    content = element("image", href=source, width=width, height=height, preserveAspectRatio="none")
    return element("symbol", content, id=id, viewBox=f"0 0 {width} {height}")


def verbatim(response: str) -> list[Html]:
    """The response's text, nothing hidden: thinking, answer and what stands outside as blocks, the tags set apart."""
    blocks = []
    for part in SECTION.finditer(response):
        if text := part.group().strip():
            pieces = [element("i", piece) if i % 2 else piece for i, piece in enumerate(MARKUP.split(text))]
            blocks.append(element("div", *pieces, class_=f"text {part.lastgroup}"))
    return blocks or [element("p", "(empty response)", class_="quiet")]


def verdicts(row: dict) -> Html:
    """Each modality's tag as the reward reads it, beside the true one: right, wrong, missing or not to be judged."""
    said, chips = responses.parse(row["response"]), []
    for label, key in TAGS.items():
        tag, truth = getattr(said, f"{key}_tag") or "no tag", (row.get("tags") or {}).get(key)
        kind = "open" if truth not in ("safe", "unsafe") else "right" if tag == truth else "wrong"
        text = {"open": f" {tag} (truth unknown)", "right": f" ✓ {tag}", "wrong": f" ✗ {tag}, is {truth}"}[kind]
        chips.append(element("span", element("b", label), text, class_=f"verdict {kind}"))
    return element("p", *chips, class_="verdicts")


def rollout_card(rows: list[dict], run: Path, symbols: dict[str, Html], notes: list[str]) -> Html:
    """One prompt and the responses of its group, best first; the best and the worst are unfolded."""
    row = rows[0]
    asked = [element("p", element("b", row["split"]), f" {row['id']}", class_="quiet")]
    for count, name in enumerate(row.get("images") or [], 1):
        asked.append(picture(run, str(name), f"Image {count} of {row['id']}", symbols, notes))
    tags = row.get("tags") or {}
    truth = element("p", "Truth: " + ", ".join(f"{label} {tags.get(key, '?')}" for label, key in TAGS.items()))
    asked += [element("p", row["prompt"], class_="prompt"), element("div", truth, class_="quiet")]
    reward = lambda row: value if page.is_finite(value := (row.get("terms") or {}).get("reward")) else -math.inf
    answers = []
    for place, answer in enumerate(sorted(rows, key=reward, reverse=True)):
        facts = [f"{label(n)} {page.plain(v)}" for n, v in (answer.get("terms") or {}).items() if n != "reward"]
        if answer.get("advantage") is not None:
            facts.insert(0, f"advantage {page.change(answer['advantage'])}")
        facts.append(f"{answer.get('tokens', '–')} tokens{', cut at the limit' * bool(answer.get('is_cut'))}")
        score = element("b", f"reward {page.plain(reward(answer))}")
        summary = element("summary", score, " ", element("small", " · ".join(facts)))
        is_open = place in (0, len(rows) - 1) and "open"
        answers.append(element("details", summary, verdicts(answer), *verbatim(answer["response"]), open=is_open))
    return element("article", element("div", *asked, class_="asked"), element("div", *answers, class_="answers"))


def rollout_section(run: Path, rows: list[dict], notes: list[str]) -> Html:
    """The saved rollouts by step, evaluation rows first, the last step unfolded."""
    steps = sorted({row["step"] for row in rows})
    count = min(len(steps), STEPS_SHOWN)
    shown = [steps[round(i * (len(steps) - 1) / max(1, count - 1))] for i in range(count)]
    if len(shown) < len(steps):
        notes.append(f"rollouts of {len(steps) - len(shown)} of {len(steps)} saved steps")
    symbols, folds = {}, []
    for step in shown:
        groups = {}
        for row in sorted((row for row in rows if row["step"] == step), key=lambda row: row["stage"] != "eval"):
            groups.setdefault((row["stage"], row["split"], row["id"]), []).append(row)
        cards = [rollout_card(group, run, symbols, notes) for group in list(groups.values())[:PROMPTS_SHOWN]]
        if len(groups) > PROMPTS_SHOWN:
            notes.append(f"rollouts of step {step}: {len(groups) - PROMPTS_SHOWN} of {len(groups)} prompts")
        told = element("small", f"{len(groups)} prompts, {sum(map(len, groups.values()))} responses")
        summary = element("summary", element("h3", f"Step {step:,}"), told)
        folds.append(element("details", summary, *cards, class_="step", open=step == shown[-1] and "open"))
    lead = (
        "The best and the worst response of each prompt are unfolded." if folds else "No rollouts have been saved yet."
    )
    hidden = element("svg", *symbols.values(), width=0, height=0, class_="symbols", aria_hidden="true")
    return element("section", element("h2", "Rollouts"), element("p", lead, class_="quiet"), hidden, *folds)


def headline(run: Path, config: dict, records: list[dict], seconds: float) -> Html:
    """What was run, how far it came, and the test split before and after."""
    get = lambda part, name, default="?": config[part].get(name) if isinstance(config.get(part), dict) else default
    steps = [sorted({r["step"] for r in records if r["stage"] == stage}) for stage in ("sft", "grpo")]
    warm, final = steps[0][-1] if steps[0] else 0, steps[1][-1] if steps[1] else 0
    final -= warm if steps[1] and steps[1][0] > warm else 0  # one numbering over both stages
    last = max((record["time"] for record in records), default=None)
    facts = {
        "Policy": f"Qwen2.5-VL {get('model', 'variant')}, {get('model', 'path') or 'random weights'}",
        "Data": f"{get('data', 'name')} {get('data', 'path', '')}",
        "Steps": f"{warm:,} of {get('sft', 'steps')} warm start, {final:,} of {get('grpo', 'steps')} GRPO",
        "Time": f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02} min {int(seconds % 60):02} s",
        "Last record": datetime.fromtimestamp(last, UTC).strftime("%d %b %Y, %H:%M UTC") if last else "none yet",
    }
    facts = element(
        "dl", *(element("div", element("dt", k), element("dd", v)) for k, v in facts.items()), class_="facts"
    )
    title = element("h1", config.get("name") or run.resolve().name)
    tests = {record.get("when"): record for record in records if record["stage"] == "eval"}
    columns = [(label, tests[when]) for when, label in MOMENTS.items() if when in tests]
    if "during" in tests and "after" not in tests:
        columns.append((f"At step {tests['during']['step']:,}", tests["during"]))
    if not columns:
        return element("header", title, facts, element("p", "No evaluation has been recorded yet.", class_="lead"))
    rows, titles = [], [label for label, _ in columns]
    for name, label, is_rate, better in FIGURES:
        values = [record.get(name) for _, record in columns]
        cells = [element("td", number(value, is_rate)) for value in values]
        if len(values) > 1:
            change = values[-1] - values[-2] if page.is_finite(values[-1]) and page.is_finite(values[-2]) else math.nan
            word = "better" if change * better > 0 else "worse" if change * better < 0 else ""
            cells.append(element("td", page.change(change, is_rate), " ", element("small", word), class_=word))
        rows.append(element("tr", element("th", label, scope="row"), *cells))
    titles += ["Change"] * (len(titles) > 1)
    head = element("tr", element("td"), *(element("th", text, scope="col") for text in titles))
    caption = element(
        "caption",
        "Figures of the test split. Change: the last against the one before it, of shares in percentage points.",
    )
    table = element("table", caption, element("thead", head), element("tbody", *rows))
    lead = " → ".join(number(record.get("reward")) for _, record in columns)
    lead = element("p", "Mean test reward ", element("b", lead), class_="lead")
    return element("header", title, facts, lead, element("div", table, class_="wide", tabindex=0))


def config_section(config: dict) -> Html:
    """The resolved configuration, a block for each of its parts."""
    parts = {"run": {name: value for name, value in config.items() if not isinstance(value, dict)}}
    parts |= {name: value for name, value in config.items() if isinstance(value, dict)}
    blocks = []
    for name, part in parts.items():
        pairs = ((key, value if isinstance(value, str) and value else json.dumps(value)) for key, value in part.items())
        fields = [field for key, value in pairs for field in (element("dt", key), element("dd", value))]
        blocks.append(element("div", element("h3", name), element("dl", *fields)))
    return element("section", element("h2", "Configuration"), element("div", *blocks, class_="config"))


def write(run_folder: str | os.PathLike) -> Path:
    """Writes run_folder/report.html from what the run has left so far, and returns its path.

    Raises FileNotFoundError where the folder holds neither metrics.jsonl nor config.json.
    """
    run, notes, config, records = Path(run_folder), [], {}, []
    if not (run / "metrics.jsonl").is_file() and not (run / "config.json").is_file():
        raise FileNotFoundError(
            f"{run} holds no metrics.jsonl and no config.json; give the --workdir of a training run"
        )
    try:
        config = dict(json.loads((run / "config.json").read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        notes.append(f"config.json: {error}")
    if (run / "metrics.jsonl").is_file():
        records = read_lines(run / "metrics.jsonl", METRIC, {}, notes)
    records, seconds = timeline(records, notes)
    files = sorted((run / "rollouts").glob("*.jsonl"))
    rows = [row for path in files for row in read_lines(path, ROLLOUT, ROLLOUT_OPTIONAL, notes)]
    terms = {name for row in rows for name in row.get("terms") or {}}
    parts = [headline(run, config, records, seconds), chart_sections(records, terms, notes)]
    parts += [rollout_section(run, rows, notes), config_section(config)]
    left_out = element("ul", *(element("li", note) for note in notes or ["nothing"]))
    parts.append(element("footer", element("h2", "Left out of this page"), left_out))
    draft = run / "report.html.tmp"
    draft.write_bytes(page.document(run.resolve().name, *parts))
    return draft.replace(run / "report.html")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Writes RUN/report.html, one self-contained page of a training run.")
    parser.add_argument("run", help="the --workdir of a training run, finished or not")
    print(write(parser.parse_args().run))
