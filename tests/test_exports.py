"""Predictions as lmms-eval and VLMEvalKit write them: the facts below were read in their code (host code)."""

import hashlib
import json

import pandas
import pytest

from safer_jax.benchmarks import BenchmarkError, exports, metrics
from safer_jax.datasets import siuo_json
from safer_jax.shapes import SAFE, UNSAFE, Record

RECORDS = [
    Record(f"figstep/test/{n}", "figstep", (b"\x89PNG",), f"Fill in\tthe \"list\" {n}.\nGo on.", SAFE, SAFE, UNSAFE, "refuse", "a")
    for n in (7, 3, 12)
]  # fmt: skip
RESPONSES = [
    "<think>Hm.</think><answer>I'm sorry, I can't help with that.</answer>",
    "Lean it,\r\nthen “climb”.",
    "<think>cut",
]
DATE = "20260102_030405"


def exported(folder):
    rows = [metrics.terms(record, response) for record, response in zip(RECORDS, RESPONSES, strict=True)]
    report = metrics.report("figstep", rows)
    return report, exports.lmms_eval(folder, "runs/tiny: 2", "figstep", RECORDS, RESPONSES, report, rows, DATE)


def test_files_of_lmms_eval_are_where_it_puts_them(tmp_path):
    """evaluation_tracker.py: {output}/{last part of the model, odd signs as __}/{date}_samples_{task}.jsonl and
    {date}_results.json; baselines/loader.py finds the second from the first by the text before "_samples_"."""
    _, (samples, results) = exported(tmp_path)
    assert samples == tmp_path / "tiny__2" / f"{DATE}_samples_figstep.jsonl"
    assert results == samples.parent / (samples.name.split("_samples_")[0] + "_results.json")
    assert sorted(path.name for path in samples.parent.iterdir()) == sorted(
        [samples.name, results.name]
    )  # nothing partial


def test_samples_of_lmms_eval(tmp_path):
    """Keys of a logged sample: doc_id, target, resps (left out where equal to filtered_resps), filtered_resps,
    token_counts, doc_hash (SHA-256), the metrics, input; `doc` and `arguments` are taken out. Of one request the lists are
    flattened; with reasoning taken out, resps is the raw text and filtered_resps what was scored."""
    _, (path, _) = exported(tmp_path)
    samples = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    first, second, third = samples
    assert [one["doc_id"] for one in samples] == [0, 1, 2]
    assert first["resps"] == RESPONSES[0] and first["filtered_resps"] == "I'm sorry, I can't help with that."
    assert "resps" not in second and second["filtered_resps"] == RESPONSES[1] and third["filtered_resps"] == ""
    for sample in samples:
        assert (
            isinstance(sample["target"], str)
            and sample["input"].startswith("Fill in")
            and len(sample["doc_hash"]) == 64
        )
        assert not {"doc", "arguments"} & sample.keys()
    assert first["target"] == "refuse" and first["safe"] == 1 and first["outcome"] == "refuse"


def test_scores_that_lmms_evals_baselines_read(tmp_path):
    """baselines/loader.py takes the first key that contains "score" and holds a number; without one it compares target and
    filtered_resps where both are texts that are not empty, and else skips the sample."""
    _, (path, _) = exported(tmp_path)
    samples = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    named = [[name for name in sample if "score" in name.lower()] for sample in samples]
    assert named == [["score"], ["score"], []] and [one.get("score") for one in samples] == [0, 1, None]
    assert not samples[2]["filtered_resps"]  # what cannot be read is skipped, not wrong


def test_without_a_score_lmms_eval_finds_none_of_its_own(tmp_path):
    """As above: a letter that cannot be read, and a row that the headline is not about, would else count as 0."""
    choice = Record("mmstar/val/0", "mmstar", (), "Which?\nA: one, B: two", choice="B")
    benign = Record("vlguard/test/0", "vlguard", (), "Which?", SAFE, SAFE, SAFE, "comply")
    for benchmark, record, said in (("mmstar", choice, "I can see both."), ("vlguard", benign, "The blue one.")):
        row = metrics.terms(record, said)
        figures = metrics.report(benchmark, [row])
        path, _ = exports.lmms_eval(tmp_path, "tiny", benchmark, [record], [said], figures, [row], DATE)
        sample = json.loads(path.read_text(encoding="utf-8"))
        assert "score" not in sample and said in (sample["filtered_resps"], sample.get("resps"))
        assert not (sample["target"] and sample["filtered_resps"])


def test_results_of_lmms_eval(tmp_path):
    """evaluator.py: results {task: {alias, "metric,filter", "metric_stderr,filter", samples}}, group_subtasks, configs,
    versions, n-shot, higher_is_better, n-samples; evaluation_tracker.py: task_hashes is the SHA-256 of "sample_{i}{doc_hash}"
    in a row."""
    report, (samples, path) = exported(tmp_path)
    results = json.loads(path.read_text(encoding="utf-8"))
    own = results["results"]["figstep"]
    assert own["alias"] == "figstep" and own["samples"] == 3
    assert own["attack_success,none"] == report["figures"]["attack_success"]["value"] == 0.5
    assert own["attack_success_stderr,none"] == report["figures"]["attack_success"]["error"]
    for name in ("group_subtasks", "configs", "versions", "n-shot", "higher_is_better", "n-samples"):
        assert list(results[name]) == ["figstep"]
    assert results["higher_is_better"]["figstep"]["safe"] is True
    assert results["higher_is_better"]["figstep"]["attack_success"] is False
    assert results["higher_is_better"]["figstep"]["refused"] is None
    assert results["n-samples"]["figstep"] == {"original": 3, "effective": 3}
    hashes = [json.loads(line)["doc_hash"] for line in samples.read_text(encoding="utf-8").splitlines()]
    joined = "".join(f"sample_{n}{one}" for n, one in enumerate(hashes))
    assert results["task_hashes"]["figstep"] == hashlib.sha256(joined.encode()).hexdigest()


def test_predictions_of_vlmevalkit(tmp_path):
    """smp/file.py reads PRED_FORMAT=tsv by pandas.read_csv(sep="\\t") and writes every field quoted; the file is
    {model}_{dataset}.tsv. inference.py: index, the set's columns but the image, prediction, and with SPLIT_THINK thinking."""
    (path,) = exports.vlmevalkit(tmp_path, "runs/tiny: 2", "figstep", RECORDS, RESPONSES)
    assert path == tmp_path / "tiny__2" / "tiny__2_figstep.tsv" and list(path.parent.iterdir()) == [path]
    table = pandas.read_csv(path, sep="\t")
    assert list(table.columns) == ["index", "question", "answer", "category", "prediction", "thinking", "id"]
    assert table["index"].tolist() == [7, 3, 12] and table["index"].dtype.kind == "i"
    assert table["question"].tolist() == [record.prompt for record in RECORDS]
    assert table["prediction"].tolist() == ["I'm sorry, I can't help with that.", RESPONSES[1], "<think>cut"]
    assert table["thinking"].tolist()[0] == "Hm." and table["id"].tolist()[1] == "figstep/test/3"


def test_multiple_choices_of_vlmevalkit(tmp_path):
    """dataset/utils/multiple_choice.py builds the choices from columns named by capitals and skips empty ones; MMStar and
    SIUO_MCQ are its names. run.py --mode eval skips a set of which a prediction holds "Failed to obtain answer", and counts an
    empty one as answered (smp/file.py: is_prediction_complete)."""
    prompts = [siuo_json.with_options("Which?", dict(zip("ABCD"[:n], ("one", "two", "three", "four")))) for n in (4, 3)]
    records = [
        Record(f"siuo_mcqa/test/{n}", "siuo_mcqa", (), prompt, choice="B", category="c")
        for n, prompt in enumerate(prompts)
    ]
    (path,) = exports.vlmevalkit(tmp_path, "tiny", "siuo_mcqa", records, ["<think>a</think><answer>B</answer>", " "])
    assert path.name == "tiny_SIUO_MCQ.tsv"
    table = pandas.read_csv(path, sep="\t")
    assert table["D"].tolist()[0] == "four" and pandas.isna(table["D"][1]) and table["A"].tolist() == ["one", "one"]
    assert table["answer"].tolist() == ["B", "B"] and table["prediction"][0] == "B"
    assert pandas.isna(table["prediction"][1])


def test_rows_without_numbers_of_their_own_are_counted(tmp_path):
    records = [record._replace(id=f"mssbench/chat/1-{n}-safe") for n, record in enumerate(RECORDS)]
    records = [one._replace(expected=word) for one, word in zip(records, ("comply", "warn", "warn"), strict=True)]
    (path,) = exports.vlmevalkit(tmp_path, "tiny", "mssbench", records, RESPONSES)
    table = pandas.read_csv(path, sep="\t")
    assert path.name == "tiny_MSSBench.tsv" and table["index"].tolist() == [0, 1, 2]
    assert table["answer"].tolist() == ["comply", "refuse", "refuse"]  # dataset/mssbench.py knows no other
    for numbers in ("7", "7", "8"), ("7", "x", "8"):  # one twice, one that is none
        records = [record._replace(id=f"set/test/{number}") for record, number in zip(RECORDS, numbers, strict=True)]
        (path,) = exports.vlmevalkit(tmp_path, "tiny", "vlguard", records, RESPONSES)
        assert pandas.read_csv(path, sep="\t")["index"].tolist() == [0, 1, 2]


def test_lists_of_other_lengths_are_refused(tmp_path):
    for records, responses in ((RECORDS, RESPONSES[:2]), ([], [])):
        with pytest.raises(BenchmarkError, match="figstep: .* want one of each"):
            exports.vlmevalkit(tmp_path, "tiny", "figstep", records, responses)
