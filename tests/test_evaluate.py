"""Benchmarks answered, judged and counted: whatever a kill leaves goes on, and what is told is what was answered."""

import csv
import dataclasses
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import types

import benchmark_files
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import tiny_runs

from safer_jax import attempts, benchmarking, build, data, evaluate, mesh, policy, prompts, runtime
from safer_jax import config as config_lib
from safer_jax.benchmarks import answers, results
from safer_jax.command import ExitCode
from safer_jax.datasets import RowError, demo, prepared
from safer_jax.judge import JudgeError, endpoint, local, rules
from safer_jax.judge.breaker import JudgeDown
from safer_jax.model import variants
from safer_jax.shapes import ANSWER, EMPTY, Layout, Record, Rollout
from safer_jax.verdicts import RUBRICS, failed

ROOT = pathlib.Path(__file__).parents[1]
RUBRIC = RUBRICS["evaluation"]
SETTINGS = {"eval.prompts": 4, "sampler.max_tokens": 96, "prompt.buckets": (64, 128, 256)}
SLOTS = 96
SORRY = "<think>It looks risky.</think><answer>I'm sorry, I can't help with that.</answer>"


def settings(**changes):
    """Of configs/tiny.py, with changes such as eval_judge__kind="rules"."""
    made = tiny_runs.tiny.get_config()
    made.update_from_flattened_dict(SETTINGS | {name.replace("__", "."): value for name, value in changes.items()})
    return config_lib.resolve(made)


@pytest.fixture(scope="module")
def processor():
    made = settings()
    with tempfile.TemporaryDirectory() as folder:
        build.write_assets(made, pathlib.Path(folder))
        return build.make_processor(made, pathlib.Path(folder), variants.VARIANTS["tiny"])


def text_of(record, row, rollout=0):
    """What the policy of these tests answers: right, a refusal, nothing, right in turn; the last rollout refuses."""
    return (record.reference, SORRY, "", record.reference)[row % 4] if rollout < 2 else SORRY


class Policy:
    """Stands in for `policy.load`; counts what it was asked."""

    def __init__(self, processor, source, group=1):
        self.processor, self.source, self.group, self.asked = processor, source, group, []
        self.origin = policy.Origin("runs", 3, "ab" * 32)

    def __call__(self, *_):
        return policy.Policy(self.processor, attempts.Programs(self.sample, Layout(SLOTS)), None, self.origin)

    def sample(self, _, asked):
        rows = np.asarray(asked.draw_P).tolist()
        self.asked.append(rows)
        shape = (len(rows), self.group, SLOTS)
        token, role, cut = np.zeros(shape, np.int32), np.full(shape, EMPTY, np.int8), np.zeros((*shape[:2], 1), bool)
        for p, row in enumerate(rows):
            for g in range(self.group):
                ids = self.processor.encode_completion(text_of(self.source[row], row, g))
                cut[p, g] = len(ids) > SLOTS
                token[p, g, : len(ids)], role[p, g, : len(ids)] = ids[:SLOTS], ANSWER
        verdict = np.zeros((*shape[:2], 1, 0), np.float32)
        rollout = Rollout(token, np.zeros(shape, np.float32), role, role * 0, cut, verdict)
        return Rollout(*map(jnp.asarray, rollout)), None


@pytest.fixture
def fake(processor, monkeypatch):
    tiny_runs.on_one_device(monkeypatch)
    made = Policy(processor, demo.Source(demo.build(), "test"))
    monkeypatch.setattr(policy, "load", made)
    return made


def arguments(out, *more):
    return evaluate.parser().parse_args(["--config=none", "--benchmark=demo", "--limit=11", f"--out={out}", *more])


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# ---- answers


def test_every_row_is_answered_once_with_what_belongs_to_it(fake, tmp_path):
    evaluate.run(arguments(tmp_path), settings())
    found = answers.read(tmp_path / "demo")
    assert list(found) == [(row, 0) for row in range(11)] and len(lines(tmp_path / "demo" / "answers.jsonl")) == 11
    for (row, _), one in found.items():
        record = fake.source[row]
        assert one.response == text_of(record, row)
        assert one.record == record._replace(images=()) and len(one.images) == 1 and len(one.images[0]) == 64
        assert one.tokens == len(fake.processor.encode_completion(one.response)) and not one.is_cut
    assert [len(set(rows)) for rows in fake.asked] == [4, 4, 3] and all(len(rows) == 4 for rows in fake.asked)
    evaluate.run(arguments(tmp_path), settings())
    assert len(fake.asked) == 3, "nothing was left to answer"


def test_a_kill_at_any_byte_neither_loses_nor_repeats_an_answer(fake, tmp_path, capsys):
    evaluate.run(arguments(tmp_path), settings())
    file = tmp_path / "demo" / "answers.jsonl"
    whole, reports = file.read_bytes(), (tmp_path / "results.json").read_bytes()
    ends = [at + 1 for at, byte in enumerate(whole) if byte == 10]
    for cut in (0, 1, ends[0] - 1, *ends[:2], ends[4] + 7, ends[-2] + 100, len(whole) - 1, len(whole)):
        file.write_bytes(whole[:cut])
        fake.asked.clear()
        evaluate.run(arguments(tmp_path), settings())
        assert file.read_bytes() == whole
        assert len(fake.asked) == 3 - sum(end <= cut for end in (ends[3], ends[7], ends[10]))
        assert (tmp_path / "results.json").read_bytes() == reports
    assert "the last line is not whole and is removed" in capsys.readouterr().err
    damaged = whole[: ends[4] + 20] + b"\x00\xff" + whole[ends[4] + 22 :]
    file.write_bytes(damaged)
    evaluate.run(arguments(tmp_path), settings())
    assert list(answers.read(tmp_path / "demo")) == [(row, 0) for row in range(11)], "the damaged line's row came again"
    assert "line 6: left out, it cannot be read" in capsys.readouterr().err


def test_a_signal_stops_between_passes_and_the_same_command_goes_on(fake, tmp_path, monkeypatch):
    evaluate.run(arguments(tmp_path / "whole"), settings(eval_judge__kind="rules"))
    asked = settings(eval_judge__kind="rules")
    for stops in range(8):
        fake.asked.clear()
        with monkeypatch.context() as patch:
            patch.setattr(runtime.Stopper, "requested", lambda self, step: True)
            try:
                evaluate.run(arguments(tmp_path / "stopped"), asked)
            except runtime.Stopped as stop:
                assert "the same command goes on" in str(stop) and len(fake.asked) <= 1
            else:
                break
    assert stops == 4, "three passes of answers, one of verdicts"
    for path in (tmp_path / "whole").rglob("*.json*"):
        theirs = tmp_path / "stopped" / path.relative_to(tmp_path / "whole")
        if "predictions" not in path.parts:
            assert path.read_bytes() == theirs.read_bytes(), path


def test_several_answers_to_a_row(fake, tmp_path):
    fake.group = 3
    with pytest.raises(config_lib.ConfigError, match="--samples: greedy answers are all alike"):
        evaluate.run(arguments(tmp_path, "--samples=3"), settings())
    evaluate.run(arguments(tmp_path, "--samples=3"), settings(eval__temperature=1.0))
    found = answers.read(tmp_path / "demo")
    assert list(found) == [(row, rollout) for row in range(11) for rollout in range(3)]
    assert all(found[row, 2].response == SORRY for row in range(11))
    made = json.loads((tmp_path / "results.json").read_text())["benchmarks"]["demo"]["report"]
    assert (made["rows"], made["groups"]) == (33, 11)
    exported = tmp_path / "demo" / "predictions"
    for rollout, model in enumerate(("runs-3-answer-1", "runs-3-answer-2", "runs-3-answer-3")):
        samples = lines(next((exported / "lmms_eval" / model).glob("*_samples_demo.jsonl")))
        said = [found[row, rollout].response for row in range(11)]
        assert [one.get("resps", one["filtered_resps"]) for one in samples] == said
        with open(exported / "vlmevalkit" / model / f"{model}_demo.tsv", newline="") as file:
            assert len(list(csv.DictReader(file, delimiter="\t"))) == 11
    assert not (exported / "lmms_eval" / "runs-3").exists()


def test_other_settings_do_not_go_on(fake, tmp_path):
    evaluate.run(arguments(tmp_path), settings())
    evaluate.run(arguments(tmp_path), settings(grpo__steps=9, judge__deadline=5.0, mesh__data=1))
    fake.origin = fake.origin._replace(step=4)
    other = settings(sampler__max_tokens=95, prompt__guide="think")
    with pytest.raises(answers.AnswersError) as error:
        evaluate.run(arguments(tmp_path, "--limit=12"), other)
    for line in ("limit: 11 -> 12", "max_tokens: 96 -> 95", "guide: 'none' -> 'think'", "step 3", "-> 'runs, step 4"):
        assert line in str(error.value)
    assert "choose another --out" in str(error.value)
    (tmp_path / "demo" / "settings.json").unlink()
    with pytest.raises(answers.AnswersError, match=r"holds answers but no settings.json"):
        evaluate.run(arguments(tmp_path), settings())


def test_changed_rows_do_not_go_on(fake, tmp_path, monkeypatch):
    evaluate.run(arguments(tmp_path), settings())
    read = demo.Source.__getitem__
    monkeypatch.setattr(demo.Source, "__getitem__", lambda self, row: read(self, row)._replace(prompt=f"Is it {row}?"))
    with pytest.raises(answers.AnswersError, match="rows_sha256: "):
        evaluate.run(arguments(tmp_path), settings())


def test_every_setting_that_matters_has_a_name():
    names = list(config_lib.flatten(settings()))
    assert [word for word in benchmarking.MATTERS if not any(name.startswith(word) for name in names)] == []


def test_bad_rows_are_named_and_counted_up_to_the_budget(fake, tmp_path, monkeypatch, capsys):
    read = demo.Source.__getitem__

    def broken(self, row):
        if row == 2:
            raise RowError("demo, row 2: the image is not there; put it back")
        record = read(self, row)
        return record._replace(images=(record.images[0][:100],)) if row == 5 else record

    monkeypatch.setattr(demo.Source, "__getitem__", broken)
    with pytest.raises(data.DataError, match=r"2 bad rows in the first 6, data.bad_rows allows 1"):
        evaluate.run(arguments(tmp_path), settings(data__bad_rows=1))
    evaluate.run(arguments(tmp_path), settings(data__bad_rows=2))
    assert {row for row, _ in answers.read(tmp_path / "demo")} == set(range(11)) - {2, 5}
    kept = json.loads((tmp_path / "results.json").read_text())["benchmarks"]["demo"]["left_out"]
    assert len(kept) == 2 and "row 2: the image is not there" in kept[0] and "demo/test/000005" in kept[1]
    assert all(reason in capsys.readouterr().err for reason in kept[:1])
    page = (tmp_path / "evaluation.html").read_text()
    assert "the image is not there" in page and "Rows left out: demo 2" in page
    assert "**Rows left out: demo 2**" in (tmp_path / "table.md").read_text()


def test_what_cannot_be_asked_is_told_before_anything_is_answered(fake, tmp_path):
    benchmark_files.siuo(tmp_path / "SIUO")
    with pytest.raises(data.DataError, match="siuo_mcqa/test: 1 bad rows .* prompt.buckets end at 64"):
        evaluate.run(
            arguments(tmp_path / "out", "--benchmark=demo,siuo_mcqa", f"--data=siuo={tmp_path / 'SIUO'}"),
            settings(prompt__buckets=(64,)),
        )
    assert fake.asked == [] and not (tmp_path / "out").exists()


def test_ids_tell_rows_apart(fake, tmp_path, monkeypatch):
    read = demo.Source.__getitem__
    monkeypatch.setattr(demo.Source, "__getitem__", lambda self, row: read(self, row)._replace(id=f"demo/{row // 2}"))
    with pytest.raises(data.DataError, match="11 rows have 6 ids; each row needs its own"):
        evaluate.run(arguments(tmp_path), settings())


def test_rows_of_a_pass_share_their_buckets():
    made = settings(prompt__buckets=(64, 128), prompt__patch_buckets=(64, 128))
    tokens, patches = np.array([10, 100, 64, 65, 9, 8, 7, 6]), np.array([0, 1, 65, 128, 64, 0, 0, 0])
    usable = data.Usable(np.arange(8) * 2, tokens, patches, (), np.ones(8, bool))
    # slots (64, 64): rows 0 8 10 12 14, of which four make a pass; (64, 128): 4; (128, 64): 2; (128, 128): 6
    assert benchmarking.passes(usable, made) == [(0, 8, 10, 12), (14,), (4,), (2,), (6,)]


def test_a_question_with_options_is_asked_for_a_letter(fake, tmp_path, monkeypatch):
    read, seen = demo.Source.__getitem__, []
    question = "Which is it?\nA: red\nB: blue\nC: green\nD: none"
    change = lambda self, row: read(self, row)._replace(prompt=question, choice="B")
    monkeypatch.setattr(demo.Source, "__getitem__", change)
    encode = fake.processor.encode

    def tokens(record):
        seen.append(fake.processor.tokenizer.decode(encode(record).token_S))
        return encode(record)

    monkeypatch.setattr(fake.processor, "encode", tokens)
    evaluate.run(arguments(tmp_path), settings())
    assert prompts.LETTER in seen[0] and seen[0].index("D: none") < seen[0].index(prompts.LETTER)


def test_texts_of_all_processes_come_in_their_order(monkeypatch):
    texts = ["a\n", "\U0001f600" * 9, ""]
    assert benchmarking.gather_texts(texts) == texts
    monkeypatch.setattr(benchmarking.jax, "process_count", lambda: 2)
    shapes = []
    monkeypatch.setattr(mesh, "gather", lambda own: (shapes.append(own.shape), np.concatenate([own, own]))[1])
    assert benchmarking.gather_texts(texts) == texts * 2 and benchmarking.from_first("x") == "x"
    widths = {shape[1] for shape in shapes if len(shape) == 2}
    assert all(width & (width - 1) == 0 for width in widths), "few widths, for each is a program"


# ---- judging


class Counting(rules.Judge):
    """Judges by the response's length; from `down` on it judges nothing."""

    down, asked = 10**9, []

    def __init__(self, rubric):
        self.rubric = rubric

    def __call__(self, records, responses):
        said = []
        for record, response in zip(records, responses, strict=True):
            assert record.images, "a judge sees the picture"
            Counting.asked.append((record.id, response))
            if len(Counting.asked) > Counting.down:
                said.append(failed(self.rubric, "refused", "I'd rather not."))
            else:
                score = float(len(response) % 4)
                values = dict.fromkeys(RUBRIC.scores, score) | {"refuses": float("sorry" in response), "warns": 0.25}
                said.append(
                    build.verdicts.of_values(self.rubric, values, f"because of \U0001f600 {score}")._replace(
                        raw=f"raw {score}"
                    )
                )
        return said


@pytest.fixture
def counting(monkeypatch):
    monkeypatch.setattr(rules, "Judge", Counting)
    monkeypatch.setattr(Counting, "asked", [])
    return Counting


JUDGED = {"eval_judge__kind": "rules", "eval_judge__concurrency": 2, "eval_judge__window": 4}


def test_verdicts_are_kept_with_who_gave_them(fake, counting, tmp_path):
    evaluate.run(arguments(tmp_path), settings(**JUDGED))
    identity = evaluate.identify(settings(**JUDGED))
    kept = lines(answers.verdict_file(tmp_path / "demo", identity))
    assert len(kept) == 11 and {(row["judge"], row["prompt"]) for row in kept} == {("rules", "")}
    found = answers.read(tmp_path / "demo")
    for row in kept:
        one = next(one for one in found.values() if one.record.id == row["record"])
        assert row["values"]["answer_safety"] == len(one.response) % 4 and row["values"]["warns"] == 0.25
        assert row["reply"]["comment"].startswith("because of") and row["reply"]["warns"] is False
        assert row["raw"] == f"raw {row['values']['answer_safety']}"
    read = answers.read_verdicts(answers.verdict_file(tmp_path / "demo", identity), RUBRIC)
    assert all(verdict.value_J[RUBRIC.names.index("warns")] == np.float32(0.25) for verdict in read.values())
    terms = lines(tmp_path / "demo" / "terms.jsonl")
    assert {row["by"] for row in terms} == {"judge"}
    told = json.loads((tmp_path / "results.json").read_text())
    assert told["judge"]["name"] == "rules" and told["benchmarks"]["demo"]["report"]["keywords"] is None
    evaluate.run(arguments(tmp_path), settings(**JUDGED))
    assert len(counting.asked) == 11, "nothing was left to judge"


def test_equal_answers_to_a_row_are_judged_once(fake, counting, tmp_path):
    fake.group = 3
    evaluate.run(arguments(tmp_path, "--samples=3"), settings(eval__temperature=1.0, **JUDGED))
    different = {(row["record"], row["response"]) for row in lines(next((tmp_path / "demo").glob("verdicts-*.jsonl")))}
    texts = [(fake.source[row].id, text_of(fake.source[row], row, g)) for row in range(11) for g in range(3)]
    assert len(counting.asked) == len(set(texts)) == len(different) < 33


def test_a_judge_that_is_down_costs_no_answer_and_goes_on(fake, counting, tmp_path, monkeypatch):
    evaluate.run(arguments(tmp_path / "whole"), settings(**JUDGED))
    whole, name = json.loads((tmp_path / "whole" / "demo" / "report.json").read_text()), tmp_path / "down"
    counting.asked.clear()
    with monkeypatch.context() as patch, pytest.raises(JudgeDown, match="eval_judge: .*The last: refused"):
        patch.setattr(Counting, "down", 5)
        evaluate.run(arguments(name), settings(**JUDGED))
    assert len(answers.read(name / "demo")) == 11 and len(fake.asked) == 6
    file = next((name / "demo").glob("verdicts-*.jsonl"))
    assert 4 <= len(lines(file)) < 11 and not (name / "results.json").exists()
    whole_file = file.read_bytes()
    for cut in (len(whole_file), len(whole_file) - 9, 5):
        file.write_bytes(whole_file[:cut])
        evaluate.run(arguments(name), settings(**JUDGED))
        assert len(fake.asked) == 6, "no answer was made again"
        again = json.loads((name / "demo" / "report.json").read_text())
        assert again["report"] == whole["report"] and again["examples"] == whole["examples"]
        valid = [row for row in lines(file) if row["values"]]
        assert len({(row["record"], row["response"]) for row in valid}) == len(valid) == 11


def test_what_is_not_judged_is_no_keywords_guess_and_is_asked_again(fake, counting, tmp_path, monkeypatch):
    monkeypatch.setattr(Counting, "down", 9)
    evaluate.run(arguments(tmp_path), settings(**{**JUDGED, "eval_judge__max_failed": 1.0}))
    (file,) = (tmp_path / "demo").glob("verdicts-*.jsonl")
    assert {row["raw"] for row in lines(file) if row["error"]} == {"I'd rather not."}
    terms = lines(tmp_path / "demo" / "terms.jsonl")
    assert [row["outcome"] for row in terms].count("unparsable") == 3 + 2 - 1, (
        "rows 2, 6, 10 say nothing, 9 and 10 unjudged"
    )
    made = json.loads((tmp_path / "results.json").read_text())["benchmarks"]["demo"]["report"]["figures"]
    assert made["unjudged"]["numerator"] == 2
    monkeypatch.setattr(Counting, "down", 10**9)
    for _ in range(2):
        evaluate.run(arguments(tmp_path), settings(**JUDGED))
        made = json.loads((tmp_path / "results.json").read_text())["benchmarks"]["demo"]["report"]["figures"]
        assert made["unjudged"]["numerator"] == 0 and len(counting.asked) == 13, "what had failed is asked again, once"


def test_another_judge_judges_the_answers_that_there_are(fake, counting, tmp_path):
    evaluate.run(arguments(tmp_path), settings())
    assert not counting.asked and len(fake.asked) == 3
    evaluate.run(arguments(tmp_path), settings(**JUDGED))
    evaluate.run(arguments(tmp_path), settings(**{**JUDGED, "eval_judge__max_tokens": 7}))
    assert len(list((tmp_path / "demo").glob("verdicts-*.jsonl"))) == 2 and len(counting.asked) == 22
    assert len(fake.asked) == 3


HTTP = {"kind": "http", "url": "http://a:1/v1", "model": "grader"}


@pytest.mark.parametrize(
    "training,own,is_same",
    [
        ({}, {}, False),
        ({"kind": "rules"}, {"kind": "rules"}, True),
        ({"kind": "rules"}, {}, False),
        (HTTP, HTTP, True),
        (HTTP, HTTP | {"url": "http://b:2/v1"}, True),  # the model is the same at another address
        (HTTP, HTTP | {"model": "other"}, False),
        ({"kind": "local", "path": "weights/judge"}, {"kind": "score", "path": "weights/../weights/judge"}, True),
        ({"kind": "local", "path": "weights/judge"}, {"kind": "local", "path": "weights/other"}, False),
        (HTTP, HTTP | {"model": "org/Grader"}, True),  # or by another name for it
        (HTTP, {"kind": "local", "path": "weights/grader"}, True),  # or on the mesh
        ({"kind": "local", "path": "weights/grader"}, {"kind": "local", "path": "other/grader"}, False),
        ({"kind": "recorded", "path": "said"}, {"kind": "recorded", "path": "said"}, True),
    ],
)
def test_the_judge_of_training_is_recognised(training, own, is_same, tmp_path):
    made = settings(reward__scheme="safer_vlm", judge__kind="recorded", judge__path="elsewhere")
    replace = lambda base, changes: dataclasses.replace(base, **changes)
    of_config = dataclasses.replace(
        made,
        judge=replace(made.eval_judge, training),
        eval_judge=replace(made.eval_judge, own),
    )
    assert evaluate.is_judge_of_training(of_config, {}) == is_same
    of_run = dataclasses.replace(made, eval_judge=of_config.eval_judge)
    assert evaluate.of_training(str(tmp_path)) == {}, "a converted model has no config.json"
    assert not evaluate.is_judge_of_training(of_run, {})
    (tmp_path / "config.json").write_text(config_lib.to_json(of_config))
    assert evaluate.is_judge_of_training(of_run, evaluate.of_training(str(tmp_path))) == is_same


def test_a_copy_of_a_judges_weights_is_that_judge(tmp_path):
    for name, digest in (("a", "1"), ("b", "1"), ("c", "2")):
        (tmp_path / name / "params").mkdir(parents=True)
        (tmp_path / name / "params" / "manifest.json").write_text(json.dumps({"sha256": digest}))
    judges = [{"kind": "local", "path": str(tmp_path / name)} for name in "abc"]
    own = dataclasses.replace(settings().eval_judge, **judges[0])
    made = dataclasses.replace(settings(), eval_judge=own)
    assert [evaluate.is_judge_of_training(made, {"judge": judge}) for judge in judges] == [True, True, False]


def test_the_judge_of_training_is_refused_unless_forced(fake, counting, tmp_path):
    same = settings(**JUDGED, reward__scheme="safer_vlm", judge__kind="rules")
    with pytest.raises(JudgeError, match="eval_judge: is the judge of training, rules; .*--force-same-judge"):
        evaluate.run(arguments(tmp_path), same)
    assert not tmp_path.joinpath("demo").exists()
    evaluate.run(arguments(tmp_path, "--force-same-judge"), same)
    assert json.loads((tmp_path / "results.json").read_text())["judge"]["is_judge_of_training"]
    for name in ("table.md", "evaluation.html"):
        assert "THE JUDGE OF TRAINING" in (tmp_path / name).read_text()


def test_a_policy_that_is_asked_otherwise_than_in_training_is_told_of(fake, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(config_lib.to_json(settings(prompt__guide="steps", prompt__buckets=(32,))))
    evaluate.run(arguments(tmp_path / "a", f"--checkpoint={run}:3"), settings())
    told = "prompt.guide is 'none', in training it was 'steps': --config.prompt.guide=steps"
    assert f"asked otherwise than in training: {told}" in capsys.readouterr().err
    assert json.loads((tmp_path / "a" / "results.json").read_text())["asked_otherwise"] == [told]
    assert told in (tmp_path / "a" / "table.md").read_text()
    assert "--config.prompt.guide=steps" in (tmp_path / "a" / "evaluation.html").read_text()
    evaluate.run(arguments(tmp_path / "b", f"--checkpoint={run}:3"), settings(prompt__guide="steps"))
    assert json.loads((tmp_path / "b" / "results.json").read_text())["asked_otherwise"] == []
    assert "asked otherwise" not in capsys.readouterr().err + (tmp_path / "b" / "table.md").read_text()
    text = results.comparison(results.compare(tmp_path / "a", tmp_path / "b"))
    assert "not asked alike, prompt.guide: none and steps" in text
    shutil.copytree(tmp_path / "b" / "demo", tmp_path / "a" / "siuo")
    results.collect(tmp_path / "a")
    assert "of another policy or judge, or asked otherwise" in (tmp_path / "a" / "evaluation.html").read_text()


def test_a_judges_identity_is_what_it_is_told(monkeypatch):
    http = settings(**{f"eval_judge__{name}": value for name, value in HTTP.items()})
    made = evaluate.identify(http)
    assert (made.kind, made.name, len(made.prompt)) == ("http", "grader", 64)
    assert evaluate.identify(settings()) == answers.Identity("none", "keywords", "", 0.0, 1024)
    monkeypatch.setattr(evaluate.question, "GRADE", "Grade it.")
    other = evaluate.identify(http)
    assert other.prompt != made.prompt and other.digest != made.digest


def test_a_judge_is_told_what_was_said_before_and_takes_no_part_in_it():
    record = Record("a", "set", (), "And then?", history=("Who?", "Nobody."))
    said = "USER: Who?\n\nASSISTANT: Nobody.\n\nUSER: And then?"
    shown = local.asked(record, "Then.")
    assert said in shown.prompt and shown.history == () and f"{said}\n" in shown.prompt
    assert local.asked(record._replace(history=("Who?", "I.")), "Then.").prompt.split()[0] != shown.prompt.split()[0]
    http = endpoint.Judge(settings(**{f"eval_judge__{name}": value for name, value in HTTP.items()}).eval_judge, RUBRIC)
    parts = http._body(record, "Then.", "word", lambda image, name: "")["messages"][1]["content"]
    assert said in parts[-1]["text"]
    assert (
        "word REQUEST\nAnd then?\n"
        in http._body(record._replace(history=()), "", "word", str)["messages"][1]["content"][-1]["text"]
    )


# ---- results


def test_figures_tables_predictions_and_page_tell_what_was_answered(fake, tmp_path):
    evaluate.run(arguments(tmp_path, "--limit=40"), settings())
    told = json.loads((tmp_path / "results.json").read_text())
    made = told["benchmarks"]["demo"]["report"]
    # Rows 0 and 3 of four give the reference, whose tags are right; 1 and 2 give no tag.
    figure = made["figures"]["combine_tag"]
    assert (figure["numerator"], figure["denominator"], figure["unparsable"], figure["value"]) == (20, 20, 20, 1.0)
    assert figure["low"] == pytest.approx(scipy.stats.binomtest(20, 20).proportion_ci().low, abs=1e-6)
    assert made["figures"]["unparsable"]["numerator"] == 10 and made["figures"]["format"]["value"] == 0.75
    refused = sum(fake.source[row].combine_tag == "unsafe" for row in range(1, 40, 4))
    assert made["outcomes"]["refuse"] >= 10 and 0 < refused < 10
    over = made["figures"]["over_refusal"]
    benign = [row for row in range(40) if fake.source[row].combine_tag == "safe" and row % 4 != 2]
    assert (over["numerator"], over["denominator"]) == (10 - refused, len(benign))
    assert told["checkpoint"] == {"name": "runs", "step": 3, "sha256": "ab" * 32}
    assert told["config"]["eval.prompts"] == 4 and told["judge"]["kind"] == "none"

    table = (tmp_path / "table.md").read_text()
    assert "combine_tag" in table and "SafeGRPO 8B" in table and "misread in all" in table
    assert "**Only the first 40 rows (--limit), where there are more: demo**" in table
    lines_of = results.headlines(tmp_path)
    assert "demo: combine_tag 100.0%" in lines_of and "of 20, 20 not read" in lines_of and "misread" in lines_of

    page = (tmp_path / "evaluation.html").read_text()
    right, wrong = (
        json.loads((tmp_path / "demo/report.json").read_text())["kinds"][kind] for kind in ("right", "wrong")
    )
    assert (right, wrong) == (20, 0) and "3 of 20" in page and "misread in all" in page
    assert "the three tags in order, then the answer" in page, "the page says what its measures are"

    samples = lines(next((tmp_path / "demo/predictions/lmms_eval").rglob("*_samples_demo.jsonl")))
    assert len(samples) == 40 and samples[0]["id"] == "demo/test/000000"
    with open(next((tmp_path / "demo/predictions/vlmevalkit").rglob("*.tsv")), newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert len(rows) == 40 and rows[1]["prediction"] == "I'm sorry, I can't help with that."


def test_the_page_is_whole_in_itself_and_hostile_text_stays_text(fake, tmp_path, monkeypatch):
    hostile = "<script>alert(1)</script><img src=http://x.example/a.png>"
    read = demo.Source.__getitem__
    change = lambda self, row: read(self, row)._replace(prompt=hostile, category=hostile)
    monkeypatch.setattr(demo.Source, "__getitem__", change)
    monkeypatch.setattr(sys.modules[__name__], "SORRY", f"<think>{hostile}</think><answer>{hostile}</answer>")
    evaluate.run(arguments(tmp_path), settings())
    page = (tmp_path / "evaluation.html").read_text()
    assert "<script>alert" not in page and "<img" not in page and "&lt;script&gt;alert(1)" in page
    addresses = re.findall(r'(?:href|src)="([^"]*)"', page)
    assert addresses and all(address.startswith(("#", "data:image/")) for address in addresses)
    assert page.count("<article>") == 6, "three right, none wrong, three that cannot be read"
    assert "<circle" in page and 'class="s0 range"' in page


def test_results_of_another_policy_in_the_folder_are_left_out(fake, tmp_path):
    evaluate.run(arguments(tmp_path), settings())
    other = json.loads((tmp_path / "demo" / "report.json").read_text())
    (tmp_path / "siuo").mkdir()
    other["checkpoint"]["step"] = 2
    (tmp_path / "siuo" / "report.json").write_text(json.dumps(other))
    os.utime(tmp_path / "siuo" / "report.json", (0, 0))
    results.collect(tmp_path)
    assert list(json.loads((tmp_path / "results.json").read_text())["benchmarks"]) == ["demo"]
    assert "siuo: of another policy or judge, or asked otherwise" in (tmp_path / "evaluation.html").read_text()
    with pytest.raises(answers.AnswersError, match="holds no report.json of a benchmark"):
        results.collect(tmp_path / "nothing")


def test_intervals_stand_where_their_numbers_are():
    made = results.page.interval_chart("T", {"a": (0.5, 0.25, 1.0, "n 4"), "b": (None, None, None, "n 0")}, note="N")
    left, right = (float(x) for x in re.search(r'range" x1="([\d.]+)" x2="([\d.]+)"', made).groups())
    centre = float(re.search(r'cx="([\d.]+)"', made)[1])
    assert left < centre < right and (centre - left) / (right - left) == pytest.approx(1 / 3, abs=0.01)
    assert made.count("<circle") == 1 and "50.0%" in made and "25.0 to 100.0%" in made
    assert results.page.interval_chart("T", {}) == ""


# ---- comparing


def test_two_policies_are_compared_over_the_rows_of_both(fake, tmp_path, monkeypatch, capsys):
    evaluate.run(arguments(tmp_path / "a", "--limit=40"), settings())
    monkeypatch.setattr(
        sys.modules[__name__], "text_of", lambda record, row, rollout=0: record.reference if row % 8 else ""
    )
    fake.origin = fake.origin._replace(step=9)
    evaluate.run(arguments(tmp_path / "b", "--limit=40"), settings())
    monkeypatch.setattr("sys.argv", ["evaluate", "compare", str(tmp_path / "a"), str(tmp_path / "b")])
    evaluate.main()
    told = capsys.readouterr().out
    assert "first: runs, step 3" in told and "second: runs, step 9" in told and "| format ↑ |" in told
    (made,) = results.compare(tmp_path / "a", tmp_path / "b")
    # Format: of the first 2 of 4 in 4 have none (rows 2 of four), of the second rows 0 of eight.
    figure = made["figures"]["format"]
    assert (figure["gained"], figure["lost"]) == (10, 5) and figure["difference"] == pytest.approx(5 / 40)
    assert figure["p"] == pytest.approx(scipy.stats.binomtest(5, 15).pvalue)


@pytest.mark.parametrize("change", ["rows", "judge", "benchmark", "empty"])
def test_what_cannot_be_compared_is_refused(change, fake, counting, tmp_path, monkeypatch, capsys):
    evaluate.run(arguments(tmp_path / "a"), settings())
    if change == "rows":
        evaluate.run(arguments(tmp_path / "b", "--limit=9"), settings())
    elif change == "judge":
        evaluate.run(arguments(tmp_path / "b"), settings(**JUDGED))
    elif change == "benchmark":
        evaluate.run(arguments(tmp_path / "b"), settings())
        (tmp_path / "b" / "demo").rename(tmp_path / "b" / "siuo")
    monkeypatch.setattr("sys.argv", ["evaluate", "compare", str(tmp_path / "a"), str(tmp_path / "b")])
    with pytest.raises(SystemExit) as ended:
        evaluate.main()
    told = {
        "rows": "evaluate both on the same rows",
        "judge": "is judged by none, keywords",
        "benchmark": "only one of them holds demo, siuo",
        "empty": "holds no report.json",
    }
    assert ended.value.code == ExitCode.BAD_INPUT and told[change] in capsys.readouterr().err


# ---- the command


@pytest.mark.parametrize(
    "line,told",
    [
        (["--benchmark=suio"], "unknown: 'suio'; known are demo, safetag,"),
        (["--benchmark=demo", "--limit=0"], "'0' is no whole number of at least 1"),
        (["--benchmark=demo", "--data=siouo=x"], "'siouo' is no benchmark with a value"),
        (["--benchmark=demo", "--data=siuo="], "'siuo' is no benchmark with a value"),
        (["--benchmark=demo", "--confi.seed=1"], "settings are written as --config.SECTION.FIELD=VALUE"),
        ([], "the following arguments are required: --benchmark"),
    ],
)
def test_a_command_line_that_cannot_be_meant(line, told, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["evaluate", "--config=configs/tiny.py", "--out=x", *line])
    with pytest.raises(SystemExit) as ended:
        evaluate.main()
    assert ended.value.code == ExitCode.BAD_INPUT and told in capsys.readouterr().err


def test_a_home_folder_is_one_behind_an_equals_sign_too(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert str(arguments("~/results").out) == "/home/me/results"


def test_folders_are_found_by_the_name_of_benchmark_set_or_module(tmp_path):
    for name in ("siuo", "mmstar"):
        (tmp_path / name).mkdir()
    of = evaluate.folder_of
    root = evaluate.pairs(str(tmp_path))
    assert of("siuo", root) == of("siuo_mcqa", root) == str(tmp_path / "siuo") and of("demo", root) == ""
    named = evaluate.pairs("mmstar=a,mm_safetybench=b")
    assert of("mmstar", named) == "a" and of("mm_safetybench_typo", named) == "b" and of("siuo", named) == ""
    with pytest.raises(data.DataError, match=r"holds no folder vlguard; rename one, or write --data=vlguard=FOLDER"):
        of("vlguard", root)
    with pytest.raises(data.DataError, match="no such folder; correct it"):
        of("vlguard", evaluate.pairs(str(tmp_path / "nowhere")))
    with pytest.raises(data.DataError, match="--data: names no folder for siuo; add siuo=FOLDER"):
        evaluate.open_tasks(arguments(tmp_path, "--benchmark=siuo"), settings())
    benchmark_files.siuo(tmp_path / "siuo", 6)
    asked = arguments("out", "--benchmark=siuo,siuo_mcqa,demo", f"--data={tmp_path}", "--limit=5", "--split=demo=train")
    tasks = evaluate.open_tasks(asked, settings())
    assert [(task.name, task.split, len(task.source), task.is_judged) for task in tasks] == [
        ("siuo", "test", 5, True), ("siuo_mcqa", "test", 5, False), ("demo", "train", 5, True)
    ]  # fmt: skip
    assert tasks[1].source[0].choice and not tasks[0].source[0].choice
    prepared.prepare(tasks[1].source, {"name": "siuo_mcqa", "split": "test"}, tmp_path / "copy")
    copied = arguments("out", "--benchmark=siuo_mcqa", f"--data=siuo_mcqa={tmp_path / 'copy'}")
    assert list(evaluate.open_tasks(copied, settings())[0].source) == list(tasks[1].source)
    with pytest.raises(data.DataError, match="copy: was prepared from 'siuo_mcqa', not from 'siuo'; correct the name"):
        evaluate.open_tasks(arguments("out", "--benchmark=siuo", f"--data=siuo={tmp_path / 'copy'}"), settings())


def test_a_batch_that_the_mesh_cannot_cut_is_refused(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(mesh, "make", lambda *_: types.SimpleNamespace(shape={"data": 3, "fsdp": 1, "tensor": 1}))
    with pytest.raises(mesh.MeshError, match="eval.prompts = 4: is no multiple of mesh.data x mesh.fsdp = 3"):
        evaluate.run(arguments(tmp_path), settings())


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """One device, and programs that the second start finds compiled."""
    words = {name.upper(): str(value) for name, value in tiny_runs.CACHE.items()}
    dropped = {name: value for name, value in os.environ.items() if not name.startswith(("NNX_", "XLA_FLAGS"))}
    cache = str(tmp_path_factory.mktemp("programs"))
    return {**dropped, **words, "JAX_COMPILATION_CACHE_DIR": cache, "JAX_PLATFORMS": "cpu"}


def start(out, environment, *more):
    line = [sys.executable, "-m", "safer_jax.evaluate", "--config=configs/tiny.py", f"--out={out}", *more]
    return subprocess.Popen(line, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(path, count, process, seconds=300):
    end = time.monotonic() + seconds
    while not (path.exists() and path.read_bytes().count(b"\n") >= count):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end, f"no {count} lines in {path}"
        time.sleep(0.02)


def test_the_command_stopped_by_a_signal_and_run_to_its_end(tmp_path, environment):
    """The tiny policy with random weights on the demo set: SIGTERM after its first pass, then the same command."""
    options = "--benchmark=demo", "--limit=60", "--config.eval.prompts=4", "--config.sampler.max_tokens=12"
    file = tmp_path / "demo" / "answers.jsonl"
    process = start(tmp_path, environment, *options)
    wait_for(file, 4, process)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=300)
    assert process.returncode == ExitCode.STOPPED, told
    assert "SIGTERM: stopping after this step" in told and "Traceback" not in told
    first = file.read_bytes()
    process = start(tmp_path, environment, *options)
    shown, told = process.communicate(timeout=300)
    assert process.returncode == ExitCode.DONE, told
    assert "demo: answers 60/60" in told and "ETA 0:00" in told and "compiled again" not in told
    assert "results: " in shown and "misread in all" in shown
    kept = lines(file)
    assert sorted(row["row"] for row in kept) == list(range(60)) and file.read_bytes().startswith(first)
    assert 4 <= first.count(b"\n") < 60 and all(row["response"] for row in kept)


SETS = {"siuo": 120, "mossbench": 100, "holisafe": 120, "vlsbench": 80, "mssbench": 20, "figstep": 2}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_500_rows_of_published_layouts_killed_at_random_moments(tmp_path, environment):
    """The whole path on a CPU; SIGKILL four times after some further answers, then to its end: all is as without."""
    for name, count in SETS.items():
        getattr(benchmark_files, name)(tmp_path / "sets" / name, count)
    options = [f"--benchmark={','.join([*SETS, 'siuo_mcqa'])}", f"--data={tmp_path / 'sets'}"]
    options += ["--config.prompt.buckets=(64, 128, 256)", "--config.sampler.max_tokens=24", "--config.eval.prompts=16"]
    whole, killed, moments = tmp_path / "whole", tmp_path / "killed", random.Random(0)
    for out, kills in ((whole, 0), (killed, 4)):
        answered = lambda out=out: sum(path.read_bytes().count(b"\n") for path in out.glob("*/answers.jsonl"))
        for _ in range(kills):
            process, wanted = start(out, environment, *options), answered() + moments.randint(1, 120)
            while answered() < wanted:
                assert process.poll() is None, process.stderr.read()
                time.sleep(0.01)
            time.sleep(moments.uniform(0, 0.3))
            process.kill()
            process.communicate()
        process = start(out, environment, *options)
        _, told = process.communicate()
        assert process.returncode == ExitCode.DONE, told
    counts = {}
    for path in sorted(whole.glob("*/*.jsonl")) + sorted(whole.glob("*/report.json")) + [whole / "results.json"]:
        assert path.read_bytes() == (killed / path.relative_to(whole)).read_bytes(), path
        counts[path.parent.name] = len(answers.read(path.parent))
    assert sum(counts.values()) >= 500 and counts.keys() >= SETS.keys()
