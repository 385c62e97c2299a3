"""Settings are checked before anything is built, and what every config file resolves to stands in tests/golden (host code)."""

import ast
import dataclasses
import importlib
import inspect
import os
import pathlib
import typing

import pytest
from absl import flags
from ml_collections import ConfigDict, config_dict, config_flags

from configs import base
from safer_jax import config, fields

ROOT = pathlib.Path(__file__).parents[1]
FILES = [path.stem for path in sorted((ROOT / "configs").glob("*.py")) if path.stem != "__init__"]
FORMS = [(name, arg) for name in FILES for arg in ("", "smoke") if (name, arg) != ("base", "smoke")]


def settings(**changes):
    """configs/base.py with changes such as grpo__beta=0.1, types unchecked as in a hand-written file."""
    values = base.get_config()
    for path, value in changes.items():
        section, name = path.split("__")
        with values.ignore_type():
            values[section][name] = value
    return values


@pytest.mark.parametrize("name,arg", FORMS)
def test_golden(name, arg):
    values = importlib.import_module(f"configs.{name}").get_config(arg)
    if values.data.name == "safetag":
        values.data.path = "SafeTag-VL-3K"
    text = "".join(f"{path} = {value!r}\n" for path, value in config.flatten(config.resolve(values)).items())
    golden = ROOT / "tests" / "golden" / f"{name}{'_' + arg if arg else ''}.txt"
    if os.environ.get("REWRITE_GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text(), "meant? then run REWRITE_GOLDEN=1 python -m pytest tests/test_config.py"


def test_golden_files_are_all_used():
    assert {path.stem for path in (ROOT / "tests" / "golden").glob("*.txt")} == {
        f"{name}{'_' + arg if arg else ''}" for name, arg in FORMS
    }


def test_base_comments_every_field():
    lines = inspect.getsource(base.get_config).splitlines()
    commented = {}
    for line in lines:
        code, _, comment = line.partition("  # ")
        if " = " in code and "ConfigDict" not in code and "." in code.split(" = ")[0]:
            commented[code.split(" = ")[0].strip().replace("evaluation.", "eval.").removeprefix("config.")] = comment
    fields = list(config.flatten(config.resolve(base.get_config())))
    assert list(commented) == fields, "base.py lists every field, in the order of config.py"
    assert [name for name in fields if not commented[name].strip()] == []


@pytest.mark.parametrize("kind", [config.Config, *config._sections().values()])
def test_docstring_explains_every_field(kind):
    plain = [field.name for field in dataclasses.fields(kind) if not dataclasses.is_dataclass(field.type)]
    assert [name for name in plain if f"\n    {name}: " not in kind.__doc__] == []


@pytest.mark.parametrize("name", [name for name in FILES if name != "base"])
def test_config_files_start_from_base_alone(name):
    tree = ast.parse((ROOT / "configs" / f"{name}.py").read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names} | {
        f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert imported == {"ml_collections.ConfigDict", "configs.base"}


@pytest.mark.parametrize("name", FILES)
def test_unknown_form_is_refused(name):
    with pytest.raises(ValueError, match="smoek"):
        importlib.import_module(f"configs.{name}").get_config("smoek")


def test_paper_settings():
    """The numbers that METHODS marks as published, written here a second time."""
    for name in ("safegrpo_3b", "safegrpo_7b"):
        values = importlib.import_module(f"configs.{name}").get_config()
        values.data.path = "x"
        run = config.resolve(values)
        assert (run.grpo.prompts, run.grpo.prompts // run.grpo.minibatches, run.sampler.group) == (256, 64, 8)
        assert (run.optimizer.lr, run.grpo.kl, run.grpo.beta) == (1e-6, "k3", 0.01)
        assert (run.prompt.buckets[-1], run.sampler.max_tokens, run.grpo.steps) == (2048, 4096, 175)
        assert (run.reward.tag_weight, run.reward.behaviour_weight) == (0.5, 0.5)


# Each case: changes, then what the message must say: the field with its value, and the fix.
REFUSED = [
    ({"grpo__betta": 1.0}, ["grpo.betta = 1.0", "did you mean grpo.beta?"]),
    ({"grpo__lr": 1.0}, ["grpo.lr = 1.0", "sft.lr or optimizer.lr"]),
    ({"model__zzz": 1}, ["model.zzz = 1", "known are variant, path"]),
    ({"optimizer__lr": float("nan")}, ["optimizer.lr = nan", "finite"]),
    ({"optimizer__lr": float("inf")}, ["optimizer.lr = inf", "finite"]),
    ({"optimizer__lr": 0.0}, ["optimizer.lr = 0.0", "above 0 and at most 1"]),
    ({"optimizer__lr": "1e-6"}, ["optimizer.lr = '1e-6'", "is a str, must be a number"]),
    ({"optimizer__b2": 1.0}, ["optimizer.b2 = 1.0", "below 1"]),
    ({"optimizer__train_vision": 1}, ["optimizer.train_vision = 1", "True or False"]),
    ({"optimizer__clip_norm": -1.0}, ["optimizer.clip_norm = -1.0", "above 0"]),
    ({"mesh__fsdp": True}, ["mesh.fsdp = True", "is a bool, must be a whole number"]),
    ({"mesh__fsdp": 2.0}, ["mesh.fsdp = 2.0", "is a float, must be a whole number"]),
    ({"mesh__data": 0}, ["mesh.data = 0", "-1"]),
    ({"mesh__tensor": 0}, ["mesh.tensor = 0", "at least 1"]),
    ({"model__variant": "3B"}, ["model.variant = '3B'", "tiny, 3b, 7b", "did you mean '3b'"]),
    ({"model__dtype": "bf16"}, ["model.dtype = 'bf16'", "did you mean 'bfloat16'"]),
    ({"model__path": None}, ["model.path = None", "not set"]),
    ({"data__train_split": ""}, ["data.train_split = ''", "empty"]),
    ({"data__eval_split": "train"}, ["data.eval_split = 'train'", "data.train_split"]),
    ({"data__name": "safetag"}, ["data.path = ''", "folder"]),
    ({"data__bad_rows": -1}, ["data.bad_rows = -1", "at least 0"]),
    ({"judge__kind": "https"}, ["judge.kind = 'https'", "did you mean 'http'?"]),
    ({"reflection__reruns": 1, "judge__kind": "http", "judge__model": "m"}, ["judge.url = ''", "set it"]),
    ({"reflection__reruns": 1, "judge__kind": "http", "judge__url": "http://h/v1"}, ["judge.model = ''", "set it"]),
    ({"reflection__reruns": 1, "judge__kind": "recorded"}, ["judge.path = ''", "'recorded'", "set it"]),
    ({"reflection__reruns": 1, "judge__kind": "local"}, ["judge.path = ''", "'local'", "set it"]),
    ({"judge__url": "localhost:8000"}, ["judge.url = 'localhost:8000'", "write one such as http://localhost:8000/v1"]),
    ({"judge__url": "http://h:x/v1"}, ["judge.url = 'http://h:x/v1'", "no http(s) address"]),
    ({"judge__url": "http://h /v1"}, ["judge.url = 'http://h /v1'", "no http(s) address"]),
    ({"judge__max_failed": 1.5}, ["judge.max_failed = 1.5", "at most 1"]),
    ({"judge__deadline": 0.0}, ["judge.deadline = 0.0", "above 0"]),
    ({"judge__canaries_every": 5}, ["judge.canaries_every = 5", "'none'"]),
    ({"prompt__buckets": ()}, ["prompt.buckets = ()", "empty"]),
    ({"prompt__buckets": (64.0,)}, ["prompt.buckets = (64.0,)", "whole numbers"]),
    ({"prompt__buckets": (0, 64)}, ["prompt.buckets = (0, 64)", "at least 1"]),
    ({"prompt__buckets": (128, 64)}, ["prompt.buckets = (128, 64)", "write (64, 128)"]),
    ({"prompt__patch_buckets": 64}, ["prompt.patch_buckets = 64", "is a int, must be a tuple"]),
    ({"prompt__min_pixels": 2_000_000}, ["prompt.min_pixels = 2000000", "prompt.max_pixels"]),
    ({"prompt__max_source_pixels": 1_000}, ["prompt.max_source_pixels = 1000", "raise"]),
    ({"sampler__group": 1}, ["sampler.group = 1", "at least 2"]),
    ({"sampler__temperature": 0.0}, ["sampler.temperature = 0.0", "above 0"]),
    ({"sampler__top_p": 0.0}, ["sampler.top_p = 0.0", "above 0 and at most 1"]),
    ({"sampler__top_p": 0.9, "grpo__correction": "tis"}, ["sampler.top_p = 0.9", "grpo.correction = 'tis'"]),
    ({"sampler__top_k": 5, "grpo__correction": "mask"}, ["sampler.top_k = 5", "grpo.correction = 'mask'"]),
    ({"sampler__top_k": 5, "grpo__minibatches": 2}, ["sampler.top_k = 5", "grpo.minibatches = 2"]),
    ({"sampler__prompts_per_pass": 5}, ["sampler.prompts_per_pass = 5", "grpo.prompts = 32", "is 4"]),
    ({"grpo__minibatches": 5}, ["grpo.minibatches = 5", "grpo.prompts = 32", "is 4"]),
    ({"grpo__minibatches": 8}, ["grpo.micro_prompts = 8", "grpo.prompts / grpo.minibatches = 4"]),
    ({"grpo__micro_group": 3}, ["grpo.micro_group = 3", "sampler.group = 8", "is 2"]),
    ({"grpo__kl": "none"}, ["grpo.beta = 0.01", "grpo.kl = 'none'", "'k3'"]),
    ({"grpo__kl": "k4"}, ["grpo.kl = 'k4'", "none, k1, k2, k3"]),
    ({"grpo__dual_clip": 0.5}, ["grpo.dual_clip = 0.5", "above 1"]),
    ({"grpo__clip_low": 1.0}, ["grpo.clip_low = 1.0", "below 1"]),
    ({"grpo__correction_cap": 0.5}, ["grpo.correction_cap = 0.5", "at least 1"]),
    ({"grpo__overlong": "soft_penalty"}, ["grpo.overlong_buffer = 0", "sampler.max_tokens = 1024"]),
    ({"grpo__overlong_buffer": 8}, ["grpo.overlong_buffer = 8", "'soft_penalty'"]),
    ({"grpo__std_epsilon": 0.0}, ["grpo.std_epsilon = 0.0", "above 0"]),
    ({"reflection__reruns": 1}, ["judge.kind = 'none'", "reflection.reruns = 1", "set reruns to 0"]),
    ({"reward__scheme": "steer"}, ["judge.kind = 'none'", "'steer' needs a judge"]),
    ({"judge__kind": "rules"}, ["judge.kind = 'rules'", "no effect", "reflection.reruns = 0"]),
    ({"reflection__texts": ("a", 3)}, ["reflection.texts = ('a', 3)", "must hold texts"]),
    ({"reflection__texts": ()}, ["reflection.texts = ()", "is empty"]),
    ({"reflection__accept_at": 11.0}, ["reflection.accept_at = 11.0", "at most 10"]),
    ({"reflection__row_counts": (8, 4)}, ["reflection.row_counts = (8, 4)", "write (4, 8)"]),
    ({"reward__scheme": "safegrp"}, ["reward.scheme = 'safegrp'", "did you mean 'safegrpo'"]),
    ({"reward__tag_weight": 0.0, "reward__behaviour_weight": 0.0}, ["reward.tag_weight = 0.0", "raise"]),
    ({"reward__tag_weight": -0.5}, ["reward.tag_weight = -0.5", "-1 or at least 0"]),
    ({"reward__length_weight": -1.0}, ["reward.length_weight = -1.0", "at least 0"]),
    ({"reward__length_weight": 0.1}, ["reward.length_limit = 0", "reward.length_weight = 0.1"]),
    ({"reward__length_limit": 9}, ["reward.length_limit = 9", "no effect", "reward.length_weight = 0.0"]),
    (
        {"reward__warn_for_comply": 0.5},
        ["reward.warn_for_comply = 0.5", "'safegrpo'", "set it to 1.0", "'safegrpo_plus'"],
    ),
    (
        {"reward__scheme": "safegrpo_plus", "reward__refusals": ("i can't|won't",)},
        ["reward.refusals: phrase", "one word"],
    ),
    (
        {"reward__scheme": "safegrpo_plus", "reward__warnings": ("",)},
        ["reward.warnings: phrase ''", "begin with a word"],
    ),
    (
        {"reward__scheme": "safegrpo_plus", "reward__tag_weight": 0.0, "reward__behaviour_weight": 0.0},
        ["reward.tag_weight = 0.0", "raise"],
    ),
    (
        {"reward__scheme": "safegrpo_plus", "judge__kind": "rules"},
        ["judge.kind = 'rules'", "'safegrpo_plus'", "no effect"],
    ),
    ({"reward__task_gate": 0.5}, ["reward.task_gate = 0.5", "no effect", "'safegrpo'", "set it to 0.6", "'toolkit'"]),
    (
        {"judge__kind": "rules", "reward__scheme": "toolkit", "reward__think_share": 0.0},
        ["reward.think_share = 0.0", "'toolkit'", "'safer_vlm'"],
    ),
    (
        {"judge__kind": "rules", "reward__scheme": "steer", "reward__answer_weights": (1, 1, 1, 2)},
        ["(1.0, 1.0, 1.0, 2.0)", "no effect"],
    ),
    ({"reward__scheme": "safer_vlm", "reward__think_share": 1.5}, ["reward.think_share = 1.5", "at most 1"]),
    (
        {"reward__think_weights": (0.0, 0.0, 0.0), "judge__kind": "rules", "reward__scheme": "safer_vlm"},
        ["(0.0, 0.0, 0.0)", "weighs nothing"],
    ),
    ({"reward__think_weights": (1.0, -1.0, 1.0)}, ["reward.think_weights = (1.0, -1.0, 1.0)", "at least 0"]),
    ({"reward__think_weights": (1.0, 1.0)}, ["reward.think_weights = (1.0, 1.0)", "has 2 entries, must have 3"]),
    ({"reward__answer_weights": (1.0, float("nan"), 1.0, 1.0)}, ["nan", "finite numbers"]),
    ({"reward__answer_weights": (1.0, True, 1.0, 1.0)}, ["True", "finite numbers"]),
    ({"reward__answer_weights": 1.0}, ["is a float, must be a tuple of finite numbers"]),
    ({"checkpoint__keep": 0}, ["checkpoint.keep = 0", "at least 1"]),
]


def test_what_only_training_needs_is_asked_of_training_alone():
    """Evaluating, tagging and inspecting name their own sets, and their judge is no reward's."""
    made = settings(data__name="safetag", judge__kind="rules")
    with pytest.raises(config.ConfigError, match="(?s)data.path = ''.*judge.kind = 'rules': has no effect"):
        config.resolve(made)
    read = config.resolve(made, trains=False)
    assert config.from_json(config.to_json(read)) == read
    with pytest.raises(config.ConfigError, match="sampler.group = 1"):
        config.resolve(settings(sampler__group=1), trains=False)


@pytest.mark.parametrize("changes,words", REFUSED, ids=[",".join(changes) for changes, _ in REFUSED])
def test_refused(changes, words):
    with pytest.raises(config.ConfigError) as error:
        config.resolve(settings(**changes))
    lines = str(error.value).splitlines()
    assert len(lines) == 1, lines
    assert [word for word in words if word not in lines[0]] == []


SECRETS = [("url", "https://me:hush@h/v1"), ("url", "https://h/v1?k=hush"), ("key_env", "sk-hush")]


@pytest.mark.parametrize("name,value", SECRETS)
def test_a_secret_is_refused_and_not_shown(name, value):
    with pytest.raises(config.ConfigError, match=f"judge.{name}: .*not shown") as error:
        config.resolve(settings(**{f"judge__{name}": value}))
    assert "hush" not in str(error.value)


def test_all_problems_are_told_at_once():
    with pytest.raises(config.ConfigError) as error:
        config.resolve(settings(grpo__betta=1.0, optimizer__lr=float("nan"), sampler__group=1))
    assert [line.split(" = ")[0] for line in str(error.value).splitlines()] == [
        "sampler.group",
        "grpo.betta",
        "optimizer.lr",
    ]


def test_a_field_of_another_scheme_stays_at_its_default():
    hints = fields.hints(config.Reward)
    idle = {
        name: mark.idle
        for name in hints
        for mark in getattr(hints[name], "__metadata__", ())
        if type(mark) is fields.Only
    }
    assert idle and {name: base.get_config().reward[name] for name in idle} == idle


def test_lists_are_refused():
    values = base.get_config()
    values.prompt = ConfigDict({**values.prompt.to_dict(), "buckets": [64, 128]})
    with pytest.raises(config.ConfigError, match=r"prompt.buckets = \[64, 128\]: is a list, must be a tuple"):
        config.resolve(values)


def test_wrong_or_missing_sections():
    values = base.get_config()
    del values.mesh
    del values.grpo.beta
    with values.ignore_type():
        values.log = 3
    values.sampling = ConfigDict()
    with pytest.raises(config.ConfigError) as error:
        config.resolve(values)
    text = str(error.value)
    for part in ("sampling = ", "did you mean sampler?", "mesh: is missing", "grpo.beta: is missing", "log: is 3"):
        assert part in text
    with pytest.raises(config.ConfigError, match="is a dict"):
        config.resolve({"seed": 0})


def test_unset_placeholder_is_named():
    values = base.get_config()
    values.grpo.steps = config_dict.placeholder(int)
    with pytest.raises(config.ConfigError, match="grpo.steps = None: is not set"):
        config.resolve(values)


def test_whole_numbers_serve_as_numbers():
    run = config.resolve(settings(grpo__clip_high=1))
    assert run.grpo.clip_high == 1.0 and type(run.grpo.clip_high) is float


def test_flags_reach_the_config(monkeypatch):
    """As on the command line: a file with an argument, and overrides of each type."""
    holder = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=holder)
    path = ROOT / "configs" / "safegrpo_3b.py"
    overrides = ["data.path=here", "prompt.buckets=(32, 64)", "optimizer.lr=0.5", "grpo.refill=true", "seed=7"]
    argv = ["train", f"--config={path}:smoke", *(f"--config.{override}" for override in overrides)]
    monkeypatch.setattr("sys.argv", argv)  # config_flags finds the overrides there
    holder(argv)
    run = config.resolve(holder.config)
    assert (run.model.variant, run.grpo.steps) == ("tiny", 2)
    assert (run.data.path, run.prompt.buckets, run.optimizer.lr) == ("here", (32, 64), 0.5)
    assert (run.grpo.refill, run.seed) == (True, 7)


def test_json_and_back():
    run = config.resolve(settings(prompt__buckets=(32, 64)))
    assert config.from_json(config.to_json(run)) == run
    with pytest.raises(config.ConfigError, match="did you mean grpo.beta"):
        config.from_json(config.to_json(run).replace('"beta"', '"betta"'))
    with pytest.raises(config.ConfigError, match="is a list"):
        config.from_json("[]")


def test_differences():
    old, new = config.resolve(settings()), config.resolve(settings(grpo__beta=0.5, model__dtype="bfloat16"))
    assert config.differences(old, new) == [
        "model.dtype: 'float32' -> 'bfloat16'",
        "grpo.beta: 0.01 -> 0.5",
    ]
    assert config.differences(old, old) == []


def test_images_that_no_bucket_holds():
    run = config.resolve(settings(prompt__patch_buckets=(1024,), prompt__buckets=(1280,)))
    with pytest.raises(config.ConfigError) as error:
        config.check_images(run, patch=14, merge=2, window_slots=64)
    patches, tokens = str(error.value).splitlines()
    assert "5120 patches" in patches and "holds 1024" in patches and "lower max_pixels to 200704" in patches
    assert "1280 tokens" in tokens and "holds 1280" in tokens
    config.check_images(config.resolve(settings()), patch=14, merge=2, window_slots=64)
    with pytest.raises(config.ConfigError, match="raise it to 784"):
        config.check_images(
            config.resolve(settings(prompt__max_pixels=700, prompt__min_pixels=1)), patch=14, merge=2, window_slots=64
        )


def test_patch_buckets_hold_whole_windows():
    with pytest.raises(config.ConfigError, match=r"1000 is no multiple of the 64 .* write \(1024, 2048\)"):
        run = config.resolve(settings(prompt__patch_buckets=(1000, 2048), prompt__max_pixels=100_352))
        config.check_images(run, patch=14, merge=2, window_slots=64)


def test_rows_that_do_not_divide_into_micro_batches_are_refused():
    with pytest.raises(config.ConfigError, match="sft.rows = 20: is no multiple of grpo.micro_prompts = 8"):
        config.resolve(settings(sft__rows=20))
    with pytest.raises(config.ConfigError, match="grpo.logp_chunk = 4: is below grpo.micro_prompts = 8"):
        config.resolve(settings(grpo__logp_chunk=4))


def test_sections_are_frozen():
    run = config.resolve(settings())
    with pytest.raises(dataclasses.FrozenInstanceError):
        run.grpo.beta = 1.0
    assert typing.get_type_hints(config.Config)["grpo"] is config.Grpo
