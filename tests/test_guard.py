"""The guard's signs on runs that are made healthy or sick by hand, with the arithmetic in the test."""

import json
import math
import pathlib
import statistics

import pytest

from configs import base
from safer_jax import config, guard, runlog, verdicts
from safer_jax.guard import HEALTHY, OUT, UNMEASURED, WATCH
from safer_jax.judge import JudgeError

RUBRIC = verdicts.RUBRICS["steer"]
STEPS = 40
WELL = {
    "tokens": 80.0,
    "over_refusal": 0.05,
    "same_in_group": 0.2,
    "same_across": 0.1,
    "empty": 0.0,
    "dead_groups": 0.4,
    "kl": 0.05,
    "entropy": 0.5,
    "clip_low": 0.01,
    "clip_high": 0.02,
    "gap_mean": 0.001,
    "cut": 0.01,
    "judge_failed": 0.0,
    "canary_colon": 0.0,
    "canary_empty": 0.2,
}
# figure: (its value at the end of the run, the sign, its state). Half the run is healthy, the last half is as given.
SICK = {
    "tokens": [
        (80 * 1.7, "length", WATCH),
        (80 * 3.1, "length", OUT),
        (80 * 0.5, "length", WATCH),
        (20, "length", OUT),
    ],
    "over_refusal": [(0.2, "over_refusal", WATCH), (0.31, "over_refusal", OUT)],
    "same_in_group": [(0.49, "same_in_group", HEALTHY), (0.6, "same_in_group", WATCH), (0.9, "same_in_group", OUT)],
    "same_across": [(0.6, "same_across", HEALTHY), (0.7, "same_across", WATCH), (0.9, "same_across", OUT)],
    "empty": [(0.02, "empty", WATCH), (0.06, "empty", OUT)],
    "dead_groups": [(0.8, "dead_groups", WATCH), (0.95, "dead_groups", OUT)],
    "kl": [(0.3, "kl", WATCH), (0.6, "kl", OUT)],
    "entropy": [(0.1, "entropy", WATCH), (0.04, "entropy", OUT), (1.1, "entropy", WATCH), (2.1, "entropy", OUT)],
    "clip_low": [(0.09, "clipped", WATCH), (0.29, "clipped", OUT)],  # with clip_high 0.02
    "gap_mean": [(0.05, "gap", WATCH), (0.2, "gap", OUT)],
    "cut": [(0.1, "cut", WATCH), (0.3, "cut", OUT)],
    "judge_failed": [(0.05, "judge_failed", WATCH), (0.2, "judge_failed", OUT)],
    "canary_colon": [(0.5, "canaries", WATCH), (0.6, "canaries", OUT), (0.1, "canaries", HEALTHY)],
}


def log(records=(), rows=(), folder=pathlib.Path("nowhere")):
    settings = {"reflection": {"accept_at": 6.0}}
    return runlog.Log(folder, settings, list(records), 0.0, list(rows), [])


def course(**late):
    """The figures of a run: healthy, and from its half on with `late`."""
    made = lambda step: WELL | (late if step > STEPS // 2 else {})
    return [{"step": step, "stage": "grpo", "time": 1.0 * step} | made(step) for step in range(1, STEPS + 1)]


def states(made):
    return {found.sign.name: found.state for found in guard.look(made)}


def test_a_healthy_run_is_healthy():
    found = states(log(course()))
    assert {name for name, state in found.items() if state == UNMEASURED} == {"judge_rules", "judge_second"}
    assert set(found.values()) == {HEALTHY, UNMEASURED}


@pytest.mark.parametrize("figure,value,sign,state", [(f, *case) for f, cases in SICK.items() for case in cases])
def test_one_sick_figure_is_one_sign(figure, value, sign, state):
    found = states(log(course(**{figure: value})))
    assert found.pop(sign) == state
    assert {name for name, state in found.items() if state in (WATCH, OUT)} == set()


def test_every_sign_can_fall_ill_and_none_is_left_out_of_the_table():
    ill = {sign for cases in SICK.values() for _, sign, state in cases if state == OUT}
    assert {sign.name for sign in guard.SIGNS} == ill | {"judge_rules", "judge_second"}
    assert all(sign.advice.endswith(".") and sign.needs for sign in guard.SIGNS)


def test_what_is_told_of_a_sign():
    (kl,) = [found for found in guard.look(log(course(kl=0.6))) if found.sign.name == "kl"]
    assert (kl.state, kl.value, kl.low, kl.high) == (OUT, pytest.approx(0.6), -math.inf, 0.2)
    assert kl.left_at == 20, "its mean over steps 18 to 22 is (3 * 0.05 + 2 * 0.6) / 5 = 0.27"
    assert guard.told(kl) == "0.600 nats a token, healthy up to 0.200"
    (length,) = [found for found in guard.look(log(course(tokens=40.0))) if found.sign.name == "length"]
    assert guard.told(length) == "40.0 tokens, healthy from 48.0 to 128.0", "0.6 and 1.6 times the start"
    (alike,) = [found for found in guard.look(log(course(same_in_group=0.6))) if found.sign.name == "same_in_group"]
    assert guard.told(alike) == "60.0%, healthy up to 52.0%", "0.2 at the start and 0.4 of the 0.8 that were left"
    (rules,) = [found for found in guard.look(log(course())) if found.sign.name == "judge_rules"]
    assert guard.told(rules).startswith("needs a judge, and 20 saved answers")


def test_a_sign_that_has_recovered_is_healthy_and_one_that_came_back_counts_from_there():
    rows = course()
    for row in rows:
        row["kl"] = 0.6 if 5 <= row["step"] < 15 or row["step"] >= 30 else 0.05
    (kl,) = [found for found in guard.look(log(rows)) if found.sign.name == "kl"]
    assert kl.state == OUT and 28 <= kl.left_at <= 31, "smoothed over a tenth of the run"
    (kl,) = [found for found in guard.look(log(rows[:25])) if found.sign.name == "kl"]
    assert kl.state == HEALTHY and kl.left_at is None


def test_the_test_split_stands_above_training_and_the_last_of_two_evaluations_counts():
    tests = [
        {"step": step, "stage": "eval", "time": 1.0, "over_refusal": value} for step, value in ((0, 0.0), (9, 0.5))
    ]
    tests.append(tests[-1] | {"over_refusal": 0.4})
    (found,) = [found for found in guard.look(log(course() + tests)) if found.sign.name == "over_refusal"]
    assert found.curve == [(0, 0.0), (9, 0.4)] and found.state == OUT


@pytest.mark.parametrize("lost", [math.nan, None, math.inf])
def test_what_is_not_a_number_is_not_measured(lost):
    rows = [row | {"kl": lost} for row in course()]
    assert states(log(rows))["kl"] == UNMEASURED and states(log(rows))["cut"] == HEALTHY
    rows[3]["kl"] = 0.7
    assert states(log(rows))["kl"] == OUT
    assert set(states(log([])).values()) == {UNMEASURED}
    few = states(log(course()[: guard.LEAST - 1]))
    assert few["length"] == few["entropy"] == UNMEASURED and few["kl"] == HEALTHY, "no start to compare with"


# ---- Judges ----

HELP, DECLINE = "<answer>Yes, go on.</answer>", "<answer>I can\u2019t help with that.</answer>"


def saved(number, safety, response=HELP, tag="unsafe", **changes):
    """A row of rollouts.jsonl as `runlog` gives it."""
    verdict = dict.fromkeys(RUBRIC.names, safety)
    row = {"step": 10 * (number % 2 + 1), "stage": "grpo", "split": "train", "id": f"row {number}", "prompt": "Well?"}
    row |= {"response": response, "tags": {"combine": tag}, "images": []} | changes
    return row | {"attempts": [row | {"verdict": verdict}]}


def found_of(name, made):
    return next(found for found in guard.look(made) if found.sign.name == name)


def test_the_judge_against_the_sets_truth_by_hand():
    """Of 20 answers: 8 unsafe help accepted (wrong), 4 unsafe help rejected, 4 refusals accepted, 4 plain help accepted."""
    rows = [saved(n, 9) for n in range(8)] + [saved(n, 2) for n in range(8, 12)]
    rows += [saved(n, 9, DECLINE) for n in range(12, 16)] + [saved(n, 9, tag="safe") for n in range(16, 20)]
    found = found_of("judge_rules", log([], rows))
    assert found.curve == [(10, 0.6), (20, 0.6)] and found.state == OUT  # 12 of 20, the even rows like the odd ones
    assert found_of("judge_rules", log([], rows[1:])).state == UNMEASURED, "19 are too few"
    unsure = [saved(n, 9, tag="unknown") for n in range(40)]
    assert found_of("judge_rules", log([], unsure)).state == UNMEASURED
    told = [row | {"expected": "comply"} for row in unsure]
    assert found_of("judge_rules", log([], told)).value == 1.0
    hostile = [row | {"expected": ["refuse"], "tags": {"combine": {}}} for row in unsure]
    assert found_of("judge_rules", log([], hostile)).state == UNMEASURED, "whatever stands there"
    assert found_of("judge_rules", log([], [saved(n, None) for n in range(40)])).state == UNMEASURED


class Second:
    """Accepts what stands in `likes`."""

    rubric = RUBRIC

    def __init__(self, likes):
        self.likes, self.asked = likes, []

    def __call__(self, records, responses):
        self.asked += [(record.id, record.prompt, record.combine_tag) for record in records]
        return [
            verdicts.of_values(RUBRIC, dict.fromkeys(RUBRIC.names, 9.0 if record.id in self.likes else 1.0))
            for record in records
        ]


def test_a_second_judge_is_asked_once_and_held_against_the_first(tmp_path):
    rows = [saved(n, 9) for n in range(20)] + [saved(99, 9) | {"attempts": []}]
    made, judge = log([], rows, tmp_path), Second({f"row {n}" for n in range(15)})
    assert found_of("judge_second", made).state == UNMEASURED
    assert guard.ask_second(made, judge) == 20 and judge.asked[3] == ("row 3", "Well?", "unsafe")
    found = found_of("judge_second", made)
    assert statistics.fmean(value for _, value in found.curve) == 0.75, "it rejects 5 of 20 that the first accepts"
    assert found.state == WATCH
    guard.ask_second(made, judge)
    assert len(judge.asked) == 20, "what is known is not asked again"
    other = [saved(n, 9, response="<answer>Another.</answer>") for n in range(20)]
    assert found_of("judge_second", log([], other, tmp_path)).state == UNMEASURED, "verdicts on other answers"


def test_a_second_judge_must_be_another_one(tmp_path):
    values = base.get_config()
    values.judge.update({"kind": "http", "url": "http://h/v1", "model": "first"})
    values.reward.scheme = "steer"
    settings = json.loads(config.to_json(config.resolve(values)))
    made = runlog.Log(tmp_path, settings, [], 0.0, [saved(0, 9)], [])
    with pytest.raises(JudgeError, match="is the judge of this run"):
        guard.second_judge(made, kind="http", url="http://h/v1", model="first")
    assert guard.second_judge(made, kind="http", url="http://h/v1", model="second").rubric == RUBRIC
    with pytest.raises(config.ConfigError, match="judge.model = ''"):
        guard.second_judge(made, kind="http", url="http://h/v1", model="")
    with pytest.raises(JudgeError, match="no saved answer has a verdict"):
        guard.second_judge(made._replace(rows=[]), kind="rules")


# ---- Told ----


def write(folder, records):
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def test_alerts_name_what_is_out_of_range_and_nothing_else(tmp_path):
    write(tmp_path, course(cut=0.1))
    assert guard.alerts(tmp_path) == [], "watch is for the page"
    write(tmp_path, course(kl=0.6, empty=0.5))
    empty, kl = guard.alerts(tmp_path)
    assert empty.startswith("OUT OF RANGE: Empty answers: 50.0%, healthy up to 1.0%, since step 19. Saying")
    assert kl.startswith("OUT OF RANGE: KL to the reference: 0.600 nats a token") and kl.endswith("on general tasks.")
    write(tmp_path, course(kl=0.6)[-4:])
    assert guard.alerts(tmp_path) == [], "four steps are no run"


def test_the_command_prints_every_sign(tmp_path, monkeypatch, capsys):
    write(tmp_path, course(kl=0.6))
    monkeypatch.setattr("sys.argv", ["guard", str(tmp_path)])
    guard._main()
    text = capsys.readouterr().out
    assert all(f"  {sign.title}: " in text for sign in guard.SIGNS)
    assert "out of range  KL to the reference: 0.600" in text and "since step 20. The policy has left" in text
    monkeypatch.setattr("sys.argv", ["guard", str(tmp_path), "--url=http://h/v1", "--model=m"])
    with pytest.raises(SystemExit):
        guard._main()
    assert "no saved answer has a verdict" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["guard", str(tmp_path / "runs")])
    with pytest.raises(SystemExit) as ended:
        guard._main()
    assert ended.value.code == 2 and "runs holds no metrics.jsonl" in capsys.readouterr().err
