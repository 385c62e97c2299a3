"""Who may import whom: the order of the house, read from the source without running it (host code)."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "safer_jax"

# Bottom to top: a module imports only what stands before it. `model` and `datasets` are packages.
# fmt: off
ORDER = [
    "shapes", "command", "responses", "datasets", "fields", "conflicts", "config", "command_line", "images",
    "prompts", "measured", "verdicts", "judge", "structured", "rewards", "mesh", "model", "shards", "checkpoint",
    "convert", "data", "overlap", "sampler", "attempts", "batches", "judging", "grpo", "lora", "state", "update",
    "metrics", "runtime", "page", "inspection", "runlog", "guard", "report", "scoring", "benchmarks", "curate",
    "tagging", "programs", "build", "policy", "train", "benchmarking", "evaluate", "plan",
]
NO_JAX = [
    "shapes", "command", "responses", "datasets", "fields", "conflicts", "config", "command_line", "images",
    "prompts", "measured", "verdicts", "judge", "structured", "rewards", "shards", "overlap", "metrics", "page",
    "inspection", "runlog", "guard", "report", "benchmarks", "curate", "tagging",
]
# fmt: on
SOURCES = {path: ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}


def name_of(path):
    """safer_jax/model/text.py -> model.text, safer_jax/model/__init__.py -> model."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name_of(path) for path in SOURCES}


def imported(tree):
    """Every dotted name that a module imports, at its top, in a function or for type checkers."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own(tree):
    """Modules of this package that a module imports: the longest name that is one."""
    for name in imported(tree):
        parts = name.split(".")
        if parts[0] == "safer_jax":
            found = [".".join(parts[1:end]) for end in range(len(parts), 1, -1) if ".".join(parts[1:end]) in NAMES]
            assert found, f"{name} is no module of the package"
            yield found[0]


GRAPH = {name_of(path): set(own(tree)) for path, tree in SOURCES.items()}
FOREIGN = {name_of(path): {name.split(".")[0] for name in imported(tree)} for path, tree in SOURCES.items()}


def reached(name):
    """The module and all that it imports, directly or not; a package's parts count as one."""
    found, ahead = set(), {other for other in NAMES if other.split(".")[0] == name}
    while ahead:
        found |= ahead
        ahead = {other for one in ahead for other in GRAPH[one]} - found
    return found


def tops(names):
    return {name.split(".")[0] for name in names}


def test_the_reader_of_imports_works():
    tree = ast.parse("def f():\n    from safer_jax.shapes import Record\n    import safer_jax.shapes, jax.numpy as jnp")
    assert list(own(tree)) == ["shapes", "shapes"]
    assert set(imported(tree)) == {"safer_jax.shapes.Record", "safer_jax.shapes", "jax.numpy"}
    assert "shapes" in reached("rewards") and "ml_collections" in FOREIGN["config"]


def test_every_module_has_its_place():
    assert tops(NAMES) - {""} <= set(ORDER), "a new module gets a place in ORDER"


@pytest.mark.parametrize("name", sorted(NAMES - {""}))
def test_modules_import_downwards(name):
    place = ORDER.index(name.split(".")[0])
    above = [other for other in GRAPH[name] if other and ORDER.index(other.split(".")[0]) > place]
    assert above == [], f"{name} stands below what it imports"


def test_no_circles_when_imported():
    """Of what runs at import; inside a package a function may reach for a part that stands on the package."""
    at_top = {
        name_of(path): set(
            own(ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], []))
        )
        for path, tree in SOURCES.items()
    }
    done, ahead = set(), set(NAMES)
    while ahead:
        free = {name for name in ahead if at_top[name] - {name} <= done}
        assert free, f"these import one another: {sorted(ahead)}"
        done |= free
        ahead -= free


@pytest.mark.parametrize(
    "name,forbidden", [("sampler", {"judge", "rewards"}), ("grpo", {"model"}), ("report", {"model"})]
)
def test_what_is_passed_in_is_not_imported(name, forbidden):
    assert tops(reached(name)) & forbidden == set()


@pytest.mark.parametrize("name", NO_JAX)
def test_host_modules_do_without_jax(name):
    with_jax = [other for other in reached(name) if FOREIGN[other] & {"jax", "jaxlib", "flax", "optax", "orbax"}]
    assert with_jax == []


@pytest.mark.parametrize("name", sorted(NAMES))
def test_the_package_stands_alone(name):
    forbidden = {"tools", "configs", "experiments", "tests", "torch", "torchvision", "tensorflow", "pickle"}
    assert FOREIGN[name] & forbidden == set()
    if name not in ("config", "command_line"):
        assert "ml_collections" not in FOREIGN[name], "configs reach code as the dataclasses of config.py"


def test_nobody_imports_tools_and_configs_import_nothing():
    for folder in ("configs", "experiments", "tests", "tools"):
        for path in (ROOT / folder).rglob("*.py"):
            tree = ast.parse(path.read_text())
            names = {name.split(".")[0] for name in imported(tree)}
            assert "tools" not in names, f"{path} imports an entry point"
            assert folder != "configs" or "safer_jax" not in names, f"{path} imports the package"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_first_line_says_which_kind_of_code(path):
    first = (ast.get_docstring(SOURCES[path]) or "").partition("\n")[0]
    is_only_doc = path.name == "__init__.py" and len(SOURCES[path].body) == 1
    assert is_only_doc or re.search(r"\((array|host) code[^)]*\)\.?$", first), f"{path}: {first!r}"


def test_no_catch_all_names():
    assert {path.stem for path in SOURCES} & {"utils", "util", "helpers", "common", "misc"} == set()
