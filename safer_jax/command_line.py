"""A command line's --config and its overrides, read and checked (host code)."""

import difflib
import pathlib
import sys

from absl import flags
from ml_collections import config_flags

from safer_jax import config as config_lib
from safer_jax.command import ExitCode

config_flags.DEFINE_config_file("config", None, "What to run, such as configs/tiny.py.")


def parse(arguments: list[str]) -> list[str]:
    """absl's reading of the command line; a misspelt field is one line here, where ml_collections shows a traceback."""
    try:
        return flags.FLAGS(arguments)
    except (flags.Error, AttributeError, LookupError) as error:
        print("\n".join(_misspelt(arguments)) or f"{arguments[0]}: {error}", file=sys.stderr)
        sys.exit(ExitCode.BAD_INPUT)


def read(trains: bool = True) -> config_lib.Config:
    """What the parsed line says, checked for training or for less. Raises ConfigError."""
    path = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")[0]
    if not pathlib.Path(path).is_file():
        raise config_lib.ConfigError(f"--config={path}: no such file; give one such as configs/tiny.py")
    return config_lib.resolve(flags.FLAGS.config, trains)


def _misspelt(arguments: list[str]) -> list[str]:
    """A line for each setting that there is not, with the nearest that there is."""
    known, lines = config_lib.names(), []
    sections = {name.partition(".")[0] for name in known}
    given = (text.partition("=")[0].removeprefix("--config.") for text in arguments if text.startswith("--config."))
    for name in given:
        if name not in known and name not in sections:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
            fix = f"did you mean --config.{near[0]}?" if near else "configs/base.py lists all"
            lines.append(f"--config.{name}: no such setting; {fix}")
    return lines
