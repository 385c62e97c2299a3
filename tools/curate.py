"""The QI-Box: scores a policy's own answers, selects the prompts worth training on, compares judges (host code)."""

import argparse
import dataclasses
import functools
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from safer_jax import command, curate
from safer_jax import config as config_lib
from safer_jax.command import ExitCode
from safer_jax.curate import agreement, box, dataset, scores
from safer_jax.datasets import DataError
from safer_jax.datasets.arguments import at_least, place

EXAMPLES = """examples:
  python tools/curate.py score --config=configs/tiny_safer.py --checkpoint=runs/tiny_safer:600 --out=scored
  python tools/curate.py score --config=configs/safer_vlm_3b.py --checkpoint=weights/3b --out=scored \\
      --config.data.path=SafeTag-VL-3K --config.judge.url=http://localhost:8000/v1     # any setting of the config
  python tools/curate.py select --scores=scored --out=curated --target-size=10000 --balance
  python -m safer_jax.train ... --config.data.name=curated --config.data.path=curated  # the same splits, fewer rows

  python tools/curate.py score --config=configs/other.py --answers=scored --out=scored_again
  python tools/curate.py agree --scores=scored --with=scored_again --json=agreement.json
  python tools/curate.py agree --scores=scored --with=labels.csv   # id,rollout,score (1..10) or id,rollout,accept

score goes on where it was killed. Exit codes are those of training: 2 bad input, 75 stopped, 77 judge down.
"""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python tools/curate.py",
        description=__doc__.removesuffix(" (host code)."),
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = made.add_subparsers(dest="command", required=True)
    add = lambda name, text: commands.add_parser(
        name, help=text, description=text, epilog=EXAMPLES, formatter_class=made.formatter_class, allow_abbrev=False
    )
    score = add("score", "sample K answers to each training prompt and judge them")
    score.add_argument(
        "--config", required=True, help="a config file; its settings follow as --config.SECTION.FIELD=VALUE"
    )
    score.add_argument("--out", required=True, type=place, help="folder of the scores; the same one goes on")
    origin = score.add_mutually_exclusive_group()
    origin.add_argument("--checkpoint", default="", metavar="RUN[:STEP]", help="a run (default: its newest step) or what convert.py from-hf wrote; default: the config's model.path")  # fmt: skip
    origin.add_argument("--answers", type=place, metavar="SCORED", help="judge the answers of another --out, sample none")  # fmt: skip
    score.add_argument("--rollouts", type=at_least(2), default=8, help="K, answers a prompt (default: %(default)s)")
    score.add_argument("--temperature", type=positive, default=1.0, help="of the answers (default: %(default)s)")
    score.add_argument("--prompts", type=at_least(1), help="prompts a pass (default: the config's sampler.prompts_per_pass, or grpo.prompts)")  # fmt: skip
    score.add_argument("--rows", type=at_least(1), help="only the first so many; a later call may go on with more")
    score.add_argument("--part", type=part, default=(0, 1), metavar="I/N", help="of N processes with one --out, the I-th (from 1)")  # fmt: skip
    score.add_argument("--again", action="store_true", help="score prompts again that were set aside")
    select = add("select", "write the prompts in the box as a data set, with a page")
    select.add_argument("--scores", required=True, type=place, help="the --out of score")
    select.add_argument("--out", required=True, type=place, help="a folder that is new or empty, for data.path")
    select.add_argument("--q-low", type=float, default=4.0, help="least quality, 1..10 (default: %(default)s)")
    select.add_argument("--q-high", type=float, default=7.0, help="largest quality, 1..10 (default: %(default)s)")
    select.add_argument("--i-min", type=float, default=0.0, help="least instability; none is never kept (default: %(default)s)")  # fmt: skip
    select.add_argument(
        "--target-size", type=at_least(1), default=0, metavar="N", help="keep the N most unstable in the box"
    )
    select.add_argument("--balance", action="store_true", help="an equal share of N for each category")
    select.add_argument("--random", action="store_true", help="N prompts at random instead, to compare the box with")
    agree = add("agree", "compare two judges, or a judge with people, on the same answers")
    agree.add_argument("--scores", required=True, type=place, help="an --out of score, or one of its files")
    agree.add_argument("--with", required=True, type=place, dest="other", help="another one, or a .csv of labels")
    agree.add_argument("--on", choices=("safety", "scores"), default="safety", help="the judge's safety, or s_k (default: %(default)s)")  # fmt: skip
    agree.add_argument(
        "--accept-at", type=float, default=6.0, help="from where on an answer is accepted (default: %(default)s)"
    )
    agree.add_argument("--seed", type=int, default=0, help="of the bootstrap (default: %(default)s)")
    agree.add_argument("--json", type=place, help="also write the figures to this file")
    return made


def positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return value


def part(text: str) -> tuple[int, int]:
    """ "2/4" -> (1, 4)."""
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is no part; write it as 2/4")
    return int(number) - 1, int(count)


def score(args: argparse.Namespace, overrides: list[str]) -> None:
    from safer_jax import build, command_line, mesh, rewards, runtime
    from safer_jax.judge import kinds

    command_line.parse([f"{sys.argv[0]} score", f"--config={args.config}", *overrides])
    with runtime.started((*build.BAD_INPUT, curate.CurateError)):
        config = command_line.read(trains=False)
        if config.judge.kind == "none":
            raise curate.CurateError(
                "judge.kind = 'none': scores are a judge's; choose one, such as --config.judge.kind=http"
            )
        rows, ask, size = (from_answers if args.answers else from_policy)(args, config)
        device_mesh = mesh.make(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
        rubric = rewards.SCHEMES[config.reward.scheme].rubric or "safer_vlm"  # as build.make_judge has it
        with runtime.Stopper() as stopper:
            is_done = scores.score(
                args.out,
                rows,
                ask,
                build.make_judge(config, args.out / f"part{args.part[0]}", device_mesh),
                rubric,
                config.reward,
                size,
                is_ahead=config.judge.kind not in kinds.LOCAL,  # that one wants the device for itself
                is_again=args.again,
                stop=stopper.requested,
            )
        if not is_done:
            raise runtime.Stopped("stopped; the same command goes on")
    print(f"scores: {args.out}")


def from_policy(args: argparse.Namespace, config: config_lib.Config):
    """(rows by shard, what answers them, prompts a pass): K answers of a policy to each row that it can read."""
    import jax

    from safer_jax import attempts, data, measured, mesh, policy, programs, scoring
    from safer_jax.shapes import ANSWER

    if jax.process_count() > 1:
        raise curate.CurateError("score runs in one process; start one for each host, with --part=1/N and so on")
    own = dataclasses.replace(config.sampler, group=args.rollouts, temperature=args.temperature)
    used = dataclasses.replace(config, sampler=own, reflection=dataclasses.replace(config.reflection, reruns=0))
    device_mesh = mesh.make(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    processor, sample, params, origin = policy.load(used, args.checkpoint, device_mesh, programs.sampling)

    source = data.load(config.data, config.data.train_split)
    settings = scores.Settings(config, args.rollouts, args.temperature, str(origin), len(source))
    scores.claim(args.out, settings)
    first = dataset.Subset(source, range(min(len(source), args.rows or len(source))))
    most = max(config.prompt.buckets), max(config.prompt.patch_buckets)
    sizes = measured.Sizes(processor, config.data.root, source.name)  # encodes, which finds truncated images too
    usable = data.usable(first, sizes, *most, config.data.bad_rows, is_training=True)
    sizes.save()
    feed = data.Feed(source, usable, processor, config.prompt)
    needs = dict(zip(usable.rows, zip(usable.patches_n, usable.tokens_n)))
    rows = {shard: sorted(own, key=needs.get) for shard, own in scores.shards(usable.rows, *args.part).items()}
    size = args.prompts or config.sampler.prompts_per_pass or config.grpo.prompts

    def ask(rows):
        filled = [*rows, *rows[-1:] * (size - len(rows))]  # one compiled program
        asked = feed.ask(filled, filled)
        with jax.set_mesh(device_mesh):
            rollout = attempts.rollout(sample, params, asked.prompts, 0, device_mesh)
        is_answer_PGC = rollout.role_PGC == ANSWER
        texts = [
            [scoring.text_of(ids[chosen], processor) for ids, chosen in zip(*group)]
            for group in zip(rollout.token_PGC, is_answer_PGC)
        ]
        return asked.records[: len(rows)], texts[: len(rows)]

    return rows, ask, size


def from_answers(args: argparse.Namespace, config: config_lib.Config):
    """The same of the answers that stand in another folder of scores: only judge and reward are this config's."""
    from safer_jax import data

    theirs = scores.read_settings(args.answers)
    used = dataclasses.replace(theirs.config, judge=config.judge, reward=config.reward)
    source = data.load(used.data, used.data.train_split)
    scores.claim(args.out, theirs._replace(config=used))
    ids = {group.row: group.id for group in scores.read(scores.files(args.answers))}
    rows = [row for row in sorted(ids) if row < (args.rows or theirs.rows)]
    groups = functools.lru_cache(1)(lambda shard: {g.row: g for g in scores.read([scores.path(args.answers, shard)])})

    def ask(rows):
        records = dataset.Subset(source, rows, [ids[row] for row in rows])
        return list(records), [groups(row // scores.SHARD)[row].responses for row in rows]

    return scores.shards(rows, *args.part), ask, args.prompts or 32


def select(args: argparse.Namespace) -> None:
    wanted = box.Box(args.q_low, args.q_high, args.i_min, args.target_size, args.balance, args.random)
    made = dataset.make(args.scores, args.out, wanted)
    for fate, count in made.counts.items():
        print(f"{count:8,} {fate}: {box.FATES[fate]}")
    if not args.random:
        print(f"least instability kept: {made.i_min:g}")
    print(f"train with --config.data.name=curated --config.data.path={args.out}\npage: {args.out / 'curate.html'}")


def agree(args: argparse.Namespace) -> None:
    first = agreement.read_scores(args.scores, args.on, args.accept_at)
    if args.other.suffix.lower() == ".csv":
        second = agreement.read_labels(args.other, args.accept_at)
    else:
        second = agreement.read_scores(args.other, args.on, args.accept_at)
    report = agreement.compare(first, second, seed=args.seed)
    if args.json:
        agreement.write_json(args.json, report)
    print(agreement.markdown(report), end="")


def main() -> int:
    made = parser()
    args, rest = made.parse_known_args()
    if wrong := [text for text in rest if args.command != "score" or not text.startswith("--config.")]:
        made.error(f"unrecognised: {' '.join(wrong)}; settings are written as --config.SECTION.FIELD=VALUE, for score")
    if args.command == "score":
        score(args, rest)
        return 0
    try:
        {"select": select, "agree": agree}[args.command](args)
    except (curate.CurateError, config_lib.ConfigError, DataError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return ExitCode.BAD_INPUT
    return 0


if __name__ == "__main__":
    command.run(main)
