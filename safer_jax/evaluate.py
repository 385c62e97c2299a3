"""Scores of responses: the table of a rollout's rewards, its figures, and an evaluation without update (host code)."""

import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from safer_jax import config as config_lib
from safer_jax import data, images, mesh, prompts, rewards, sampler
from safer_jax.shapes import FORCED, UNSAFE, Prompts, Record, Rollout

NOT_REWARDS = ("is_unsafe", "tokens", "is_cut")  # what `score` adds to the scheme's terms
SAVED_SIDE = 448  # pixels; images beside saved rollouts are reduced to this


class Scored(NamedTuple):
    """A rollout in words and numbers: one text per row and named figures, [P][G] and {name: [P, G]}."""

    responses: list[list[str]]
    terms: dict[str, np.ndarray]


def score(rollout: Rollout, records: Sequence[Record], processor: prompts.Processor, settings: config_lib.Reward):
    """Decode and reward every row. Beside the scheme's terms: `tokens`, `is_cut`, `is_unsafe` (the record's truth)."""
    scheme = rewards.SCHEMES[settings.scheme]
    opening = prompts.THINK if processor.force_think else ""
    responses, rows = [], []
    for token_GC, role_GC, record in zip(rollout.token_PGC, rollout.role_PGC, records, strict=True):
        texts = [opening + processor.decode(token_C[role_C > FORCED]) for token_C, role_C in zip(token_GC, role_GC)]
        responses.append(texts)
        rows.append([scheme.terms(text, record, None, settings) for text in texts])
    terms = {name: np.array([[row[name] for row in group] for group in rows], np.float32) for name in rows[0][0]}
    is_unsafe_P = np.array([record.combine_tag == UNSAFE for record in records])
    terms["is_unsafe"] = np.broadcast_to(is_unsafe_P[:, None], terms["reward"].shape).astype(np.float32)
    terms["tokens"] = (rollout.role_PGC > FORCED).sum(-1).astype(np.float32)
    terms["is_cut"] = rollout.is_cut_PGE[..., -1].astype(np.float32)
    return Scored(responses, terms)


def figures(terms: dict[str, np.ndarray]) -> dict[str, float]:
    """Means over rows; refusals apart for rows that want one and rows that do not. Arrays of any one shape."""
    is_unsafe = terms["is_unsafe"] > 0
    mean = lambda name: float(terms[name].mean())
    among = lambda name, where: float(terms[name][where].mean()) if where.any() else float("nan")
    named = {
        "visual_accuracy": "image_right",
        "text_accuracy": "text_right",
        "combined_accuracy": "combine_right",
        "cut": "is_cut",
    }
    plain = [name for name in terms if name not in (*named.values(), "refusal", "is_unsafe")]
    return {
        **{name: mean(name) for name in plain},
        **{name: mean(term) for name, term in named.items()},
        "refusal": among("refusal", is_unsafe),
        "over_refusal": among("refusal", ~is_unsafe),
    }


def evaluate(
    sample: Callable[[Any, Prompts], Rollout],
    params: Any,
    feed: data.Feed,
    rows: Sequence[int],
    config: config_lib.Config,
    device_mesh: jax.sharding.Mesh,
) -> tuple[dict[str, float], list[Record], Scored]:
    """Answer `rows` of the feed's source once each and score the answers: (figures of all rows, this process's records
    and their scores).

    `sample` is jitted with G = 1. `rows` is the same on every process; the last pass is filled up with a row that does
    not count.
    """
    count, process, processes = config.eval.prompts, jax.process_index(), jax.process_count()
    records, responses, parts = [], [], []
    for start in range(0, len(rows), count):
        number = np.arange(start, start + count)
        row = [int(rows[min(n, len(rows) - 1)]) for n in number]
        asked = feed.ask(row, row, process, processes)
        rollout = sampler.rollout(sample, params, asked.prompts, 0, device_mesh)
        scored = score(rollout, asked.records, feed.processor, config.reward)
        is_row = np.array_split(number < len(rows), processes)[process]
        records += [record for record, keep in zip(asked.records, is_row) if keep]
        responses += [texts for texts, keep in zip(scored.responses, is_row) if keep]
        parts.append({**scored.terms, "is_row": is_row[:, None]})
    terms = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return figures(_rows(mesh.gather(terms))), records, Scored(responses, _rows(terms))


def _rows(terms: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: term[terms["is_row"][:, 0]] for name, term in terms.items() if name != "is_row"}


def save_terms(folder: pathlib.Path, step: int, records: Sequence[Record], scored: Scored) -> None:
    """Every row's terms, to evaluations/{step}.{process}.jsonl: what a paired comparison of two policies needs."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"{step:06d}.{jax.process_index()}.jsonl", "w", encoding="utf-8") as file:
        for p, record in enumerate(records):
            terms = {name: round(float(value[p, 0]), 6) for name, value in scored.terms.items()}
            file.write(json.dumps({"id": record.id, **terms}) + "\n")


def rewind(folder: pathlib.Path, step: int) -> None:
    """Remove the rollouts saved beyond `step`: a resumed run appends them again."""
    for path in folder.glob("*.jsonl"):
        if int(path.stem) > step:
            path.unlink()


def save_rollouts(
    folder: pathlib.Path,
    step: int,
    stage: str,
    split: str,
    records: Sequence[Record],
    scored: Scored,
    limits: images.Limits,
    count: int,
    advantage_PG: np.ndarray | None = None,
) -> None:
    """Append the first `count` rows (spread over prompts) to rollouts/{step}.jsonl, their images beside it."""
    pictures = folder / "images"
    pictures.mkdir(parents=True, exist_ok=True)
    group = scored.terms["reward"].shape[1]
    with open(folder / f"{step:06d}.jsonl", "a", encoding="utf-8") as file:
        for number in range(min(count, len(records) * group)):
            # Whole groups, so that a reader sees what the advantages compare.
            p, g = divmod(number, group)
            record = records[p]
            row = {
                "step": step,
                "stage": stage,
                "split": split,
                "id": record.id,
                "images": [_save_preview(image, pictures, limits, record.id) for image in record.images],
                "prompt": record.prompt,
                "response": scored.responses[p][g],
                "terms": {n: round(float(v[p, g]), 6) for n, v in scored.terms.items() if n not in NOT_REWARDS},
                "advantage": None if advantage_PG is None else round(float(advantage_PG[p, g]), 6),
                "tags": {"image": record.image_tag, "text": record.text_tag, "combine": record.combine_tag},
                "tokens": int(scored.terms["tokens"][p, g]),
                "is_cut": bool(scored.terms["is_cut"][p, g]),
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _save_preview(image: bytes, folder: pathlib.Path, limits: images.Limits, name: str) -> str:
    """Write a small PNG once, named by the image's hash; its path relative to the rollouts' folder."""
    path = folder / f"{hashlib.sha256(image).hexdigest()[:16]}.png"
    if not path.exists():
        picture = images.decode(image, limits, name)
        picture.thumbnail((SAVED_SIDE, SAVED_SIDE))
        partial = path.with_suffix(".partial")  # a kill leaves no half picture that the next run would keep
        picture.save(partial, "PNG")
        os.replace(partial, path)
    return f"{folder.name}/{path.name}"
