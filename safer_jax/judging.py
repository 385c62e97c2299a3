"""The judge on the run's own mesh: a checkpoint asked in passes of one size on all processes (host code; calls array code).

Beside the policy stand the judge's weights, laid out as the sampler's copy: whole over `data` and `fsdp`, cut over
`tensor`, in the compute dtype, all through the run.
"""

import functools
import json
import math
import pathlib
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from safer_jax import config as config_lib
from safer_jax import convert, images, mesh, prompts, sampler
from safer_jax.judge import JudgeError, local, question
from safer_jax.model import variants, vlm
from safer_jax.prompts import Encoded, Processor
from safer_jax.shapes import EMPTY, Prompts, Record
from safer_jax.verdicts import Rubric


class Form(NamedTuple):
    """Questions as token ids: J questions in F slots, A ids with which some question may be answered.

    token_JF: a question's turns, ending at slot F-2; the last slot is the answer's
    is_token_JF: True at a question's tokens
    answer_A: ids; a spelling of an answer is one id
    worth_JA: what an answer to a question is worth; -inf where the id is no answer to it
    """

    token_JF: np.ndarray
    is_token_JF: np.ndarray
    answer_A: np.ndarray
    worth_JA: np.ndarray


def rate(model: vlm.Vlm, asked: Prompts, form: Form) -> Float[Array, "P J"]:
    """The expected worth of the next token after each question, its probabilities renormalised over the answers.

    Pure. The J questions are a group: image, request and response go through the network once for all of them.
    """
    spread = lambda value_JF: jnp.broadcast_to(jnp.asarray(value_JF), (asked.token_PS.shape[0], *value_JF.shape))
    hidden_PJD = model(asked, spread(form.token_JF), spread(form.is_token_JF))[:, :, -1]
    head_AD = model.head_VD()[form.answer_A]
    logits_PJA = jnp.einsum("pjd,ad->pja", hidden_PJD, head_AD, preferred_element_type=jnp.float32)
    is_answer_JA = np.isfinite(form.worth_JA)
    probability_PJA = jax.nn.softmax(jnp.where(is_answer_JA, logits_PJA, -jnp.inf), axis=-1)
    return (probability_PJA * np.where(is_answer_JA, form.worth_JA, 0.0)).sum(-1)


class Passes:
    """Runs `program(params, prompts) -> arrays [P, ...]` over any number of prompts, `judge.rows` at a time.

    The programs are collectives and processes have unlike numbers of attempts, so all make the passes of the one that
    has the most, at shapes chosen from all; `filler` is what stands where a process has none left. It is an attempt
    too, and a judge that writes soon ends on it.
    """

    def __init__(
        self,
        program: Callable[[Any, Prompts], tuple[jax.Array, ...]],
        params: Any,
        filler: Encoded,
        geometry: images.Geometry,
        config: config_lib.Config,
        device_mesh: jax.sharding.Mesh,
    ):
        self._program, self._params, self._filler, self._geometry = program, params, filler, geometry
        self._config, self._mesh = config, device_mesh

    def __call__(self, rows: Sequence[Encoded]) -> list[tuple[np.ndarray, ...]]:
        """The program's arrays of each row, as tuples. Every process calls it, with rows or without."""
        own = self._config.judge.rows // jax.process_count()
        order = sorted(range(len(rows)), key=lambda i: len(rows[i].token_S))  # like lengths share a pass
        parts = [order[start : start + own] for start in range(0, len(rows), own)]
        count = int(mesh.gather(np.array([len(parts)])).max())
        if count == 0:
            return []
        parts += [[]] * (count - len(parts))
        filled = [[rows[i] for i in part] + [self._filler] * (own - len(part)) for part in parts]
        needs = np.array([np.max([need(row, self._geometry) for row in chosen], axis=0) for chosen in filled])
        said = {}
        for part, chosen, needed in zip(parts, filled, mesh.gather(needs[None]).max(0), strict=True):
            slots = fit(needed, self._config)
            # The randomness of what is written comes from what is asked, wherever it stands.
            draws = [zlib.crc32(row.token_S.tobytes()) % 2**31 for row in chosen]
            collated = prompts.collate(chosen, draws, *slots, self._geometry)
            arrays = mesh.local(self._program(self._params, mesh.put(collated, self._mesh)))
            said |= zip(part, zip(*arrays))
        return [said[i] for i in range(len(rows))]


def need(row: Encoded, geometry: images.Geometry) -> tuple[int, int]:
    """(tokens, patch slots) of a prompt."""
    return len(row.token_S), sum(images.window_slots(grid, geometry)[1] for _, grid in row.images)


def fit(needed: Sequence[int], config: config_lib.Config, name: str = "the judge's batch") -> tuple[int, int]:
    """The (prompt slots, patch slots) that hold so many. Raises PromptError naming what is too long and the setting."""
    return (
        prompts.bucket(needed[0], config.judge.buckets, "judge.buckets", name),
        prompts.bucket(needed[1], config.prompt.patch_buckets, "prompt.patch_buckets", name),
    )


def make(config: config_lib.Config, rubric: Rubric, device_mesh: jax.sharding.Mesh, key: jax.Array) -> local.Judge:
    """The judge that the folder `judge.path` holds, in the form `judge.kind`; `key` is the root of what it samples.

    Images are limited as the policy's are. Calling the judge is a collective of all processes. Raises JudgeError where
    the folder or its tokenizer cannot serve or the buckets hold no attempt, MeshError for rows that the mesh cannot cut,
    ConfigError for image limits that do not fit the judge, ConvertError or CheckpointError for weights.
    """
    settings, folder = config.judge, pathlib.Path(config.judge.path).expanduser()
    _check_rows(settings.rows, device_mesh)
    try:
        model_config = variants.from_hf(json.loads((folder / "assets" / "config.json").read_text()))
        tokenizer = prompts.load_tokenizer(str(folder / "assets"))
    except (OSError, ValueError) as error:
        raise JudgeError(
            f"judge.path = {settings.path!r}: no converted model ({error}); write one with "
            f"`python tools/convert.py from-hf SRC {settings.path}`, or correct the path"
        ) from error
    vision, limits = model_config.vision, config.prompt
    config_lib.check_images(config, vision.patch, vision.merge, vision.window_slots)
    system, program_of, read = KINDS[settings.kind]
    processor = Processor(
        tokenizer,
        images.Limits(limits.min_pixels, limits.max_pixels, limits.max_image_bytes, limits.max_source_pixels),
        images.Geometry(vision.patch, vision.merge, vision.window),
        system=system(rubric),
        guide="",
    )

    def encode(record: Record) -> Encoded:
        encoded = processor.encode(record)
        fit(need(encoded, processor.geometry), config, "the judge's prompt")
        return encoded

    try:
        filler = encode(local.asked(Record("filler", "", (), ""), "", rubric.is_of_request))
    except prompts.PromptError as error:
        raise JudgeError(f"judge.buckets = {settings.buckets!r}: hold not even an empty attempt ({error})") from error
    graph, abstract = vlm.abstract(model_config, jnp.dtype(config.model.dtype))
    placed = mesh.shardings(abstract, device_mesh, mesh.SAMPLE)
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, placed)
    program, decode = program_of(settings, rubric, processor, model_config.text.vocab)
    rows = NamedSharding(device_mesh, PartitionSpec(("data", "fsdp")))
    run = jax.jit(lambda params, asked, key: program(nnx.merge(graph, params), asked, key), out_shardings=rows)
    passes = Passes(
        functools.partial(run, key=key),
        convert.load_params(folder, abstract),
        filler,
        processor.geometry,
        config,
        device_mesh,
    )
    return local.Judge(rubric, encode, lambda asked: [decode(*arrays) for arrays in passes(asked)], read)


def form(rubric: Rubric, processor: Processor) -> Form:
    """The rubric's questions for `rate`. Raises JudgeError naming answers that the tokenizer writes in no single token."""
    asked = local.questions(rubric)
    ready = processor.encode_completion(local.READY)
    turns = [np.concatenate([ready, processor.encode_turn(text)]) for text, _ in asked]
    ids = {answer: _single(processor, answer) for _, worth in asked for answer in worth}
    if missing := [answer for answer in ids if not ids[answer]]:
        raise JudgeError(
            f"judge.kind = 'score': the tokenizer of judge.path has no single token for {', '.join(missing)}; use another "
            "judge, or kind 'local'"
        )
    answer_A = np.array([one for of_answer in ids.values() for one in of_answer], np.int32)
    of_A = [answer for answer, of_answer in ids.items() for _ in of_answer]
    worth_JA = np.array([[worth.get(answer, -np.inf) for answer in of_A] for _, worth in asked], np.float32)
    width = max(map(len, turns))
    return Form(
        np.stack([np.pad(turn, (width - len(turn), 1)) for turn in turns]),
        np.stack([np.pad(np.ones(len(turn), bool), (width - len(turn), 1)) for turn in turns]),
        answer_A,
        worth_JA,
    )


def _single(processor: Processor, answer: str) -> list[int]:
    """The ids that are a spelling of an answer; each of its probabilities counts."""
    found = []
    for text in local.spellings(answer):
        try:
            ids = processor.encode_completion(text)[:-1].tolist()  # without the end token
        except prompts.PromptError:  # a character that the tokenizer does not know
            continue
        found += ids if len(ids) == 1 else []
    return found


def _writer(settings: config_lib.Judge, rubric: Rubric, processor: Processor, vocab: int):
    """The form "local": (program, its arrays of a row to the text, None where the limit cut it)."""
    drawing = sampler.Drawing(settings.temperature, processor.end_ids, processor.banned_V(vocab))

    def write(model: vlm.Vlm, asked: Prompts, key: jax.Array) -> tuple[jax.Array, ...]:
        said, _ = sampler.generate(model, asked, key, group=1, max_tokens=settings.max_tokens, drawing=drawing)
        return said.token_PGC[:, 0], said.role_PGC[:, 0] != EMPTY, said.is_cut_PGE[:, 0, 0]

    return write, lambda token_C, is_token_C, is_cut: None if is_cut else processor.decode(token_C[is_token_C])


def _scorer(settings: config_lib.Judge, rubric: Rubric, processor: Processor, vocab: int):
    """The form "score": (program, its array of a row as it is)."""
    questions = form(rubric, processor)
    return lambda model, asked, _: (rate(model, asked, questions),), lambda value_J: value_J


def _check_rows(rows: int, device_mesh: jax.sharding.Mesh) -> None:
    ways = math.lcm(device_mesh.shape["data"] * device_mesh.shape["fsdp"], jax.process_count())
    if rows % ways:
        raise mesh.MeshError(
            f"judge.rows = {rows}: cannot be cut over mesh.data x mesh.fsdp = {ways} devices; make it a multiple of {ways}"
        )


# By judge.kind: the system text, what makes the program, what reads a verdict.
KINDS = {
    "local": (question.instruction, _writer, local.written),
    "score": (local.grading, _scorer, local.rated),
}
