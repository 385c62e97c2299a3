"""Orbax behind one door: save, verify, restore, fall back (host code).

A checkpoint is `{folder}/{step}/state`, written by Orbax, and `{folder}/{step}/manifest.json`, written last: a step
without a manifest was never finished and counts for nothing, so that a kill at any moment costs one checkpoint at most.
The manifest holds the SHA-256 of every file (Orbax does not notice flipped bits), the dtype and shape of every leaf
(Orbax casts silently) and the caller's `extra`. Converted weights are the same thing without a number, written and read
leaf by leaf (`write_leaves`, `read_leaves`, `load_leaves`). On several hosts every process makes the same calls on a folder that
all of them see; process 0 alone writes and reads the manifest's hashes, and its verdict is broadcast.
"""

import ctypes
import hashlib
import json
import os
import pathlib
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

_MANIFEST = "manifest.json"
_BLOCK = 1 << 22  # bytes hashed at once
_CHUNK = 1 << 26  # bytes of a leaf stored and read as one: a host of a pod reads little more than its part


class CheckpointError(RuntimeError):
    """A checkpoint that is missing, damaged or of another model; the message names folder, file or leaves."""


def save(folder: str | os.PathLike, step: int, state: Any, extra: dict[str, Any], keep: int = 0) -> None:
    """Writes a checkpoint, then removes what it supersedes.

    Args:
      folder: the run's checkpoints; made where it does not exist.
      step: the checkpoint's number. Steps above it belong to a future that was abandoned by resuming before them: they
        are removed, for otherwise the next resume would return to it.
      state: pytree of arrays, such as TrainState; of sharded arrays each process writes its own part.
      extra: whatever JSON can hold.
      keep: newest checkpoints that stay; 0 = all.

    Raises:
      CheckpointError: a leaf that is not a plain array.
    """
    folder, flat = pathlib.Path(folder).absolute(), _flat(state)
    leaves = {name: _describe(name, leaf) for name, leaf in flat.items()}
    target = folder / str(step)
    if jax.process_index() == 0:
        _remove(target)
    _barrier(f"save {target}")
    ocp.save(target / "state", _nest({name: _savable(leaf) for name, leaf in flat.items()}))
    if jax.process_index() == 0:
        _write_manifest(target, {"step": step, "leaves": leaves, "extra": extra})
        _prune(folder, step, keep)
    _barrier(f"saved {target}")


def restore(folder: str | os.PathLike, abstract_state: Any, step: int | None = None) -> tuple[Any, dict[str, Any]]:
    """Reads a checkpoint onto the shardings of `abstract_state`, whatever mesh wrote it.

    Args:
      folder: the run's checkpoints.
      abstract_state: pytree of jax.ShapeDtypeStruct with shardings (default device where they have none), or of arrays
        like those wanted; numpy arrays are restored as numpy arrays.
      step: which one; None = the newest that is not damaged, and damaged ones are named on stderr.

    Returns:
      The state, in the structure of `abstract_state`, and the `extra` that was saved with it.

    Raises:
      CheckpointError: no checkpoint, all (or the wanted one) damaged, or the leaves are another model's.
    """
    folder = pathlib.Path(folder).absolute()
    target = folder / str(_choose(folder, step))
    manifest = _read_manifest(target)
    _compare(target, manifest["leaves"], {name: _describe(name, leaf) for name, leaf in _flat(abstract_state).items()})
    return _load(target, abstract_state), manifest["extra"]


class Leaves(Mapping):
    """A checkpoint's parameters by dotted name, each read from disk when asked for, so that memory holds one at a time."""

    def __init__(self, target: pathlib.Path, manifest: dict[str, Any]):
        described = manifest["leaves"]
        self._state = target / "state"
        self.described = {  # name -> {"dtype": str, "shape": list}
            name.removeprefix("params."): leaf for name, leaf in described.items() if name.startswith("params.")
        }
        self.extra = manifest["extra"]
        if not self.described:
            raise CheckpointError(f"{target}: holds no params; its leaves are {', '.join(described)}")

    def __getitem__(self, name: str) -> np.ndarray:
        leaf = self.described[name]
        wanted = _nest({f"params.{name}": np.empty(leaf["shape"], leaf["dtype"])})
        context = ocp.Context()
        context.pytree.loading.partial_load = True
        with context:
            return _flat(ocp.load(self._state, wanted))[f"params.{name}"]

    def __iter__(self) -> Iterator[str]:
        return iter(self.described)

    def __len__(self) -> int:
        return len(self.described)


def restore_params(run: str | os.PathLike, step: int | None = None) -> Leaves:
    """The parameters alone of a run's checkpoint, verified, as numpy arrays read one by one.

    Args:
      run: the run's folder (workdir).
      step: which checkpoint; None = the newest that is not damaged.

    Raises:
      CheckpointError: as `restore`.
    """
    folder = pathlib.Path(run).absolute() / "checkpoints"
    target = folder / str(_choose(folder, step))
    return Leaves(target, _read_manifest(target))


def write_leaves(target: str | os.PathLike, leaves: Iterable[tuple[str, np.ndarray]], extra: dict[str, Any]) -> None:
    """Writes parameters one leaf at a time, so that memory holds one (and its chunks on their way to the disk).

    For one process: a tool, not a pod. `load_leaves` and `read_leaves` read what it writes.

    Args:
      target: a folder that does not exist.
      leaves: (dotted name, array), each built only when it is asked for.
      extra: whatever JSON can hold.
    """
    target, described = pathlib.Path(target).absolute(), {}
    context = ocp.Context()
    context.array.saving.use_compression = False  # mantissas look random: little to gain for much time
    context.array.saving.storage_options.chunk_byte_size = _CHUNK
    context.memory.deepcopy_host_arrays = False  # nothing changes a leaf while it is written
    with context:
        for name, leaf in leaves:
            described[f"params.{name}"] = _describe(name, leaf)
            ocp.partial.save(target / "state", _nest({f"params.{name}": leaf}))
            del leaf  # before the next one is built
            _return_freed_memory()
        ocp.partial.finalize(target / "state")
    _write_manifest(target, {"leaves": described, "extra": extra})


def read_leaves(target: str | os.PathLike) -> Leaves:
    """What `write_leaves` wrote, verified, as numpy arrays read one by one. Raises CheckpointError as `restore`."""
    target = pathlib.Path(target).absolute()
    _verify(target)
    return Leaves(target, _read_manifest(target))


def load_leaves(target: str | os.PathLike, abstract_params: Any) -> Any:
    """What `write_leaves` wrote, verified, on the shardings and in the dtypes of `abstract_params`.

    Every process reads the chunks that its devices need. The dtype is cast; nothing else may differ.

    Raises:
      CheckpointError: missing or damaged, or leaves are missing, unexpected or of another shape: all are listed.
    """
    target = pathlib.Path(target).absolute()
    _verify(target)
    return _load_params(target, abstract_params)


def load_run(run: str | os.PathLike, abstract_params: Any, step: int | None = None) -> Any:
    """The parameters alone of a run's checkpoint, verified, on the shardings and in the dtypes of `abstract_params`.

    `run` and `step` are those of `restore_params`. Raises CheckpointError as `load_leaves`.
    """
    folder = pathlib.Path(run).absolute() / "checkpoints"
    return _load_params(folder / str(_choose(folder, step)), abstract_params)


def steps(folder: str | os.PathLike) -> list[int]:
    """Numbers of the finished checkpoints, ascending; damage is not looked for."""
    return [step for step in _numbers(pathlib.Path(folder)) if (pathlib.Path(folder) / str(step) / _MANIFEST).is_file()]


def latest(folder: str | os.PathLike) -> int | None:
    """The newest finished checkpoint, None where there is none."""
    return max(steps(folder), default=None)


def damage(target: pathlib.Path) -> str:
    """What is wrong with the files of a checkpoint, by name; empty if nothing is."""
    try:
        manifest = _read_manifest(target)
    except CheckpointError as error:
        return str(error)
    for name, entry in manifest["files"].items():
        path = target / name
        if not path.is_file():
            return f"{path}: is missing"
        if path.stat().st_size != entry["bytes"]:
            return f"{path}: has {path.stat().st_size} bytes, was written with {entry['bytes']}"
        if _sha256(path) != entry["sha256"]:
            return f"{path}: its bytes are not those that were written (SHA-256)"
    return ""


def _return_freed_memory() -> None:
    """glibc keeps what the writer's threads have freed, which is as much as a leaf; other libraries have no such call."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _load(target: pathlib.Path, abstract: Any) -> Any:
    """The state of a checkpoint whose leaves are known to be those of `abstract`, in the same structure."""
    flat = _flat(abstract)
    restored = _flat(ocp.load(target / "state", _nest({name: _abstract(leaf) for name, leaf in flat.items()})))
    return jax.tree.unflatten(jax.tree.structure(abstract), [restored[name] for name in flat])


def _load_params(target: pathlib.Path, abstract_params: Any) -> Any:
    """The part "params" of a verified checkpoint, whatever else it holds."""
    abstract = {"params": abstract_params}
    wanted = {name: _describe(name, leaf) for name, leaf in _flat(abstract).items()}
    leaves = _read_manifest(target)["leaves"].items()
    saved = {
        name: leaf | {"dtype": wanted.get(name, leaf)["dtype"]} for name, leaf in leaves if name.startswith("params.")
    }
    _compare(target, saved, wanted)
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with context:
        return _load(target, abstract)["params"]


def _verify(target: pathlib.Path) -> None:
    """Process 0 hashes the files; raises CheckpointError on all."""
    problem = damage(target) if jax.process_index() == 0 else ""
    is_damaged = bool(problem)
    if jax.process_count() > 1:
        is_damaged = bool(multihost_utils.broadcast_one_to_all(np.int32(is_damaged)))
    if is_damaged:
        raise CheckpointError(f"damaged, nothing was read; write it again: {problem or 'process 0 says what'}")


def _choose(folder: pathlib.Path, step: int | None) -> int:
    """The step to read: found and verified by process 0, the same on all. Raises CheckpointError on all."""
    chosen, problem = -1, ""
    if jax.process_index() == 0:
        chosen, problem = _verified(folder, step)
    if jax.process_count() > 1:
        chosen = int(multihost_utils.broadcast_one_to_all(np.int32(chosen)))
    if chosen < 0:
        raise CheckpointError(problem or f"{folder}: no usable checkpoint; process 0 says why")
    return chosen


def _verified(folder: pathlib.Path, step: int | None) -> tuple[int, str]:
    """(step, "") or (-1, what is wrong)."""
    finished = steps(folder)
    if step is not None and step not in finished:
        return -1, f"{folder}: has no finished checkpoint of step {step}; it has {finished or 'none'}"
    if not finished:
        return -1, f"{folder}: has no finished checkpoint"
    problems = []
    for number in [step] if step is not None else finished[::-1]:
        problem = damage(folder / str(number))
        if not problem:
            return number, ""
        problems.append(problem)
        print(f"DAMAGED CHECKPOINT, step {number} is not used: {problem}", file=sys.stderr, flush=True)
    return -1, "damaged checkpoint, nothing was restored; delete it or give another step:\n" + "\n".join(problems)


def _compare(target: pathlib.Path, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raises CheckpointError that lists every leaf in which the checkpoint and the wanted state differ."""
    lines = [f"  {name}: only in the checkpoint, {_text(saved[name])}" for name in saved if name not in wanted]
    lines += [f"  {name}: not in the checkpoint, wanted {_text(wanted[name])}" for name in wanted if name not in saved]
    for name, leaf in wanted.items():
        if name in saved and saved[name] != leaf:
            lines.append(f"  {name}: checkpoint has {_text(saved[name])}, wanted {_text(leaf)}")
    if lines:
        fix = "use the config that wrote it (config.json beside it) or another folder"
        raise CheckpointError(f"{target}: checkpoint of another model or optimizer; {fix}\n" + "\n".join(lines))


def _write_manifest(target: pathlib.Path, content: dict[str, Any]) -> None:
    paths = sorted(path for path in (target / "state").rglob("*") if path.is_file())
    content["files"] = {
        path.relative_to(target).as_posix(): {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in paths
    }
    content = json.loads(json.dumps(content))  # tuples and number keys become what a reader will see: the digest's view
    text = json.dumps({"sha256": _digest(content), **content}, indent=1)
    partial = target / f"{_MANIFEST}.partial"
    with open(partial, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, target / _MANIFEST)


def _read_manifest(target: pathlib.Path) -> dict[str, Any]:
    path = target / _MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        digest = manifest.pop("sha256")
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error
    if digest != _digest(manifest):
        raise CheckpointError(f"{path}: its content is not what was written (SHA-256)")
    return manifest


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _sha256(path: pathlib.Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _numbers(folder: pathlib.Path) -> list[int]:
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.is_dir() and path.name.isdecimal())


def _prune(folder: pathlib.Path, step: int, keep: int) -> None:
    finished = [number for number in steps(folder) if number <= step]
    stays = finished[-keep:] if keep else finished
    for number in _numbers(folder):
        if number not in stays:
            if number > step:
                print(f"checkpoint {number} is removed: the run went back to before it", file=sys.stderr, flush=True)
            _remove(folder / str(number))


def _remove(target: pathlib.Path) -> None:
    """The manifest first: a removal that is killed leaves an unfinished checkpoint, never a damaged one."""
    (target / _MANIFEST).unlink(missing_ok=True)
    if target.exists():
        shutil.rmtree(target)


def _barrier(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def _flat(tree: Any) -> dict[str, Any]:
    """Leaves by dotted name; what nnx adds to the path of a variable is left out."""
    flat = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if path and path[-1] == jax.tree_util.GetAttrKey("value"):
            path = path[:-1]
        flat[jax.tree_util.keystr(path, simple=True, separator=".")] = leaf
    return flat


def _nest(flat: dict[str, Any]) -> dict[str, Any]:
    """Plain dicts of strings: what a checkpoint holds does not depend on the classes of nnx and optax."""
    nested: dict[str, Any] = {}
    for name, leaf in flat.items():
        *branches, last = name.split(".")
        place = nested
        for branch in branches:
            place = place.setdefault(branch, {})
        place[last] = leaf
    return nested


def _describe(name: str, leaf: Any) -> dict[str, Any]:
    if isinstance(leaf, int | float):
        leaf = np.asarray(leaf)
    if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):
        raise CheckpointError(f"{name}: is a {type(leaf).__name__}, must be an array")
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        raise CheckpointError(f"{name}: is a random key; save its jax.random.key_data")
    return {"dtype": str(np.dtype(leaf.dtype)), "shape": list(leaf.shape)}


def _savable(leaf: Any) -> Any:
    return leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)


def _abstract(leaf: Any) -> Any:
    if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
        sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    return np.asarray(leaf)


def _text(leaf: dict[str, Any]) -> str:
    return f"{leaf['dtype']}{leaf['shape']}"
