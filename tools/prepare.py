"""Turns a split of any data set into a tensorflow-datasets array_record set, once, for machines that read it (host code)."""

import argparse
import collections
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from safer_jax import command, images
from safer_jax.command import ExitCode
from safer_jax.datasets import DataError, RowError, arguments, prepared

EXAMPLES = """examples:
  python tools/prepare.py --name=safetag --path=SafeTag-VL-3K --split=train --out=sets/safetag
  python tools/prepare.py --name=safetag --path=SafeTag-VL-3K --split=test --out=sets/safetag   # beside it
  python -m safer_jax.train ... --config.data.name=safetag --config.data.path=sets/safetag
  gcloud storage cp -r sets/safetag gs://bucket/     # then --config.data.path=gs://bucket/safetag

The same command goes on where it was killed. Exit codes: 2 bad input, 75 stopped.
"""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python tools/prepare.py",
        description=__doc__.removesuffix(" (host code)."),
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        parents=[arguments.parser()],
    )
    made.add_argument(
        "--out", required=True, type=arguments.place, help="folder of the prepared set; the same one goes on"
    )
    made.add_argument(
        "--bad-rows",
        type=arguments.at_least(0),
        default=0,
        help="rows that may be left out by name (default: %(default)s)",
    )
    made.add_argument(
        "--shard-rows",
        type=arguments.at_least(1),
        default=prepared.SHARD_ROWS,
        help="rows of a file (default: %(default)s)",
    )
    made.add_argument("--check", choices=("decode", "header"), default="decode", help="how far images are read (default: %(default)s)")  # fmt: skip
    return made


def main() -> int:
    args = parser().parse_args()
    limits = images.Limits(1, args.max_source_pixels, args.max_image_bytes, args.max_source_pixels)
    look = images.decode if args.check == "decode" else images.extent

    def check(record):
        for number, data in enumerate(record.images, 1):
            try:
                look(data, limits, f"row {record.id!r}, image {number}")
            except images.ImageError as error:
                raise RowError(str(error)) from error

    try:
        source = arguments.load(args)
        origin = {"name": args.name, "split": args.split}
        shards = prepared.prepare(source, origin, args.out, check, args.bad_rows, args.shard_rows, args.threads)
    except (DataError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return ExitCode.BAD_INPUT
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return ExitCode.STOPPED
    uses = sum((collections.Counter(shard.uses) for shard in shards), collections.Counter())
    rows, bad = sum(shard.rows for shard in shards), sum(len(shard.bad) for shard in shards)
    print(
        f"{rows:,} rows in {len(shards)} file{'s' * (len(shards) > 1)}, {sum(shard.bytes for shard in shards):,} bytes; {bad} left out"
    )
    for use, count in uses.items():
        print(f"{count:8,} {use}")
    if any(use.startswith("train") for use in uses):
        print(f"train with --config.data.name={args.name} --config.data.path={args.out}")
    else:
        print(f"for evaluation only: python -m safer_jax.evaluate ... --data={args.name}={args.out}")
    return 0


if __name__ == "__main__":
    command.run(main)
