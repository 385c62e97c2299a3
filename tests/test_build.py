"""What a run is made of: its folder claimed and filled, sources of weights told apart, batches held to the mesh."""

import json
import types

import jax
import pytest
import tiny_runs

from safer_jax import build, config, convert, data, mesh, prompts
from safer_jax.model import variants
from safer_jax.shapes import Record


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A folder as tools/convert.py from-hf leaves it beside the weights: the assets of a 3b."""
    folder = tmp_path_factory.mktemp("weights") / "3b"
    build.prepare_assets(tiny_runs.settings({"model.variant": "3b"}), folder / "assets")
    return folder


def test_assets_of_random_weights_are_those_of_the_variant(converted):
    assert convert.read_config(converted / "assets") == variants.VARIANTS["3b"]
    assert prompts.load_tokenizer(str(converted / "assets")).eos_token == "<|im_end|>"
    assert not (converted / "assets.partial").exists()


def test_assets_are_taken_from_the_converted_model(converted, tmp_path):
    (tmp_path / "assets.partial").mkdir()  # of a start that was killed
    (tmp_path / "assets.partial" / "old.json").touch()
    made = tiny_runs.settings({"model.variant": "3b", "model.path": str(converted)})
    assert build.prepare_assets(made, tmp_path / "assets") == variants.VARIANTS["3b"]
    names = lambda folder: {path.name: path.read_bytes() for path in folder.iterdir()}
    assert names(tmp_path / "assets") == names(converted / "assets") and len(names(converted / "assets")) > 4
    # A run that goes on has its own copy.
    assert build.prepare_assets(tiny_runs.settings({"model.path": "gone"}), tmp_path / "assets")


def test_a_model_of_no_published_shape_is_taken_as_it_is(converted, tmp_path):
    shape = json.loads((converted / "assets" / "config.json").read_text())
    shape["num_hidden_layers"] = 5
    (tmp_path / "own" / "assets").mkdir(parents=True)
    (tmp_path / "own" / "assets" / "config.json").write_text(json.dumps(shape))
    made = tiny_runs.settings({"model.path": str(tmp_path / "own")})
    assert build.prepare_assets(made, tmp_path / "assets").text.depth == 5


def test_a_model_path_that_cannot_serve_is_refused(converted, tmp_path):
    start = lambda path, variant="tiny": build.prepare_assets(
        tiny_runs.settings({"model.path": str(path), "model.variant": variant}), tmp_path / "run" / "assets"
    )
    fix = "write one with `python tools/convert.py from-hf SRC"
    with pytest.raises(config.ConfigError, match=f"model.path = '.*nowhere': no converted model .*{fix}"):
        start(tmp_path / "nowhere")
    (tmp_path / "bare").mkdir()
    with pytest.raises(config.ConfigError, match=rf"model.path = '.*bare': .*assets/config.json.*{fix}"):
        start(tmp_path / "bare")
    (tmp_path / "bare" / "assets").mkdir()
    for broken in ("{", "{}"):
        (tmp_path / "bare" / "assets" / "config.json").write_text(broken)
        with pytest.raises(config.ConfigError, match=f"model.path = '.*bare': no converted model .*{fix}"):
            start(tmp_path / "bare")
    with pytest.raises(config.ConfigError, match=r"model.variant = '7b': model.path = '.*3b' holds a '3b'; correct"):
        start(converted, "7b")
    assert not (tmp_path / "run").exists(), "nothing is left of an attempt that was refused"


def test_a_folder_without_a_checkpoint_is_claimed_anew(tmp_path):
    """A run that was killed before its first checkpoint, then started again as another one."""
    first, second = tiny_runs.settings(), tiny_runs.settings({"model.variant": "3b"})
    for made in (first, second):
        build._claim(made, tmp_path, is_resumed=False)
        assert config.from_json((tmp_path / "config.json").read_text()) == made
        found = build.prepare_assets(made, tmp_path / "assets")
        assert found == variants.VARIANTS[made.model.variant], "not the assets of the attempt before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["assets", "config.json"]


def test_what_a_resumed_run_may_change(tmp_path):
    old = tiny_runs.settings()
    build._claim(old, tmp_path, is_resumed=False)
    may = {"grpo.steps": 9, "eval.every": 1, "eval.prompts": 4, "checkpoint.keep": 1, "log.rollouts": 1}
    may |= {"mesh.fsdp": 2, "data.root": "elsewhere", "optimizer.max_skipped": 1}
    build._claim(tiny_runs.settings(may), tmp_path, is_resumed=True)
    for name, value in {"optimizer.lr": 0.5, "data.path": "x", "sampler.temperature": 0.5, "sft.steps": 1}.items():
        with pytest.raises(build.ResumeError, match=rf"{name}: .* -> {value!r}\n.*choose a new --workdir"):
            build._claim(tiny_runs.settings({**may, name: value}), tmp_path, is_resumed=True)
    assert config.from_json((tmp_path / "config.json").read_text()) == tiny_runs.settings(may)


@pytest.mark.parametrize(
    "changes,told",
    [
        (
            {},
            "eval.prompts = 2, sft.rows = 4, grpo.prompts = 4: cannot be cut .* = 8 devices; make each a multiple of 8",
        ),
        ({"sft.rows": 8, "grpo.prompts": 8, "eval.prompts": 12}, "^eval.prompts = 12: cannot"),
        ({"sft.rows": 8, "grpo.prompts": 16, "eval.prompts": 8, "sampler.prompts_per_pass": 4}, "^sampler.prompts_per"),
        ({"sft.rows": 8, "grpo.prompts": 8, "eval.prompts": 8}, None),
        ({"sft.steps": 0, "grpo.steps": 0, "eval.prompts": 8}, None),  # what does not run needs not fit
        ({"mesh.tensor": 4}, None),
    ],
)
def test_batches_must_be_cut_evenly(changes, told):
    made = tiny_runs.settings(changes)
    device_mesh = mesh.make(made.mesh.data, made.mesh.fsdp, made.mesh.tensor, jax.devices()[:8])
    if told is None:
        build._check_batches(made, device_mesh)
    else:
        with pytest.raises(mesh.MeshError, match=told):
            build._check_batches(made, device_mesh)


def fake_feed(lengths):
    """A feed whose row i has a reference of lengths[i] tokens, none where that is 0."""
    source = [Record(f"row {i}", "fake", (), "Why?", reference="x" * n) for i, n in enumerate(lengths)]
    processor = types.SimpleNamespace(encode_completion=list)
    rows = types.SimpleNamespace(rows=list(range(len(lengths))))
    named = type("Source", (list,), {"name": "fake/train"})(source)
    return types.SimpleNamespace(source=named, usable=rows, processor=processor)


def test_the_warm_start_imitates_rows_with_a_reference_alone():
    feed = fake_feed([5, 0, 7, 0, 72, 1])
    rows = build._reference_rows(tiny_runs.settings(), feed)
    assert sorted(rows) == [0, 2, 4, 5]
    some = build._reference_rows(tiny_runs.settings({"sft.reference_rows": 2}), feed)
    assert some == rows[:2], "more references are the same ones and others"
    assert build._reference_rows(tiny_runs.settings({"seed": 5}), feed) != rows
    with pytest.raises(data.DataError, match="fake/train has no reference responses to imitate; set sft.steps=0"):
        build._reference_rows(tiny_runs.settings(), fake_feed([0, 0]))


def test_a_reference_that_does_not_fit_is_refused_before_the_first_step():
    told = "row 1: its reference response has 99 tokens, sampler.max_tokens is 72; raise it to 99"
    with pytest.raises(data.DataError, match=told):
        build._reference_rows(tiny_runs.settings(), fake_feed([73, 99, 3]))
