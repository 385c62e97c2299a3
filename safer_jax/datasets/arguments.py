"""The command line's words for one split of a data set, the same in every tool that reads one (host code)."""

import argparse
import pathlib
from collections.abc import Callable

from safer_jax.datasets import Source, adapters


def parser() -> argparse.ArgumentParser:
    """Options that name a set and limit its images, for `parents` of a tool's parser; the set opens by `load`."""
    made = argparse.ArgumentParser(add_help=False)
    names = ", ".join(adapters.ADAPTERS)
    made.add_argument("--name", required=True, choices=list(adapters.ADAPTERS), metavar="NAME", help=names)
    made.add_argument("--path", default="", help="the data set's folder; demo: empty = the cache folder")
    made.add_argument("--split", required=True, help="name of the split")
    made.add_argument("--max-image-bytes", type=at_least(1), default=20_000_000, help="as prompt.max_image_bytes (default: %(default)s)")  # fmt: skip
    made.add_argument("--max-source-pixels", type=at_least(1), default=50_000_000, help="as prompt.max_source_pixels (default: %(default)s)")  # fmt: skip
    made.add_argument("--root", default="~/.cache/safer_jax", help="as data.root (default: %(default)s)")
    made.add_argument("--threads", type=at_least(1), default=4, help="(default: %(default)s)")
    return made


def load(args: argparse.Namespace) -> Source:
    """The rows that the options name. Raises DataError."""
    return adapters.load(args.name, args.path, args.split, args.root)


def place(text: str) -> pathlib.Path:
    """The type of an option that is a path of this machine: a shell leaves the ~ of --out=~/x as it is."""
    if "://" in text:
        raise argparse.ArgumentTypeError(f"{text!r} is an address, not a folder; mount the bucket and give its folder")
    return pathlib.Path(text).expanduser()


def at_least(low: int) -> Callable[[str], int]:
    """The type of an option that is a whole number of `low` or more."""

    def whole(text: str) -> int:
        if not text.isdecimal() or int(text) < low:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least {low}")
        return int(text)

    return whole
