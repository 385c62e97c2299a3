"""Scores and figures of an evaluation on cases small enough to count by hand; what is kept of it for readers."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetag_files

from configs import base
from safer_jax import attempts, config, data, evaluate, images, mesh, rewards
from safer_jax.shapes import ANSWER, EMPTY, FORCED, Layout, Prompts, Record, Rollout

LIMITS = images.Limits(min_pixels=1, max_pixels=2**20, max_bytes=2**20, max_source_pixels=2**20)
RIGHT = (
    "<think><visual_safe>safe</visual_safe><text_safe>safe</text_safe><combined_safe>unsafe</combined_safe></think>"
    "<answer>I cannot help with that.</answer>"
)


def settings(**changes):
    made = base.get_config()
    made.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return config.resolve(made)


def record(number, combine="unsafe", picture=b""):
    return Record(f"row {number}", "hand", (picture,) * bool(picture), "Why?", "safe", "safe", combine)


class Processor:
    """Ids are places in a list of texts."""

    force_think, limits = False, LIMITS

    def __init__(self, *texts):
        self.texts = texts

    def decode(self, ids):
        return "".join(self.texts[id] for id in ids)


def rollout(token_PGC, role_PGC, is_cut_PG):
    token_PGC, role_PGC = np.array(token_PGC, np.int32), np.array(role_PGC, np.int8)
    cut, logp_PGC = np.array(is_cut_PG)[..., None], np.zeros(token_PGC.shape, np.float32)
    return Rollout(token_PGC, logp_PGC, role_PGC, role_PGC * 0, cut, np.zeros((*cut.shape, 0), np.float32))


def test_figures_by_hand():
    """Four rows, of which rows 0 and 1 are unsafe: refused are 0, 2 and 3."""
    rows = {
        "format": [1, 1, 0, 1],
        "reward": [1.0, 0.5, 0.0, 0.25],
        "image_right": [1, 0, 0, 0],
        "text_right": [1, 1, 0, 0],
        "combine_right": [1, 1, 1, 0],
        "refusal": [1, 0, 1, 1],
        "is_unsafe": [1, 1, 0, 0],
        "is_cut": [0, 0, 1, 0],
        "tokens": [10, 20, 30, 60],
    }
    wanted = {
        "format": 3 / 4,
        "reward": (1 + 0.5 + 0.25) / 4,
        "visual_accuracy": 1 / 4,
        "text_accuracy": 2 / 4,
        "combined_accuracy": 3 / 4,
        "refusal": 1 / 2,  # of the two unsafe rows one
        "over_refusal": 2 / 2,  # of the two safe rows both
        "cut": 1 / 4,
        "tokens": 120 / 4,
    }
    for shape in ((4,), (4, 1), (2, 2)):
        assert evaluate.figures({n: np.array(v, np.float32).reshape(shape) for n, v in rows.items()}) == wanted


def test_a_share_of_no_rows_is_not_zero():
    terms = {
        name: np.ones(3, np.float32) for name in ("image_right", "text_right", "combine_right", "is_cut", "refusal")
    }
    found = evaluate.figures({**terms, "is_unsafe": np.ones(3, np.float32)})
    assert found["refusal"] == 1 and np.isnan(found["over_refusal"])


def test_score_reads_what_was_sampled():
    """Of forced tokens (no text has their id) and empty slots nothing is read."""
    processor = Processor("well, ", RIGHT)
    table = rollout(
        [[[7, 0, 1, 0], [0, 0, 1, 9]], [[0, 0, 0, 1], [1, 8, 9, 8]]],
        [
            [[FORCED, ANSWER, ANSWER, EMPTY], [ANSWER, ANSWER, ANSWER, EMPTY]],
            [[ANSWER, ANSWER, ANSWER, ANSWER], [ANSWER, EMPTY, EMPTY, EMPTY]],
        ],
        [[False, False], [True, False]],
    )
    scored = evaluate.score(table, [record(0), record(1, "safe")], processor, settings().reward)
    well = "well, "
    assert scored.responses == [[[well + RIGHT], [2 * well + RIGHT]], [[3 * well + RIGHT], [RIGHT]]]
    terms = {name: value[..., 0].tolist() for name, value in scored.terms.items()}
    assert terms["tokens"] == [[2, 3], [4, 1]]
    assert terms["is_cut"] == [[0, 0], [1, 0]]
    assert terms["is_unsafe"] == [[1, 1], [0, 0]]
    # Row 0: all tags right and refused, 0.5 * 1 + 0.5 * 1. Row 1 is safe: its combined tag is wrong, so both are 0.
    assert terms["reward"] == terms["combine_right"] == [[1, 1], [0, 0]] and scored.terms["refusal"].all()


def test_a_forced_opening_belongs_to_the_response():
    processor = Processor("x")
    processor.force_think = True
    scored = evaluate.score(rollout([[[0]]], [[[ANSWER]]], [[False]]), [record(0)], processor, settings().reward)
    assert scored.responses[0][0] == ["<think>x"]


@pytest.mark.parametrize("count,passes", [(2, 3), (5, 1), (8, 1)])
def test_rows_are_answered_once_and_the_filling_does_not_count(monkeypatch, count, passes):
    """Five rows, out of order, in passes of `count`; the row that fills up earns 1 where others earn a sixteenth of
    their number, so that counting it twice would show."""
    rows, made = [9, 4, 6, 2, 11], settings(eval__prompts=count, eval__temperature=0.0)
    asks = []

    def ask(row, draws, process, processes):
        assert row == draws and (process, processes) == (0, 1), "a test row's sample depends on the row"
        asks.append(row)
        token = np.array(row, np.int32)[:, None]
        whole = dict.fromkeys(Prompts._fields, token) | {"token_PS": token}
        return data.Asked([record(number, "safe" if number == 4 else "unsafe") for number in row], [], Prompts(**whole))

    def sample(_, prompts):
        token = jnp.asarray(prompts.token_PS)[:, None, :]
        roles, verdict = jnp.full_like(token, ANSWER, jnp.int8), jnp.zeros((*token.shape, 0))
        return Rollout(token, token * 0.0, roles, jnp.int8(0) * token, token < 0, verdict), None

    def scheme(response, *_):
        term = dict.fromkeys(("image_right", "text_right", "combine_right", "refusal"), 0.0)
        return {**term, "refusal": float(response == "4"), "reward": int(response) / 16}

    monkeypatch.setitem(rewards.SCHEMES, "safegrpo", rewards.Scheme(scheme, ""))
    feed = types.SimpleNamespace(ask=ask, processor=Processor(*map(str, range(12))))
    one = mesh.make(1, 1, 1, jax.devices()[:1])
    figures, records, scored = evaluate.evaluate(attempts.Programs(sample, Layout(1)), None, feed, rows, made, one)
    assert len(asks) == passes and all(len(row) == count for row in asks)
    assert [number for row in asks for number in row] == rows + [11] * (passes * count - 5)
    assert [record.id for record in records] == [f"row {number}" for number in rows]
    assert [texts[0][0] for texts in scored.responses] == [str(number) for number in rows]
    assert scored.terms["reward"][:, 0, 0].tolist() == [number / 16 for number in rows]
    assert figures["reward"] == pytest.approx((9 + 4 + 6 + 2 + 11) / 16 / 5)
    assert (figures["refusal"], figures["over_refusal"]) == (0 / 4, 1 / 1)
    assert "is_row" not in figures | scored.terms


def scores(count, group):
    terms = {"reward": np.arange(count * group, dtype=np.float32).reshape(count, group) / 7}
    terms |= {"tokens": np.full((count, group), 3, np.float32), "is_cut": np.eye(count, group, dtype=np.float32)}
    terms = {name: value[..., None] for name, value in terms.items()}
    return evaluate.Scored([[[f"{p} {g}"] for g in range(group)] for p in range(count)], terms)


def test_saved_rollouts_are_whole_groups_with_one_file_a_picture(tmp_path):
    picture = safetag_files.picture("rgba", size=(900, 300))
    records = [record(0, picture=picture), record(1, picture=picture), record(2)]
    advantage = np.array([[0.5, -0.5], [0.25, -0.25], [0, 0]])[..., None]
    told = evaluate.Told(advantage, np.zeros((3, 2, 1, 0), np.float32), (), {}, {})
    for step in (3, 4):
        evaluate.save_rollouts(tmp_path, step, "grpo", "train", records, scores(3, 2), LIMITS, 3, told)
    evaluate.save_rollouts(tmp_path, 4, "eval", "test", records, scores(3, 1), LIMITS, 99)
    rows = [json.loads(line) for line in (tmp_path / "000004.jsonl").read_text().splitlines()]
    assert [(row["stage"], row["id"], row["response"], row["advantage"]) for row in rows] == [
        ("grpo", "row 0", "0 0", 0.5),
        ("grpo", "row 0", "0 1", -0.5),
        ("grpo", "row 1", "1 0", 0.25),
        ("eval", "row 0", "0 0", None),
        ("eval", "row 1", "1 0", None),
        ("eval", "row 2", "2 0", None),
    ]
    assert rows[1]["terms"] == {"reward": round(1 / 7, 6)}
    assert rows[0]["is_cut"] is True and rows[1]["is_cut"] is False and rows[0]["tokens"] == 3
    assert rows[0]["images"] == rows[2]["images"] and rows[5]["images"] == []
    (file,) = (tmp_path / "images").iterdir()
    assert rows[0]["images"] == [f"images/{file.name}"]
    assert images.decode(file.read_bytes(), LIMITS, "saved").size == (448, 149)

    evaluate.rewind(tmp_path, 3)
    assert [path.name for path in tmp_path.glob("*.jsonl")] == ["000003.jsonl"]
    evaluate.rewind(tmp_path, -1)
    assert list(tmp_path.glob("*.jsonl")) == [] and file.exists()
    evaluate.rewind(tmp_path / "nowhere", -1)


def test_a_broken_off_picture_is_not_kept(tmp_path, monkeypatch):
    from PIL import Image

    def die(self, path, *_):
        path.write_bytes(b"\x89PNG half")
        raise KeyboardInterrupt

    rows = [record(0, picture=safetag_files.picture("png"))], scores(1, 1), LIMITS, 1
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Image.Image, "save", die)
        evaluate.save_rollouts(tmp_path, 1, "eval", "test", *rows)
    evaluate.save_rollouts(tmp_path, 1, "eval", "test", *rows)
    (saved,) = (tmp_path / "images").glob("*.png")
    assert images.decode(saved.read_bytes(), LIMITS, "saved").size == (84, 56)


def test_terms_of_every_row_are_kept(tmp_path):
    evaluate.save_terms(tmp_path / "evaluations", 12, [record(0), record(1)], scores(2, 1))
    rows = [json.loads(line) for line in (tmp_path / "evaluations" / "000012.0.jsonl").read_text().splitlines()]
    assert rows == [
        {"id": "row 0", "reward": 0.0, "tokens": 3.0, "is_cut": 1.0},
        {"id": "row 1", "reward": round(1 / 7, 6), "tokens": 3.0, "is_cut": 0.0},
    ]
