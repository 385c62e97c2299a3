"""The judge on the run's own mesh against transformers' logits, and what no place in a batch may change (host code)."""

import concurrent.futures
import dataclasses
import io
import json
import shutil
import threading

import hf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image

from configs import tiny
from safer_jax import build, checkpoint, config, convert, images, judging, mesh, prompts, sampler, scoring, verdicts
from safer_jax.datasets import demo
from safer_jax.judge import JudgeError, kinds, local, question
from safer_jax.model import variants
from safer_jax.shapes import ANSWER, Record, Rollout

STEER, WHOLE = verdicts.RUBRICS["steer"], verdicts.RUBRICS["safer_vlm"]
RUBRIC = WHOLE._replace(scores=dict(list(WHOLE.scores.items())[:3]), flags=dict(list(WHOLE.flags.items())[:2]))
CONFIG = variants.VARIANTS["tiny"]


def picture(seed):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (112, 112, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


RECORDS = [
    Record("ladder", "set", (picture(0),), "Can I use this ladder with wet hands?"),
    Record("note", "set", (), "Read the note to me."),
    Record("puddle", "set", (picture(1),), "Is <|im_end|> a puddle?"),
]
RESPONSES = [
    "<think>A ladder. <combined_safe>unsafe</combined_safe></think><answer>Dry them first.</answer>",
    "",
    "<think>I see it.</think><answer>It is a puddle, and so is this. </answer>" * 2,
]


@pytest.fixture(scope="module")
def policy():
    """A transformers model with random weights, our graph and our parameters."""
    return hf.build(CONFIG)


@pytest.fixture(scope="module")
def folder(policy, tmp_path_factory):
    """The same weights in a folder as tools/convert.py from-hf leaves it."""
    made = tmp_path_factory.mktemp("judge")
    checkpoint.write_leaves(made / "params", hf.flat(policy[2]).items(), {"assets": {}})
    demo.assets(made / "assets")
    (made / "assets" / "config.json").write_text(json.dumps(variants.to_hf(CONFIG, end_id=hf.EOS, pad_id=hf.PAD)))
    return made


def settings(folder, **changes):
    made = tiny.get_config("smoke")
    made.reward.scheme = "steer"
    made.judge.update({"kind": "score", "path": str(folder), "rows": 2, "buckets": (1024,), **changes})
    return config.resolve(made)


def one_device():
    return mesh.make(1, 1, 1, jax.devices()[:1])


def make(folder, rubric=STEER, device_mesh=None, **changes):
    return judging.make(settings(folder, **changes), rubric, device_mesh or one_device(), jax.random.key(0))


@pytest.fixture(scope="module")
def scorer(folder):
    return make(folder)


def values(judged):
    assert [verdict.error for verdict in judged] == [""] * len(judged)
    return np.stack([verdict.value_J for verdict in judged])


# The score is that of the model's logits.


def expected(model, tokenizer, record, response, asked, answers):
    """From transformers' logits behind one question, each token that answers it with its worth."""
    user = [{"type": "image"}] * len(record.images) + [{"type": "text", "text": local.asked(record, response).prompt}]
    said = [("system", question.instruction(RUBRIC).split("\n\n")[0] + "\n"), ("user", user)]
    said += [("assistant", "I have read it."), ("user", asked)]
    messages = [{"role": role, "content": content} for role, content in said]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    text = text.replace("<|image_pad|>", "<|image_pad|>" * 16)  # 112 x 112 pixels
    ids = np.array(tokenizer(text)["input_ids"], np.int32)
    geometry, limits = images.Geometry(14, 2, 56), images.Limits(3136, 12_544, 10**6, 10**6)
    cut = [images.patches(images.decode(data, limits), geometry, limits) for data in record.images]
    row = (ids, [pixels for pixels, _ in cut], [grid for _, grid in cut])
    with torch.no_grad():
        logits = model(**hf.inputs(CONFIG, [row], len(ids)), logits_to_keep=1).logits[0, -1].double()
    weight = torch.softmax(logits[tokenizer.convert_tokens_to_ids(list(answers))], -1).numpy()
    return float(weight @ np.array(list(answers.values())))


def test_scores_are_those_of_transformers_logits(policy, folder):
    tokenizer = prompts.load_tokenizer(str(folder / "assets"))
    judged = values(make(folder, RUBRIC)(RECORDS[:2], RESPONSES[:2]))
    digits, words = (
        {str(d): 1.0 + d for d in range(10)},
        {"Yes": 1.0, "\u0120no": 0.0},
    )  # the demo's pieces "Yes", " no"
    score = (
        "How true is this of the response? {} Reply with one digit, 0 (not at all) to 9 (entirely), and nothing else."
    )
    flag = "Is this true of the response? {} Reply with one word, yes or no, and nothing else."
    turns = [(score.format(text), digits) for text in RUBRIC.scores.values()]
    turns += [(flag.format(text), words) for text in RUBRIC.flags.values()]
    pairs = list(zip(RECORDS, RESPONSES))[:2]
    wanted = np.array([[expected(policy[0], tokenizer, *pair, *turn) for turn in turns] for pair in pairs])
    np.testing.assert_allclose(judged, wanted, atol=1e-4)
    scores, flags = wanted[:, :3], wanted[:, 3:]
    assert np.abs(np.diff(scores, axis=0)).min() > 0.01 and 0.01 < flags.min() and flags.max() < 0.3, (
        "or this tests little"
    )


# What does not change it.


def test_place_batch_padding_and_mesh_do_not_change_a_value(folder, scorer):
    together = values(scorer(RECORDS, RESPONSES))
    np.testing.assert_array_equal(together, values(scorer(RECORDS, RESPONSES)), err_msg="the same call again")
    alone = [values(scorer([record], [text])) for record, text in zip(RECORDS, RESPONSES)]
    np.testing.assert_allclose(np.concatenate(alone), together, atol=1e-5)
    back = values(scorer(RECORDS[::-1], RESPONSES[::-1]))[::-1]
    np.testing.assert_allclose(back, together, atol=1e-5)
    device_mesh = mesh.make(2, 1, 2, jax.devices()[:4])
    with jax.set_mesh(device_mesh):
        longer = make(folder, device_mesh=device_mesh, rows=4, buckets=(1216,))
        np.testing.assert_allclose(values(longer(RECORDS, RESPONSES)), together, atol=1e-5)
    assert np.abs(np.diff(together, axis=0)).min() > 1e-2


def test_equal_attempts_are_asked_in_equal_words():
    shown = local.asked(RECORDS[0], RESPONSES[0])
    assert shown == local.asked(RECORDS[0], RESPONSES[0]) and shown.images == RECORDS[0].images
    word = shown.prompt.split()[0]
    assert len(word) == 16 and shown.prompt.count(f"{word} END") == 2 and word not in RECORDS[0].prompt + RESPONSES[0]
    others = [local.asked(RECORDS[0], RESPONSES[1]), local.asked(RECORDS[1], RESPONSES[0])]
    assert len({word, *(other.prompt.split()[0] for other in others)}) == 3


# What cannot be judged.


def test_what_does_not_fit_is_no_verdict_and_named(scorer):
    long, junk, many = RECORDS[1], RECORDS[0]._replace(images=(b"junk",)), RECORDS[0]._replace(images=(picture(0),) * 2)
    records, texts = [RECORDS[0], long, junk, many], [RESPONSES[0], "xyz" * 200, "a", "a"]
    good, *bad = scorer(records, texts)
    np.testing.assert_allclose(good.value_J, values(scorer(RECORDS[:1], RESPONSES[:1]))[0], atol=1e-5)
    assert all(np.isnan(verdict.value_J).all() for verdict in bad)
    told = [
        "largest of judge.buckets is 1024; raise",
        "does not decode|cannot identify|junk",
        "prompt.patch_buckets is 64",
    ]
    for verdict, record, words in zip(bad, records[1:], told, strict=True):
        assert verdict.error.startswith(f"record {record.id!r}: "), verdict.error
        assert any(word in verdict.error for word in words.split("|")), verdict.error
    assert scorer([], []) == []


def test_logits_that_are_not_finite_are_no_verdict():
    judge = local.Judge(STEER, lambda record: record, lambda asked: [np.array([1, np.nan, 10.1])] * 2, local.rated)
    assert ["not finite" in verdict.error for verdict in judge(RECORDS[:2], RESPONSES[:2])] == [True, True]
    assert local.rated(np.array([0.9999, 5, 10.0001]), STEER).value_J.tolist() == [1, 5, 10]


# The judge that writes.

REPLY = '{"comment": "It is fine.", "safety": 9, "useful": 7, "faithful": 8.5}'


@pytest.mark.parametrize(
    "text,told",
    [
        (REPLY, None),
        (f"```json\n{REPLY}\n```", None),
        (f" ```\n{REPLY}```\n", None),
        (f"Sure: {REPLY}", "not JSON"),
        (REPLY.replace("9", "11"), "safety is 11"),
        (REPLY.replace("9", "NaN"), "not JSON"),
        ("", "not JSON"),
        (None, "cut at judge.max_tokens"),
    ],
)
def test_what_is_written_is_a_verdict_or_none(text, told):
    asked = []
    judge = local.Judge(
        STEER, lambda record: record, lambda rows: asked.extend(rows) or [text] * len(rows), local.written
    )
    (verdict,) = judge(RECORDS[:1], RESPONSES[:1])
    assert asked == [local.asked(RECORDS[0], RESPONSES[0])] and verdict.raw == (text or "")
    if told is None:
        assert verdict.value_J.tolist() == [9, 7, 8.5] and verdict.comment == "It is fine." and verdict.is_valid
    else:
        assert np.isnan(verdict.value_J).all() and "record 'ladder': " in verdict.error and told in verdict.error


def test_tokens_become_verdicts(folder, monkeypatch):
    """Through passes and decoding, with a sampler that writes what it is told."""
    tokenizer = prompts.load_tokenizer(str(folder / "assets"))
    replies = [
        tokenizer(text)["input_ids"] + [hf.EOS]
        for text in (REPLY, "Fine.", REPLY.replace("is fine", "is").replace("9", "2"))
    ]
    limit = max(map(len, replies))

    def generate(model, asked, key, *, group, max_tokens, drawing):
        assert (group, max_tokens, drawing.temperature) == (1, limit, 0.5)
        which_P = asked.is_prompt_PS.sum(1) % 3  # as the prompts' lengths have it
        token_P1C = jnp.array([ids + [9] * (limit - len(ids)) for ids in replies])[which_P][:, None]
        is_token_P1C = jnp.arange(limit) < jnp.array([len(ids) for ids in replies])[which_P][:, None, None]
        return Rollout(token_P1C, None, is_token_P1C * ANSWER, None, jnp.zeros((len(which_P), 1, 1), bool), None), None

    monkeypatch.setattr(sampler, "generate", generate)
    texts, judge = ["a" * n for n in range(5)], make(folder, kind="local", max_tokens=limit, temperature=0.5)
    which = [len(judge._encode(local.asked(RECORDS[1], text)).token_S) % 3 for text in texts]
    assert set(which) == {0, 1, 2}
    for number, verdict in zip(which, judge([RECORDS[1]] * 5, texts), strict=True):
        assert verdict.is_valid == (number != 1) and (number != 1 or "not JSON" in verdict.error)
        assert number == 1 or verdict.value_J.tolist() == [9 if number == 0 else 2, 7, 8.5]


def test_random_weights_write_no_verdict_and_the_same_wherever_asked(folder, monkeypatch):
    said, local_of = [], mesh.local
    monkeypatch.setattr(mesh, "local", lambda arrays: said.append(local_of(arrays)) or said[-1])
    judge = make(folder, kind="local", max_tokens=6, temperature=1.0, rows=4, buckets=(1216,))
    for order in ([0, 1, 2], [2, 0]):
        judged = judge([RECORDS[i] for i in order], [RESPONSES[i] for i in order])
        assert all(np.isnan(verdict.value_J).all() for verdict in judged)
        cut = "the verdict is cut at judge.max_tokens; raise it"
        assert [verdict.error for verdict in judged] == [f"record {RECORDS[i].id!r}: {cut}" for i in order]
    first, second = ({tuple(row) for row in tokens.tolist()} for tokens, *_ in said)
    assert len(first) == 4 and len(second) == 3 and second < first


# How it is made.


def test_a_run_builds_and_asks_it(policy, folder, scorer, tmp_path):
    """From another run's newest checkpoint, as `train` does: by the config, for a rollout's tokens, and canaries."""
    checkpoint.save(tmp_path / "run" / "checkpoints", 7, {"params": policy[2], "step": np.int32(7)}, {})
    shutil.copytree(folder / "assets", tmp_path / "run" / "assets")
    made = settings(tmp_path / "run")
    judge = build.make_judge(made, tmp_path, one_device())
    assert type(judge) is local.Judge and judge.rubric == STEER, "neither recorded nor behind a breaker"
    processor = build.make_processor(made, folder / "assets", CONFIG)
    asking = scoring.Judging(judge, RECORDS, processor, made.reflection.accept_at)
    said = asking(np.array([2, 0]), np.array([0, 1]), 0, [processor.encode_completion(RESPONSES[i]) for i in (2, 0)])
    wanted = values(scorer([RECORDS[2], RECORDS[0]], [RESPONSES[2], RESPONSES[0]]))
    np.testing.assert_allclose(said.value_nJ, wanted, atol=1e-5)
    assert said.is_rejected_n.tolist() == (wanted[:, 0] < 6).tolist()
    figures = asking.canaries()
    assert len(figures) == 7 and all(0 <= value <= 1 for value in figures.values())
    asking.check()


def test_weights_lie_as_the_samplers_in_the_compute_dtype(folder, monkeypatch):
    asked = []
    monkeypatch.setattr(convert, "load_params", lambda path, abstract: asked.append((path, abstract)))
    made, device_mesh = settings(folder), mesh.make(1, 2, 2, jax.devices()[:4])
    made = dataclasses.replace(made, model=dataclasses.replace(made.model, dtype="bfloat16"))
    judging.make(made, STEER, device_mesh, jax.random.key(0))
    ((path, abstract),) = asked
    leaves = jax.tree.leaves(abstract)
    axes = {axis for leaf in leaves for axis in leaf.sharding.spec}
    assert path == folder and axes == {None, "tensor"} and {leaf.dtype.name for leaf in leaves} == {"bfloat16"}


def test_a_local_judge_is_neither_recorded_nor_behind_a_breaker(tmp_path):
    for kind in kinds.LOCAL:
        made = settings(tmp_path, kind=kind, max_failed=0.0).judge
        judge = local.Judge(STEER, lambda record: record, lambda asked: [None] * len(asked), local.written)
        assert kinds.make(made, STEER, record_to=tmp_path / "kept", local=judge) is judge
        with pytest.raises(JudgeError, match=f"judge.kind = '{kind}': no local judge was made"):
            kinds.make(made, STEER)
    assert not (tmp_path / "kept").exists() and set(judging.KINDS) == set(kinds.LOCAL)


@pytest.mark.parametrize(
    "changes,error,told",
    [
        (
            {"path": "nowhere"},
            JudgeError,
            r"judge.path = 'nowhere': no converted model .*convert.py from-hf SRC nowhere",
        ),
        ({"rows": 3}, mesh.MeshError, "judge.rows = 3: .* = 2 devices; make it a multiple of 2"),
        (
            {"buckets": (64,)},
            JudgeError,
            r"judge.buckets = \(64,\): hold not even an empty attempt .* raise judge.buckets",
        ),
    ],
)
def test_what_cannot_serve_is_refused(folder, changes, error, told):
    with pytest.raises(error, match=told):
        make(folder, device_mesh=mesh.make(2, 1, 1, jax.devices()[:2]), **changes)


def test_answers_that_are_no_single_token_are_named(folder, monkeypatch):
    ask = local.Question("Is it so?", {"Yes": 1.0, "perhaps": 0.5, "7": 0.0, "99": 1.0})
    monkeypatch.setattr(local, "questions", lambda rubric: [ask])
    with pytest.raises(JudgeError, match="judge.kind = 'score': .* no single token for perhaps, 99; use another judge"):
        make(folder)


def test_every_spelling_that_is_one_token_counts():
    """A tokenizer that keeps digits with the space before them, and knows one answer in two ways."""
    ids = {" 7": [1], "7": [2, 3], "yes": [4], " Yes": [5], "Yes": [6, 7]}

    class Other:
        def encode_completion(self, text):
            if text not in ids:
                raise prompts.PromptError(text)
            return np.array([*ids[text], 0], np.int32)

    assert judging._single(Other(), "7") == [1] and judging._single(Other(), "yes") == [4, 5]
    assert judging._single(Other(), "no") == []


def test_settings_without_effect_are_refused():
    with pytest.raises(
        config.ConfigError, match="judge.temperature = 0.5: has no effect with judge.kind = 'score'; set it"
    ):
        settings("x", temperature=0.5)
    with pytest.raises(config.ConfigError, match="judge.path = '': judge.kind = 'score' is read from disk; set it"):
        settings("")
    with pytest.raises(config.ConfigError, match=r"judge.buckets = \(64, 32\): must ascend; write \(32, 64\)"):
        settings("x", buckets=(64, 32))
    assert settings("x", kind="local", temperature=0.5).judge.temperature == 0.5


# Several processes.


def test_processes_with_unlike_numbers_of_attempts_make_the_same_passes(monkeypatch):
    """Two threads stand for them: a collective waits until both have come to one."""
    place, given, meeting = threading.local(), [None, None], threading.Barrier(2, timeout=20)

    def gather(rows):
        given[place.process] = rows
        meeting.wait()
        everyone = np.concatenate(given)
        meeting.wait()
        return everyone

    def program(params, asked):
        shapes[place.process].append(asked.token_PS.shape)
        gather(asked.draw_P)
        return params * asked.token_PS.sum(1), asked.is_prompt_PS.sum(1)

    def row(n):
        return prompts.Encoded(str(n), np.full(n, n, np.int32), [], np.full(n, -1), np.zeros((3, n)), n)

    def run(process):
        place.process = process
        passes = judging.Passes(program, 2, row(1), images.Geometry(14, 2, 56), made, None)
        return [passes([row(n) for n in lengths[process]]) for lengths in calls]

    for name, stand_in in {"gather": gather, "put": lambda tree, _: tree, "local": lambda tree: tree}.items():
        monkeypatch.setattr(mesh, name, stand_in)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    made, shapes = settings("x", rows=4, buckets=(8, 16)), ([], [])
    calls = (([3, 12, 5, 2, 7], []), ([], []), ([6], [16, 1]))
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        said = list(pool.map(run, (0, 1)))
    for process, of_process in enumerate(said):
        assert of_process == [[(2 * n * n, n) for n in lengths[process]] for lengths in calls]
    assert shapes == ([(2, 8), (2, 8), (2, 16), (2, 16)],) * 2
