"""Attempts: groups sampled and judged, rejected rows asked again in passes of fixed sizes (host code; calls array code).

    sample -> judge -> rerun the rejected -> judge those -> ...   one `Rollout` [P, G, E], which carries its verdicts

The judge is an argument; what it is, the caller knows. Rejections are ragged over prompts, so rejected rows are taken
out of their groups, run in passes of a few fixed row counts (nothing recompiles, and 3 rows of 64 do not pay for 64),
and written back.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from safer_jax import mesh as mesh_lib
from safer_jax.sampler import Cache
from safer_jax.shapes import EMPTY, Layout, Prompts, Rejected, Rollout, Written


class Judged(NamedTuple):
    """n attempts judged: numbers, NaN where there is no verdict, and which are to be asked again."""

    value_nJ: np.ndarray
    is_rejected_n: np.ndarray


class JudgeAttempts(Protocol):
    """Judges attempt `attempt` of rollouts [prompt_n, rollout_n] (this process's), each given by its answer's tokens."""

    def __call__(
        self, prompt_n: np.ndarray, rollout_n: np.ndarray, attempt: int, tokens: Sequence[np.ndarray]
    ) -> Judged: ...


class Programs(NamedTuple):
    """The compiled parts of a rollout and the shapes they were compiled for; without reruns `sample` is all of it.

    sample: (params, prompts) -> (Rollout with E = 1, the cache, or None where nothing continues it)
    rerun: (params, prompts, cache, rejected, start, goes_on=) -> (Written [B, ...], is_cut_B, cache or None)
    grow: cache -> cache with room for all of `layout`
    instruction_KF, is_instruction_KF: the K instructions' ids, right-aligned; a row takes one by its draw and rollout
    header: ids between reflection and correction
    row_counts: ascending; a pass has one of these numbers of rows
    warmed: shapes of prompts for which every row count has been compiled
    """

    sample: Callable[[Any, Prompts], tuple[Rollout, Cache | None]]
    layout: Layout
    rerun: Callable[..., tuple[Written, jax.Array, Cache | None]] | None = None
    grow: Callable[[Cache], Cache] | None = None
    instruction_KF: np.ndarray | None = None
    is_instruction_KF: np.ndarray | None = None
    header: np.ndarray | None = None
    row_counts: tuple[int, ...] = ()
    warmed: frozenset | set = frozenset()


def rollout(
    programs: Programs,
    params: Any,
    prompts: Prompts,
    per_pass: int,
    mesh: jax.sharding.Mesh,
    judge: JudgeAttempts | None = None,
) -> Rollout:
    """This process's rows in, its rows out (host arrays).

    Passes of `per_pass` prompts over all processes keep one compiled program and bound the cache; 0 means one pass.
    Raises ValueError when the passes do not come out even.
    """
    count = prompts.token_PS.shape[0]
    per_pass = per_pass // jax.process_count() or count
    if count % per_pass:
        raise ValueError(f"{count} prompts do not divide into passes of {per_pass}; change sampler.prompts_per_pass")
    passes = []
    for begin in range(0, count, per_pass):
        part = Prompts(*(value[begin : begin + per_pass] for value in prompts))
        passes.append(_pass(programs, params, part, mesh, judge and _shifted(judge, begin)))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *passes)


def _shifted(judge: JudgeAttempts, begin: int) -> JudgeAttempts:
    return lambda prompt_n, *rest: judge(prompt_n + begin, *rest)


def _pass(programs: Programs, params: Any, prompts: Prompts, mesh: jax.sharding.Mesh, judge: JudgeAttempts | None):
    """One pass of prompts: answers, then for every attempt more the rejected rows, in passes of their own."""
    layout, asked = programs.layout, mesh_lib.put(prompts, mesh)
    first, cache = programs.sample(params, asked)
    rows = mesh_lib.local(first)
    if judge is None:
        return rows
    rows = _widen(rows, layout)
    rows, is_rejected_PG = _judge(rows, 0, np.ones(rows.token_PGC.shape[:2], bool), judge)
    if layout.reruns > 1:
        cache = programs.grow(cache)
    if layout.reruns:
        _warm_up(programs, params, asked, cache, mesh)
    for attempt in range(1, layout.reruns + 1):
        goes_on = attempt < layout.reruns
        for rejected in _rejected(programs, rows, is_rejected_PG, prompts.draw_P, attempt):
            placed = mesh_lib.replicate(rejected, mesh)
            written, is_cut_B, kept = programs.rerun(
                params, asked, cache, placed, layout.start(attempt), goes_on=goes_on
            )
            cache = kept if goes_on else cache
            _write_back(rows, layout, attempt, rejected, *jax.tree.map(np.asarray, (written, is_cut_B)))
        rows, is_rejected_PG = _judge(rows, attempt, is_rejected_PG, judge)
    return rows


def _warm_up(programs: Programs, params: Any, asked: Prompts, cache: Cache, mesh: jax.sharding.Mesh) -> None:
    """Compile for every row count at the first prompts of a shape: so many rejections may first come hours later."""
    shape = tuple(value.shape for value in asked)
    if shape in programs.warmed:
        return
    prompts, group = cache.own.is_filled_PGM.shape[:2]
    for size in programs.row_counts:
        zero = np.zeros(size, np.int32)
        forced_BF = programs.instruction_KF[zero]
        nobody = Rejected(
            zero + prompts * group, zero > 0, zero, zero > 0, zero, forced_BF, programs.is_instruction_KF[zero]
        )
        for goes_on in {False, programs.layout.reruns > 1}:
            placed, start = mesh_lib.replicate(nobody, mesh), programs.layout.start(1)
            programs.rerun(params, asked, cache, placed, start, goes_on=goes_on)
    programs.warmed.add(shape)


def _widen(first: Rollout, layout: Layout) -> Rollout:
    """The answers in arrays with room for every attempt; a verdict's room is made by the first judging."""
    slots, attempts = layout.completion - layout.answer, layout.reruns
    wider = lambda value, room: np.pad(value, [(0, 0), (0, 0), (0, room)])
    tokens = {name: wider(getattr(first, name), slots) for name in ("token_PGC", "logp_PGC", "role_PGC", "attempt_PGC")}
    return first._replace(**tokens, is_cut_PGE=wider(first.is_cut_PGE, attempts))


def _judge(rows: Rollout, attempt: int, is_new_PG: np.ndarray, judge: JudgeAttempts) -> tuple[Rollout, np.ndarray]:
    """The attempts that were just made, judged: (the rows with their verdicts, which are rejected).

    Every process calls its judge, for gathering is collective, even with no attempt of its own.
    """
    prompt_n, rollout_n = np.nonzero(is_new_PG)
    is_answer_PGC = rows.is_answer_PGC & (rows.attempt_PGC == attempt)
    tokens = [rows.token_PGC[p, g][is_answer_PGC[p, g]] for p, g in zip(prompt_n, rollout_n)]
    judged = judge(prompt_n, rollout_n, attempt, tokens)
    verdict_PGEJ = rows.verdict_PGEJ
    if attempt == 0:
        verdict_PGEJ = np.full((*rows.is_cut_PGE.shape, judged.value_nJ.shape[-1]), np.nan, np.float32)
    verdict_PGEJ[prompt_n, rollout_n, attempt] = judged.value_nJ
    is_rejected_PG = np.zeros_like(is_new_PG)
    is_rejected_PG[prompt_n, rollout_n] = judged.is_rejected_n
    return rows._replace(verdict_PGEJ=verdict_PGEJ), is_rejected_PG


def _rejected(
    programs: Programs, rows: Rollout, is_rejected_PG: np.ndarray, draw_P: np.ndarray, attempt: int
) -> Iterator[Rejected]:
    """The rejected rows of all processes, in passes; every process makes the same ones."""
    position_C = np.arange(rows.token_PGC.shape[-1])
    last_PG = np.where(rows.role_PGC != EMPTY, position_C, 0).argmax(-1)
    token_PG = np.take_along_axis(rows.token_PGC, last_PG[..., None], -1)[..., 0]
    rollout_G = np.arange(token_PG.shape[1])
    text_PG = (draw_P[:, None] + rollout_G) % len(programs.instruction_KF)
    own = (is_rejected_PG, token_PG, rows.is_cut_PGE[..., attempt - 1], (rows.role_PGC != EMPTY).sum(-1), text_PG)
    is_rejected, token, is_cut, length, text = (value.reshape(-1) for value in mesh_lib.gather(own))
    for rows_of_pass, size in passes(np.flatnonzero(is_rejected), programs.row_counts):
        filling = size - len(rows_of_pass)
        row = np.pad(rows_of_pass, (0, filling), constant_values=len(is_rejected)).astype(np.int32)
        chosen = np.minimum(row, len(is_rejected) - 1)
        yield Rejected(
            row_B=row,
            is_row_B=row < len(is_rejected),
            token_B=token[chosen],
            is_cut_B=is_cut[chosen],
            length_B=length[chosen].astype(np.int32),
            forced_BF=programs.instruction_KF[text[chosen]],
            is_forced_BF=programs.is_instruction_KF[text[chosen]],
        )


def passes(rows: np.ndarray, row_counts: Sequence[int]) -> Iterator[tuple[np.ndarray, int]]:
    """Cut rows into passes of the given sizes, ascending: (rows of a pass, its size), few filling rows.

    The smallest size that holds the rest, unless more than half of it would only fill and a smaller size can be filled.
    """
    while len(rows):
        holding = next((size for size in row_counts if size >= len(rows)), row_counts[-1])
        filled = [size for size in row_counts if size <= len(rows)]
        size = filled[-1] if filled and holding > 2 * len(rows) else holding
        yield rows[:size], size
        rows = rows[size:]


def _write_back(
    rows: Rollout, layout: Layout, attempt: int, rejected: Rejected, written: Written, is_cut_B: np.ndarray
) -> None:
    """Put what was written into this process's own rows."""
    prompts, group = rows.token_PGC.shape[:2]
    own_B = rejected.row_B - jax.process_index() * prompts * group
    is_own_B = rejected.is_row_B & (own_B >= 0) & (own_B < prompts * group)
    p_n, g_n = np.divmod(own_B[is_own_B], group)
    slots = slice(layout.start(attempt), layout.start(attempt) + layout.rerun)
    for name, value in zip(("token_PGC", "logp_PGC", "role_PGC"), written, strict=True):
        getattr(rows, name)[p_n, g_n, slots] = value[is_own_B]
    rows.attempt_PGC[p_n, g_n, slots] = attempt
    rows.is_cut_PGE[p_n, g_n, attempt] = is_cut_B[is_own_B]
