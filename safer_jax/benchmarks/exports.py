"""Predictions in the layouts of lmms-eval and VLMEvalKit, for tools that read theirs (host code).

Of lmms-eval 75571cf as loggers/evaluation_tracker.py writes and baselines/loader.py and tui/server.py read; of VLMEvalKit
e8e78f0 as inference.py and smp/file.py. Both have one answer to a row: of several each is a model of its own.
"""

import csv
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safer_jax.benchmarks import BenchmarkError, letters, metrics, outcomes
from safer_jax.shapes import Record

# As VLMEvalKit names them; a set that it does not have keeps our name.
VLMEVALKIT = {
    "mmstar": "MMStar",
    "siuo": "SIUO_GEN",
    "siuo_mcqa": "SIUO_MCQ",
    "mssbench": "MSSBench",
    "mm_safetybench": "MMSafetyBench",
}


def lmms_eval(
    folder: Path,
    model: str,
    benchmark: str,
    records: Sequence[Record],
    responses: Sequence[str],
    report: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    date: str,
) -> list[Path]:
    """Writes {folder}/{model}/{date}_samples_{benchmark}.jsonl and {date}_results.json, as `--log_samples` does; returns
    both. `date` is YYYYMMDD_HHMMSS, `rows` are the `metrics.terms` of the responses.

    `filtered_resps` is the answer, `resps` the whole response where it is more. `score` is the headline's value of the row,
    which their `--baseline` compares by; without one it takes 1 for the answer being the target's text, 0 for any other. So
    a row that cannot be read has no `filtered_resps`, one that the headline is not about no `target`: both then have no
    score there either. Percentages there are fractions here.
    """
    _same_length(benchmark, records, responses, rows)
    target, spec = _folder(folder, model), metrics.find(benchmark)
    samples = [_sample(n, spec.headline, *row) for n, row in enumerate(zip(records, responses, rows, strict=True))]
    names = target / f"{date}_samples_{benchmark}.jsonl", target / f"{date}_results.json"
    _replace(names[0], "".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples))
    figures = report["figures"]
    numbers = {f"{name},none": figure["value"] for name, figure in figures.items()}
    errors = {
        f"{name}_stderr,none": "N/A" if figure["error"] is None else figure["error"] for name, figure in figures.items()
    }
    directions = {name: {"up": True, "down": False}.get(figure["direction"]) for name, figure in figures.items()}
    results = {
        "results": {benchmark: {"alias": benchmark, **numbers, "samples": len(samples), **errors}},
        "group_subtasks": {benchmark: []},
        "configs": {benchmark: {"task": benchmark, "test_split": spec.split, "num_fewshot": 0, "repeats": 1}},
        "versions": {benchmark: "safer_jax"},
        "n-shot": {benchmark: 0},
        "higher_is_better": {benchmark: directions},
        "n-samples": {benchmark: {"original": len(samples), "effective": len(samples)}},
        "config": {"model": "safer_jax", "model_args": f"pretrained={model}", "batch_size": None, "limit": None},
        "date": date,
        "task_hashes": {benchmark: _hash("".join(f"sample_{n}{one['doc_hash']}" for n, one in enumerate(samples)))},
        "model_source": "safer_jax",
        "model_name": model,
        "model_name_sanitized": target.name,
    }
    _replace(names[1], json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    return list(names)


def _sample(number: int, headline: str, record: Record, response: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """A line of samples. Without images, as theirs."""
    values = {name: value for name, value in row["values"].items() if value is not None}
    is_unreadable = row["values"].get(headline, 0) is None
    answer = "" if is_unreadable else outcomes.answer_of(response) or ""
    target = record.choice or record.reference or record.expected
    doc = {"id": record.id, "question": record.prompt, "category": record.category, "target": target}
    return {
        "doc_id": number,
        "target": target if headline in row["values"] else "",
        **({"resps": response} if response != answer else {}),
        "filtered_resps": answer,
        "token_counts": [None],
        "doc_hash": _hash(json.dumps(doc, indent=2, ensure_ascii=False)),
        **({"score": values[headline]} if headline in values else {}),
        **values,
        "outcome": row["outcome"],
        "id": record.id,
        "category": record.category,
        "input": _asked(record),
    }


def vlmevalkit(
    folder: Path, model: str, benchmark: str, records: Sequence[Record], responses: Sequence[str]
) -> list[Path]:
    """Writes {folder}/{model}/{model}_{dataset}.tsv, as its PRED_FORMAT=tsv does, which also makes it read such a file.

    Columns: index, question, the options' letters where there are any, answer, category, prediction, thinking (as with
    SPLIT_THINK), id. `index` is the record's own number, or its place where it has none. Of a response without an answer
    that can be read prediction is all of it, as theirs; of a blank one it is empty, for what they write of a request that
    failed would make them ask for the row again. No images, as theirs.
    """
    _same_length(benchmark, records, responses)
    target, dataset = _folder(folder, model), VLMEVALKIT.get(benchmark, benchmark)
    numbers = [re.fullmatch(r".*/(\d+)", record.id) for record in records]
    own = [int(match[1]) for match in numbers if match]
    index = own if len(set(own)) == len(records) else range(len(records))
    options = [letters.options(record.prompt) if record.choice else {} for record in records]
    choices = sorted({name for offered in options for name in offered})
    expected = {"warn": "refuse"} if dataset == "MSSBench" else {}  # its evaluator knows comply and refuse
    header = ["index", "question", *choices, "answer", "category", "prediction", "thinking", "id"]
    path = target / f"{target.name}_{dataset}.tsv"
    partial = path.with_name(f"{path.name}.partial")
    with open(partial, "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, delimiter="\t", quoting=csv.QUOTE_ALL, lineterminator="\n")
        table.writerow(header)
        for number, record, offered, response in zip(index, records, options, responses, strict=True):
            table.writerow([
                number,
                record.prompt,
                *(offered.get(name, "") for name in choices),
                record.choice or record.reference or expected.get(record.expected, record.expected),
                record.category,
                outcomes.answer_of(response) or response.strip(),
                outcomes.thinking_of(response) or "",
                record.id,
            ])  # fmt: skip
    os.replace(partial, path)
    return [path]


def _asked(record: Record) -> str:
    """The conversation's user turns and prompt as one text."""
    return "\n\n".join([*record.history, record.prompt])


def _same_length(benchmark: str, *lists: Sequence[Any]) -> None:
    if len({len(one) for one in lists}) != 1 or not lists[0]:
        counts = ", ".join(str(len(one)) for one in lists)
        raise BenchmarkError(f"{benchmark}: {counts} records, responses and rows; want one of each, and at least one")


def _folder(folder: Path, model: str) -> Path:
    """The model's folder, its name as lmms-eval makes it: the last part of a path, without signs that paths cannot have."""
    name = re.sub(r'["<>:/|\\?*\[\]\s]+', "__", model.rstrip("/").rpartition("/")[2]) or "model"
    made = folder / name
    made.mkdir(parents=True, exist_ok=True)
    return made


def _replace(path: Path, text: str) -> None:
    """The file appears whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
