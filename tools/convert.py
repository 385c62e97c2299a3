"""Converts checkpoints between Hugging Face safetensors and the folders that `model.path` names (host code)."""

import argparse
import os
import pathlib
import sys

os.environ["JAX_PLATFORMS"] = "cpu"  # set before JAX is imported: a conversion must not take the accelerator
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from safer_jax import checkpoint, command, convert, shards
from safer_jax.command import ExitCode
from safer_jax.model import variants

EXAMPLES = """examples:
  python tools/convert.py from-hf Qwen2.5-VL-3B-Instruct weights/3b          # then: --config.model.path=weights/3b
  python tools/convert.py to-hf weights/3b exported                          # the same tensors again, bit for bit
  python tools/convert.py to-hf runs/safegrpo_3b exported --step 400         # the policy of a run after 400 steps
  python tools/convert.py random --variant 3b random-3b                      # random weights, for a dry run

All folders are local; nothing is downloaded. DST must be new or empty, and appears only when it is complete.
Memory stays near the largest stacked group, not the model: tools/README.md has the figures.
"""
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


def size(text: str) -> int:
    """ "5GB" -> 5000000000."""
    number, unit = text[:-2], text[-2:].upper()
    if unit not in UNITS or not number.isdecimal() or not int(number):
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write it as 5GB, 500MB or 40KB")
    return int(number) * UNITS[unit]


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python tools/convert.py",
        description=__doc__.removesuffix(" (host code)."),
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = made.add_subparsers(dest="command", required=True)
    reads = commands.add_parser("from-hf", help="Hugging Face folder -> a folder for model.path")
    reads.add_argument("source", metavar="SRC", help="config.json, *.safetensors, tokenizer and preprocessor files")
    writes = commands.add_parser("to-hf", help="converted folder or training run -> Hugging Face folder")
    writes.add_argument("source", metavar="SRC", help="what from-hf wrote, or the --workdir of a run")
    writes.add_argument("--step", type=int, help="which checkpoint of a run (default: the newest)")
    draws = commands.add_parser("random", help="Hugging Face folder of random bfloat16 weights")
    draws.add_argument("--variant", required=True, choices=sorted(variants.VARIANTS))
    draws.add_argument("--seed", type=int, default=0)
    for one in (reads, writes, draws):
        one.add_argument("target", metavar="DST", help="a folder that is new or empty")
    for one in (writes, draws):
        one.add_argument("--shard-size", type=size, default="5GB", help="largest shard (default: %(default)s)")
    return made


def main() -> int:
    args = parser().parse_args()
    try:
        if args.command == "from-hf":
            convert.from_hf(args.source, args.target)
        elif args.command == "to-hf":
            convert.to_hf(args.source, args.target, args.step, args.shard_size)
        else:
            convert.random(args.variant, args.target, args.seed, args.shard_size)
    except (shards.ConvertError, checkpoint.CheckpointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return ExitCode.BAD_INPUT
    print(f"wrote {args.target}")
    return 0


if __name__ == "__main__":
    command.run(main)
