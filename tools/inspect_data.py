"""Shows what a split of a data set holds: counts, tags, lengths, what would be left out, overlap, a page (host code)."""

import argparse
import json
import pathlib
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from safer_jax import command, images, inspection, overlap, prompts
from safer_jax import config as config_lib
from safer_jax.command import ExitCode
from safer_jax.datasets import DataError, adapters, arguments, mixture

EXAMPLES = """examples:
  python tools/inspect_data.py --name=safetag --path=SafeTag-VL-3K --split=train --out=safetag.html
  python tools/inspect_data.py --name=demo --split=train --against="demo test" --config=configs/tiny.py
  python tools/inspect_data.py --name=spa_vl --path=SPA-VL --split=train \\
      --config=configs/safegrpo_3b.py --config.model.path=weights/3b --against="siuo test SIUO" --against="mossbench test MOSS"

With --config prompts are measured by that config's tokenizer and buckets, as training does. Exit codes: 2 bad input.
"""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python tools/inspect_data.py",
        description=__doc__.removesuffix(" (host code)."),
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        parents=[arguments.parser()],
    )
    made.add_argument("--config", default="", help="a config file; its settings follow as --config.SECTION.FIELD=VALUE")
    made.add_argument("--against", action="append", default=[], metavar="'NAME SPLIT FOLDER'", help="another set, to find what both hold; may be given again")  # fmt: skip
    made.add_argument("--out", type=arguments.place, help="write a page to this file")
    made.add_argument("--json", type=arguments.place, help="write the figures to this file")
    made.add_argument(
        "--shots",
        type=arguments.at_least(0),
        default=60,
        help="rows on the page's contact sheet (default: %(default)s)",
    )
    return made


def fit_of(path: str, overrides: list[str]) -> tuple[inspection.Fit, images.Limits]:
    """The tokenizer, buckets and limits of a config."""
    from safer_jax import build, command_line

    command_line.parse([sys.argv[0], f"--config={path}", *overrides])
    config = command_line.read(trains=False)
    with tempfile.TemporaryDirectory() as assets:
        assets = pathlib.Path(assets) / "assets"
        processor = build.make_processor(config, assets, build.prepare_assets(config, assets))
    name = config.model.path or "the demo set's, for model.path is empty: lengths are not those of a real model"
    return inspection.Fit(processor.size, config.prompt.buckets, config.prompt.patch_buckets, name), processor.limits


def inspect(args: argparse.Namespace, overrides: list[str]) -> None:
    others = [mixture.parse(line, is_weighed=False) for line in args.against]
    for target in filter(None, (args.out, args.json)):
        target.parent.mkdir(parents=True, exist_ok=True)  # what cannot be written is told before hours of reading
    source = arguments.load(args)
    opened = {str(entry): adapters.load(entry.name, entry.path, entry.split, args.root) for entry in others}
    fit, limits = None, images.Limits(1, args.max_source_pixels, args.max_image_bytes, args.max_source_pixels)
    if args.config:
        fit, limits = fit_of(args.config, overrides)
    prints = overlap.Prints(source.name, args.root, limits) if opened else None
    summary = inspection.look(source, limits, fit, args.shots if args.out else 0, prints, args.threads)
    overlaps = {}
    for name, other in opened.items():
        found = overlap.compare(overlap.prints(other, args.root, threads=args.threads), prints)
        overlaps[name] = found.line(name, source.name)
    if prints is not None:
        prints.save()
    print(inspection.text(summary, fit, overlaps), end="")
    if args.json:
        args.json.write_text(json.dumps({**summary.told(), "overlap": overlaps}, indent=1) + "\n")
    if args.out:
        args.out.write_bytes(inspection.document(summary, fit, overlaps))
        print(f"page: {args.out}")


def main() -> int:
    made = parser()
    args, rest = made.parse_known_args()
    if wrong := [text for text in rest if not (args.config and text.startswith("--config."))]:
        made.error(
            f"unrecognised: {' '.join(wrong)}; settings are written as --config.SECTION.FIELD=VALUE, after --config"
        )
    try:
        inspect(args, rest)
    except (DataError, config_lib.ConfigError, prompts.PromptError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return ExitCode.BAD_INPUT
    except KeyboardInterrupt:
        return ExitCode.STOPPED
    return 0


if __name__ == "__main__":
    command.run(main)
