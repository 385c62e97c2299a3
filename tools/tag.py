"""Builds a set with three tags a row: a judge rates image, text and both of rows and of prompts drawn as images (host code)."""

import argparse
import dataclasses
import pathlib
import sys
from typing import Any, NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from safer_jax import command
from safer_jax.datasets.arguments import at_least, place
from safer_jax.tagging import selection, typography

EXAMPLES = """examples:
  python tools/tag.py --config=configs/safegrpo_3b.py --out=tagged --name=spa_vl --path=SPA-VL \\
      --config.judge.kind=http --config.judge.url=http://localhost:8000/v1 --config.judge.model=judge
  python tools/tag.py ... --name=vlguard --path=VLGuard --name=spa_vl --path=SPA-VL --rows=20000 \\
      --name=beavertails_v --path=BeaverTails-V --rows=0 --render-text=300       # several sets in one
  python tools/tag.py ... --cell=SSU=300 --target-size=3000        # the same command again: only the selection is new
  python -m safer_jax.train ... --config.data.name=safetag --config.data.path=tagged

The same command goes on where it was killed. Exit codes are those of training: 2 bad input, 75 stopped, 77 judge down.
"""


count = at_least(0)


class Set(NamedTuple):
    """A --name with the options that follow it."""

    name: str
    path: str = ""
    split: str = "train"
    rows: int | None = None
    render_text: int = 0


class OfSet(argparse.Action):
    """Keeps an option with the --name before it."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, value: Any, option: Any = None):
        sets = list(namespace.sets)
        if self.metavar == "NAME":
            sets.append(Set(value))
        elif sets:
            sets[-1] = sets[-1]._replace(**{option.removeprefix("--").replace("-", "_"): value})
        else:
            parser.error(f"{option} belongs to the --name before it, and there is none")
        namespace.sets = sets


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python tools/tag.py",
        description=__doc__.removesuffix(" (host code)."),
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    usual = selection.Rule()
    made.add_argument("--config", required=True, help="a config file: its judge, prompt limits and seed count; settings follow as --config.SECTION.FIELD=VALUE")  # fmt: skip
    made.add_argument("--out", required=True, type=place, help="folder of the ratings and the set; the same one goes on")  # fmt: skip
    made.set_defaults(sets=())
    sets = made.add_argument_group("which rows, each set with the options that follow its --name")
    add = lambda name, metavar, text, **more: sets.add_argument(
        name, dest="sets", action=OfSet, metavar=metavar, help=text, **more
    )
    add("--name", "NAME", "a data set, as data.name; several may follow each other", required=True)
    add("--path", "FOLDER", "as data.path")
    add("--split", "SPLIT", "default: train")
    add("--rows", "N", "only the first N rows as they are, 0 = none; default: all", type=count)
    add("--render-text", "N", "N prompts, chosen by seed, drawn as images too; default: 0", type=count)
    rule = made.add_argument_group("which of them are kept; may change between calls")
    rule.add_argument("--unsafe-to", type=float, default=usual.unsafe_to, help="a score up to this is unsafe (default: %(default)s)")  # fmt: skip
    rule.add_argument("--safe-from", type=float, default=usual.safe_from, help="a score from this on is safe (default: %(default)s)")  # fmt: skip
    rule.add_argument("--confidence", type=float, default=usual.confidence, help="that all three must reach (default: %(default)s)")  # fmt: skip
    rule.add_argument("--per-cell", type=count, default=0, metavar="N", help="at most N rows of a cell")
    rule.add_argument("--cell", type=cell, action="append", default=[], metavar="SSU=N", help="at most N of this cell (image, text, together; S safe, U unsafe), instead of --per-cell")  # fmt: skip
    rule.add_argument("--target-size", type=count, default=0, metavar="N", help="N rows in all, in equal shares from the cells as far as they have them")  # fmt: skip
    rule.add_argument("--test-share", type=float, default=usual.test_share, help="of each cell (default: %(default)s)")
    rule.add_argument("--seed", type=int, default=0, help="of which rows are taken, and of the split (default: 0)")
    made.add_argument("--instruction", default=typography.INSTRUCTION, help="asked of a drawn prompt (default: %(default)s)")  # fmt: skip
    made.add_argument("--font", default="", help="a TrueType file to draw with; default: Pillow's own, which has ASCII alone")  # fmt: skip
    made.add_argument("--batch", type=count, default=64, help="items a pass (default: %(default)s)")
    made.add_argument("--again", action="store_true", help="rate items again that had no verdict or could not be read")
    return made


def cell(text: str) -> tuple[str, int]:
    """ "SSU=300" -> ("SSU", 300)."""
    name, _, number = text.partition("=")
    if name not in selection.CELLS:
        raise argparse.ArgumentTypeError(f"{text!r} is no cell; write SSU=300, of {', '.join(selection.CELLS)}")
    return name, count(number)


def rule_of(args: argparse.Namespace) -> selection.Rule:
    limits = args.unsafe_to, args.safe_from, args.confidence
    rule = selection.Rule(*limits, args.per_cell, dict(args.cell), args.target_size, args.test_share, args.seed)
    selection.check(rule)
    return rule


def tag(args: argparse.Namespace, overrides: list[str]) -> None:
    from safer_jax import build, command_line, runtime
    from safer_jax.datasets import adapters
    from safer_jax.tagging import TagError, dataset, ratings

    command_line.parse([sys.argv[0], f"--config={args.config}", *overrides])
    with runtime.started((*build.BAD_INPUT, TagError)):
        config, rule = command_line.read(trains=False), rule_of(args)
        if config.judge.kind == "none":
            raise TagError("judge.kind = 'none': tags are a judge's; choose one, such as --config.judge.kind=http")
        typography.draw(args.instruction, 0, args.font)  # a font that cannot be read is told now
        sets, wanted = {}, {}
        for one in args.sets:
            source = adapters.load(one.name, one.path, one.split, config.data.root)
            settings = ratings.Settings(config, one.name, one.path, one.split, len(source), args.instruction, args.font)
            folder = ratings.folder_of(args.out, one.name, one.split)
            if folder.name in sets:
                raise TagError(f"--name={one.name} --split={one.split}: given twice; leave one out")
            ratings.claim(folder, settings)
            sets[folder.name] = ratings.Items(source, settings)
            wanted[folder.name] = sets[folder.name].wanted(one.rows, one.render_text)
        ask = judge_of(config, args.out)
        with runtime.Stopper() as stopper, runtime.alone(args.out):
            for name, items in sets.items():
                folder = args.out / "ratings" / name
                ahead = ratings.missing(folder, wanted[name], args.again)
                if ahead and not ratings.rate(
                    folder, items, wanted[name], ahead, ask(), args.batch, config.data.bad_rows, stopper.requested
                ):
                    raise runtime.Stopped("stopped; the same command goes on")
        made = dataset.make(args.out, sets, wanted, rule)
    for fate, counts in made.fates().items():
        print(f"{sum(counts.values()):8,} {fate}: {selection.FATES[fate]}")
    print(f"train with --config.data.name=safetag --config.data.path={args.out}\npage: {args.out / 'tagged.html'}")


def judge_of(config, out: pathlib.Path):
    """What makes the config's judge when something is to be rated, once: a local one is loaded then."""
    import functools

    from safer_jax import judging, mesh, programs
    from safer_jax.judge import kinds
    from safer_jax.tagging.ratings import RUBRIC

    settings = config.judge
    if settings.kind == "http" and not settings.cache:  # a kill costs no reply that has come
        settings = dataclasses.replace(settings, cache=str(out / "replies"))

    @functools.cache
    def make():
        local = None
        if settings.kind in kinds.LOCAL:
            device_mesh = mesh.make(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
            local = judging.make(config, RUBRIC, device_mesh, programs.key(config, programs.VERDICTS))
        kept = out / "verdicts" / "0.jsonl" if settings.kind == "http" else None
        return kinds.make(settings, RUBRIC, record_to=kept, local=local)

    return make


def main() -> int:
    made = parser()
    args, rest = made.parse_known_args()
    if wrong := [text for text in rest if not text.startswith("--config.")]:
        made.error(f"unrecognised: {' '.join(wrong)}; settings are written as --config.SECTION.FIELD=VALUE")
    tag(args, rest)
    return 0


if __name__ == "__main__":
    command.run(main)
