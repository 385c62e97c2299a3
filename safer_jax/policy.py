"""A policy to answer with, without a training run around it: of a run, of a converted model, or random (host code; calls array code)."""

import dataclasses
import json
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from safer_jax import attempts, build, checkpoint, convert, mesh, programs, prompts
from safer_jax import config as config_lib
from safer_jax.model import variants, vlm
from safer_jax.update import Updater


class Origin(NamedTuple):
    """Which weights: `sha256` is that of their manifest, for a folder may be moved, or hold another run one day."""

    name: str
    step: int | None = None
    sha256: str = ""

    def __str__(self) -> str:
        step = "" if self.step is None else f", step {self.step}"
        return f"{self.name}{step}, SHA-256 {self.sha256[:16]}" if self.sha256 else self.name


class Policy(NamedTuple):
    """`sample` takes `params`, which lie as the sampler reads them."""

    processor: prompts.Processor
    sample: attempts.Programs
    params: Any
    origin: Origin


def load(
    config: config_lib.Config,
    where: str,
    device_mesh: jax.sharding.Mesh,
    sampler: Callable[[config_lib.Config, Updater, prompts.Processor, jax.sharding.Mesh], attempts.Programs],
) -> Policy:
    """The policy that `where` names, "FOLDER[:STEP]" of a run or of a converted model; empty = the config's model.path.

    `sampler` is `programs.testing` or `programs.sampling`. Raises as `build.build` does.
    """
    if config.model.dtype == "float32":  # as training does
        jax.config.update("jax_default_matmul_precision", "highest")
    folder, step = split(where or config.model.path)
    if where and not pathlib.Path(folder).expanduser().is_dir():
        raise config_lib.ConfigError(
            f"--checkpoint={where}: no such folder; name a run, with :STEP for one of its steps, or what convert.py from-hf wrote"
        )
    used = dataclasses.replace(config, model=dataclasses.replace(config.model, path=folder))
    if folder:
        model_config = build.read_source(used)
        processor = build.make_processor(used, pathlib.Path(folder).expanduser() / "assets", model_config)
    else:
        model_config = variants.VARIANTS[config.model.variant]
        with tempfile.TemporaryDirectory() as assets:
            build.write_assets(used, pathlib.Path(assets))
            processor = build.make_processor(used, pathlib.Path(assets), model_config)
    updater = build.make_updater(used, model_config, processor)
    params, origin = weights(used, model_config, device_mesh, step)
    return Policy(processor, sampler(used, updater, processor, device_mesh), params, origin)


def split(text: str) -> tuple[str, int | None]:
    """ "runs/tiny:400" -> ("runs/tiny", 400)."""
    folder, _, step = text.rpartition(":")
    return (folder, int(step)) if folder and step.isdecimal() else (text, None)


def weights(
    config: config_lib.Config, model_config: variants.ModelConfig, device_mesh: jax.sharding.Mesh, step: int | None
) -> tuple[Any, Origin]:
    """Parameters as the sampler reads them, and which they are: of a run (`step` None = its newest), of a converted model,
    or random where `model.path` is empty."""
    path = pathlib.Path(config.model.path).expanduser()
    abstract = vlm.abstract(model_config, config.model.dtype)[1]
    shardings = mesh.shardings(abstract, device_mesh, mesh.SAMPLE)
    if not config.model.path:
        key = programs.key(config, programs.WEIGHTS)
        make = lambda key: vlm.cast(vlm.init_params(model_config, key), config.model.dtype)
        with jax.set_mesh(device_mesh):
            return jax.jit(make, out_shardings=shardings)(key), Origin(f"random weights of seed {config.seed}")
    placed = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings)
    if (path / "checkpoints").is_dir():
        step = checkpoint.latest(path / "checkpoints") if step is None else step
        return checkpoint.load_run(path, placed, step), origin(path, step)
    return convert.load_params(path, placed), origin(path)


def origin(path: pathlib.Path, step: int | None = None) -> Origin:
    """Of a step of a run, or of a converted model, once its files are known to be whole."""
    folder = path / "params" if step is None else path / "checkpoints" / str(step)
    return Origin(path.resolve().name, step, json.loads((folder / "manifest.json").read_text())["sha256"])
