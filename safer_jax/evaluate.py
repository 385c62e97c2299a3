"""Benchmarks: a policy answers them, a judge of its own or keywords say what it did, tables follow (host code; calls array code).

    python -m safer_jax.evaluate --config=configs/tiny.py --checkpoint=runs/tiny --benchmark=demo --out=evaluations/tiny
    python -m safer_jax.evaluate compare evaluations/tiny evaluations/other

Two passes, each of which goes on where it was killed: first all answers, then all verdicts (`benchmarks/answers.py` keeps both), so a
judge that is down costs no answer. What stands in the files is then counted (`benchmarks/results.py`).
"""

import argparse
import contextlib
import dataclasses
import hashlib
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax

from safer_jax import (
    benchmarking,
    benchmarks,
    build,
    checkpoint,
    command,
    command_line,
    data,
    images,
    mesh,
    policy,
    programs,
    runtime,
    scoring,
    verdicts,
)
from safer_jax import config as config_lib
from safer_jax.benchmarks import answers, results
from safer_jax.benchmarks.metrics import BENCHMARKS
from safer_jax.command import ExitCode
from safer_jax.curate.dataset import Subset
from safer_jax.datasets import adapters
from safer_jax.datasets.arguments import at_least, place
from safer_jax.judge import JudgeError, kinds, local, question

RUBRIC = "evaluation"
# Of `prompt`: what a policy is trained to be asked by.
ASKED = ("system", "guide", "force_think", "min_pixels", "max_pixels")
BAD_INPUT = (*build.BAD_INPUT, answers.AnswersError, benchmarks.BenchmarkError)

EXAMPLES = """examples:
  python -m safer_jax.evaluate --config=configs/tiny.py --checkpoint=runs/tiny --benchmark=demo --out=evaluations/tiny
  python -m safer_jax.evaluate --config=configs/safegrpo_3b.py --checkpoint=runs/3b:192 --benchmark=siuo,mossbench \\
      --data=siuo=/data/SIUO,mossbench=/data/MOSSBench --out=evaluations/3b       # or --data=/data, a folder for each
  JUDGE_KEY=... python -m safer_jax.evaluate ... --config.eval_judge.kind=http --config.eval_judge.model=NAME \\
      --config.eval_judge.url=http://judge:8000/v1 --config.eval_judge.key_env=JUDGE_KEY        # any setting like this
  python -m safer_jax.evaluate compare evaluations/base evaluations/3b            # a Markdown table, second minus first

The same command goes on where it was stopped; with another judge it judges the answers that there are. Exit codes: 2 bad
input, 75 stopped by a signal, 77 the judge is down; after both of these start the same command again.
benchmarks: """


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m safer_jax.evaluate",
        description="Answers benchmarks with a policy, has the answers judged, writes tables, predictions and a page.",
        epilog=EXAMPLES + ", ".join(BENCHMARKS),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument(
        "--config", required=True, help="a config file; its settings follow as --config.SECTION.FIELD=VALUE"
    )
    made.add_argument("--checkpoint", default="", metavar="FOLDER[:STEP]", help="a run (default: its newest step) or what convert.py from-hf wrote; default: the config's model.path")  # fmt: skip
    made.add_argument("--benchmark", required=True, type=names, metavar="NAME,...", help="see below")
    made.add_argument("--data", default={}, type=pairs, metavar="NAME=FOLDER,...", help="folders of the sets, or one folder that holds one for each by name; demo needs none")  # fmt: skip
    made.add_argument("--out", required=True, type=place, help="folder of the results; the same one goes on")
    made.add_argument("--split", default={}, type=pairs, metavar="SPLIT | NAME=SPLIT,...", help="default: the benchmark's own")  # fmt: skip
    made.add_argument("--limit", default=0, type=at_least(1), help="only the first so many rows of each")
    made.add_argument("--samples", default=1, type=at_least(1), help="answers to each row (default: %(default)s)")
    made.add_argument("--force-same-judge", action="store_true", help="let the judge of training grade what it trained")
    return made


def names(text: str) -> list[str]:
    """ "siuo,demo" -> ["siuo", "demo"]."""
    chosen = list(dict.fromkeys(text.split(",")))
    if unknown := [name for name in chosen if name not in BENCHMARKS]:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(map(repr, unknown))}; known are {', '.join(BENCHMARKS)}")
    return chosen


def pairs(text: str) -> dict[str, str]:
    """ "siuo=a,demo=b" -> {"siuo": "a", "demo": "b"}; "a" -> {"": "a"}, which is for all."""
    parts = text.split(",") if "=" in text else [f"={text}"]
    found = dict(part.partition("=")[::2] for part in parts)
    known = {"", *BENCHMARKS, *adapters.ADAPTERS}
    if wrong := [name for name in found if name not in known or not found[name]]:
        raise argparse.ArgumentTypeError(f"{text!r}: {wrong[0]!r} is no benchmark with a value; write NAME=VALUE,...")
    return found


def open_tasks(args: argparse.Namespace, config: config_lib.Config) -> list[benchmarking.Task]:
    """The rows of every benchmark asked for. Raises DataError."""
    tasks = []
    for name in args.benchmark:
        made = BENCHMARKS[name]
        folder = folder_of(name, args.data)
        if not folder and made.adapter != "demo":
            raise data.DataError(f"--data: names no folder for {name}; add {name}=FOLDER")
        split = args.split.get(name, args.split.get("", made.split))
        source = adapters.load(made.adapter, folder, split, config.data.root)
        if args.limit:
            source = Subset(source, range(min(args.limit, len(source))))
        tasks.append(benchmarking.Task(name, split, source, args.out / name, made.is_judged))
    return tasks


def folder_of(name: str, folders: dict[str, str]) -> str:
    """A benchmark's folder, named for it or for the set that it is of; "" where none is. Raises DataError."""
    adapter = BENCHMARKS[name].adapter
    names = list(dict.fromkeys([name, adapter, adapters.ADAPTERS[adapter].module]))
    if own := [folders[one] for one in names if one in folders]:
        return own[0]
    if "" not in folders or adapter == "demo":
        return ""
    root = pathlib.Path(folders[""]).expanduser()
    if own := [str(root / one) for one in names if (root / one).is_dir()]:
        return own[0]
    if not root.is_dir():
        raise data.DataError(f"--data={root}: no such folder; correct it, or write --data={name}=FOLDER")
    raise data.DataError(
        f"--data={root}: holds no folder {' or '.join(names)}; rename one, or write --data={name}=FOLDER"
    )


def run(args: argparse.Namespace, config: config_lib.Config) -> None:
    """Answers, then verdicts, then results. Raises runtime.Stopped, JudgeDown, and what BAD_INPUT lists."""
    if args.samples > 1 and config.eval.temperature == 0:
        raise config_lib.ConfigError("--samples: greedy answers are all alike; set --config.eval.temperature above 0")
    tasks = open_tasks(args, config)
    identity = identify(config)
    trained = of_training(policy.split(args.checkpoint or config.model.path)[0])
    is_same, otherwise = is_judge_of_training(config, trained), asked_otherwise(config, trained)
    if is_same and not args.force_same_judge:
        raise JudgeError(
            f"eval_judge: is the judge of training, {identity.name}; a policy pleases the judge that trained it. Choose "
            "another, or give --force-same-judge, which the results then say"
        )
    if jax.process_index() == 0:
        for difference in otherwise:
            answers.say(f"asked otherwise than in training: {difference}")
    device_mesh = mesh.make(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    ways = device_mesh.shape["data"] * device_mesh.shape["fsdp"]
    if config.eval.prompts % ways:
        raise mesh.MeshError(f"eval.prompts = {config.eval.prompts}: is no multiple of mesh.data x mesh.fsdp = {ways}")
    sampler = lambda *parts: programs.testing(*parts, group=args.samples)
    with (
        jax.set_mesh(device_mesh),
        runtime.Stopper() as stopper,
        runtime.watchdog() as watchdog,
        contextlib.ExitStack() as held,
    ):
        going = benchmarking.Going(stopper, watchdog)
        answering = policy.load(config, args.checkpoint, device_mesh, sampler)
        origin = answering.origin
        # All first: what cannot be asked of the last set is told before the answers to the first take their hours.
        found = [benchmarking.measure(task.source, answering.processor, config) for task in tasks]
        for task in tasks:
            held.enter_context(runtime.alone(task.folder))
        for task, measured in zip(tasks, found):
            benchmarking.answer(task, *measured, answering, config, args.samples, args.limit, device_mesh, going)
        del answering  # a judge on the mesh needs the room
        judge = make_judge(config, device_mesh)
        for task in tasks:
            if judge and task.is_judged:
                benchmarking.grade(task, judge, identity, config, going)
    if jax.process_index() == 0:
        told = {
            "checkpoint": origin._asdict(),
            "judge": {**identity._asdict(), "is_judge_of_training": is_same},
            "config": config_lib.flatten(config),
            "asked_otherwise": otherwise,
            "samples": args.samples,
            "limit": args.limit,
        }
        for task in tasks:
            pictures = lambda row, task=task: previews(task, row, config)
            results.write(task.folder, task.name, told, verdicts.RUBRICS[RUBRIC], identity, pictures)
        results.collect(args.out)


def make_judge(config: config_lib.Config, device_mesh: jax.sharding.Mesh) -> verdicts.Judge | None:
    """The judge that `eval_judge` names. Raises JudgeError."""
    used = dataclasses.replace(config, judge=config.eval_judge)
    try:
        return build.make_judge(used, None, device_mesh, RUBRIC)
    except JudgeError as error:
        raise JudgeError(f"eval_judge: {error}") from error


def previews(task: benchmarking.Task, row: int, config: config_lib.Config) -> list[str]:
    """The row's images, made small, in files beside its answers; their paths from the folder above."""
    limits = images.Limits(1, 1, config.prompt.max_image_bytes, config.prompt.max_source_pixels)
    record, folder = task.source[row], task.folder / "images"
    folder.mkdir(exist_ok=True)
    return [f"{task.name}/{scoring.save_preview(image, folder, limits, record.id)}" for image in record.images]


def identify(config: config_lib.Config) -> answers.Identity:
    """Which judge `eval_judge` is."""
    settings, rubric = config.eval_judge, verdicts.RUBRICS[RUBRIC]
    path = pathlib.Path(settings.path).expanduser()
    name = {"none": "keywords", "rules": "rules", "http": settings.model}.get(settings.kind, path.name)
    told = [question.instruction(rubric), question.material("", "", "")]
    if settings.kind == "score":
        told = [local.grading(rubric), question.material("", "", ""), local.questions(rubric)]
    if settings.kind in kinds.LOCAL:
        try:
            name = str(policy.origin(path, checkpoint.latest(path / "checkpoints")))
        except (OSError, ValueError, KeyError) as error:
            raise JudgeError(
                f"eval_judge.path = {settings.path!r}: no converted model or run ({error}); correct it"
            ) from error
    prompt = "" if settings.kind in ("none", "rules") else hashlib.sha256(json.dumps(told).encode()).hexdigest()
    return answers.Identity(settings.kind, name, prompt, settings.temperature, settings.max_tokens)


def of_training(folder: str) -> dict[str, Any]:
    """The settings of the run whose weights are evaluated; {} of a converted model or of random weights, which have none."""
    try:
        return dict(json.loads((pathlib.Path(folder).expanduser() / "config.json").read_text())) if folder else {}
    except (OSError, ValueError, TypeError):
        return {}


def asked_otherwise(config: config_lib.Config, trained: dict[str, Any]) -> list[str]:
    """The settings of the prompt by which the policy is asked otherwise than in its training, each with the fix."""
    kept, own = trained.get("prompt") or {}, dataclasses.asdict(config.prompt)
    return [
        f"prompt.{name} is {own[name]!r}, in training it was {kept[name]!r}: --config.prompt.{name}={kept[name]}"
        for name in ASKED
        if name in kept and kept[name] != own[name]
    ]


def is_judge_of_training(config: config_lib.Config, trained: dict[str, Any]) -> bool:
    """Whether `eval_judge` is the config's `judge`, or that of the run whose weights are evaluated.

    The rubric does not tell two judges apart, for this command has one of its own: a model is the same whatever it is
    asked, at whatever address, and whether a server or the mesh runs it.
    """
    others = [dataclasses.asdict(config.judge), trained.get("judge")]
    return any(_is_same(dataclasses.asdict(config.eval_judge), other) for other in others if other)


def _is_same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Two judges on the mesh by their weights; else models by the last part of their names, as "org/name" or a path has it."""
    kinds_ = {first["kind"], second["kind"]}
    if "none" in kinds_:
        return False
    if kinds_ <= {*kinds.LOCAL}:
        return _weights(first) == _weights(second)
    if kinds_ <= {"http", *kinds.LOCAL}:
        return _called(first) == _called(second)
    return first["kind"] == second["kind"] and _folder(first) == _folder(second)


def _folder(settings: dict[str, Any]) -> pathlib.Path:
    return pathlib.Path(settings["path"]).expanduser().resolve()


def _weights(settings: dict[str, Any]) -> str:
    """Their hash, for a folder may be copied; the folder where it holds none."""
    path = _folder(settings)
    try:
        return policy.origin(path, checkpoint.latest(path / "checkpoints")).sha256
    except (OSError, ValueError, KeyError):
        return str(path)


def _called(settings: dict[str, Any]) -> str:
    name = settings["model"] if settings["kind"] == "http" else _folder(settings).name
    return name.rstrip("/").rpartition("/")[2].lower()


def compare(arguments: Sequence[str]) -> None:
    """The command of that name."""
    made = argparse.ArgumentParser(
        prog="python -m safer_jax.evaluate compare",
        description="Second minus first over the rows that both answered: paired bootstrap and McNemar's test, as Markdown.",
    )
    made.add_argument("first", type=place, help="an --out of safer_jax.evaluate")
    made.add_argument("second", type=place, help="another one")
    made.add_argument("--json", type=place, help="also write the figures to this file")
    args = made.parse_args(arguments)
    try:
        compared = results.compare(args.first, args.second)
    except (answers.AnswersError, benchmarks.BenchmarkError) as error:
        answers.say(f"{type(error).__name__}: {error}")
        sys.exit(ExitCode.BAD_INPUT)
    if args.json:
        answers.replace(args.json, json.dumps(compared, indent=1) + "\n")
    print(results.comparison(compared))


def main() -> None:
    if sys.argv[1:2] == ["compare"]:
        compare(sys.argv[2:])
        return
    made = parser()
    args, rest = made.parse_known_args()
    if wrong := [text for text in rest if not text.startswith("--config.")]:
        made.error(f"unrecognised: {' '.join(wrong)}; settings are written as --config.SECTION.FIELD=VALUE")
    command_line.parse([sys.argv[0], f"--config={args.config}", *rest])
    with runtime.started(BAD_INPUT):
        run(args, command_line.read(trains=False))
    if jax.process_index() == 0:
        print(f"{results.headlines(args.out)}\nresults: {args.out / 'evaluation.html'}")


if __name__ == "__main__":
    command.run(main)
