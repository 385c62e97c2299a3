"""What a user gets wrong, case by case: one message with the name, the value and the fix, and the exit code for it.

The cases that a module's own tests show are listed in ELSEWHERE; the others go through `train.train` here.
"""

import argparse
import ast
import pathlib
import re
import subprocess
import sys

import benchmark_files
import hub_files
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetag_files
import tiny_runs
from absl import flags
from ml_collections import config_flags

from safer_jax import build, command_line, convert, inspection, runtime, shards, train
from safer_jax.command import ExitCode
from safer_jax.datasets import arguments, prepared

ROOT = pathlib.Path(__file__).parents[1]
ELSEWHERE = {
    "missing image": "test_safetag.py::test_bad_value_names_file_row_column_and_fix",
    "truncated or otherwise bad image": "test_images.py::test_a_bad_file_is_named",
    "image of too many pixels": "test_images.py::test_a_decompression_bomb_is_refused_from_its_header",
    "bad image names its row": "test_prompts.py::test_a_bad_image_names_its_row",
    "bad rows beyond the budget": "test_data.py::test_usable_stops_beyond_the_budget",
    "wrong columns": "test_safetag.py::test_wrong_columns_are_named",
    "empty split": "test_safetag.py::test_empty_split_is_refused",
    "missing shard": "test_safetag.py::test_missing_shard_is_named",
    "damaged parquet": "test_safetag.py::test_files_that_cannot_be_read_are_named",
    "unknown tag": "test_rewards.py::test_record_without_tags_is_named",
    "rows for evaluation in training": "test_data.py::test_records_for_evaluation_are_refused_in_training",
    "too long reference": "test_build.py::test_a_reference_that_does_not_fit_is_refused_before_the_first_step",
    "config: every field": "test_config.py::test_refused",
    "mesh": "test_mesh.py::test_a_mesh_that_does_not_fit_names_its_sizes",
    "batch that the mesh does not divide": "test_build.py::test_batches_must_be_cut_evenly",
    "another run in the folder": "test_train.py::test_another_config_does_not_resume_a_run",
    "model.path that does not exist": "test_build.py::test_a_model_path_that_cannot_serve_is_refused",
    "checkpoint of another model": "test_checkpoint.py::test_other_model_lists_the_leaves",
    "damaged checkpoint": "test_checkpoint.py::test_flipped_bits_are_caught",
    "weights of another shape": "test_convert.py::test_params_of_another_model_or_damaged_are_refused",
    "corrupt safetensors": "test_convert.py::test_a_broken_source_is_named_and_nothing_is_left",
}


@pytest.mark.parametrize("case", ELSEWHERE)
def test_the_case_is_shown(case):
    file, _, name = ELSEWHERE[case].partition("::")
    tree = ast.parse((ROOT / "tests" / file).read_text())
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, ELSEWHERE[case]


def row(number, **changes):
    return {**safetag_files.rows(number + 1)[number], **changes}


def image(data):
    return {"images": [{"bytes": data, "path": "a.jpg"}]}


JPEG = safetag_files.picture("jpeg", size=(280, 280))
PNG = safetag_files.picture("png", size=(280, 280))
ROWS = {
    "missing image": (row(2, **image(None)), "row 2, field 'images.0.': .*'a.jpg'.: an image without bytes; embed"),
    "truncated JPEG": (
        row(2, **image(JPEG[: len(JPEG) // 2])),
        "train/000002.*JPEG file of .* does not decode .*truncated.*; save the image again or drop",
    ),
    "truncated PNG": (
        row(2, **image(PNG[: len(PNG) // 2])),
        "train/000002.*PNG file of .* does not decode .*truncated.*; save the image again or drop",
    ),
    "no image at all": (
        row(2, **image(b"<html>not found</html>")),
        "train/000002.*beginning b'<html>no' have no header of JPEG, PNG.*; convert it or drop",
    ),
    "unknown tag": (row(2, text_tag="harmless"), "row 2, field 'text_tag': 'harmless': want one of 'safe', 'unsafe'"),
    "too long prompt": (
        row(2, prompt="red cup " * 3000),
        r"train/000002.*needs \d{4,} tokens, prompt.buckets end at 2048; add one",
    ),
}


@pytest.fixture
def one_device(monkeypatch):
    tiny_runs.on_one_device(monkeypatch)


def settings(folder, **changes):
    overrides = {name.replace("__", "."): value for name, value in changes.items()}
    return tiny_runs.settings({"data.path": str(folder), **overrides}, file="safegrpo_3b")


def refusal(capsys, made, folder):
    """What the command prints of an error that is the user's to mend; it ends with the exit code for that."""
    with pytest.raises(SystemExit) as ended, runtime.started(build.BAD_INPUT):
        train.train(made, folder)
    assert ended.value.code == ExitCode.BAD_INPUT == 2
    told = capsys.readouterr().err
    assert "Traceback" not in told
    return told


def set_with(folder, bad):
    """A data set whose training row 2 is bad."""
    safetag_files.write_set(folder, 4, 4)
    rows = safetag_files.rows(4)
    rows[2] = bad
    safetag_files.write(folder / "data" / "train-00000-of-00001.parquet", rows)
    return folder


@pytest.mark.parametrize("case", ROWS)
def test_a_bad_row_is_named_at_the_start(case, tmp_path, capsys, one_device):
    bad, words = ROWS[case]
    folder = set_with(tmp_path / "set", bad)
    told = refusal(capsys, settings(folder, data__bad_rows=0), tmp_path / "run")
    line = told.splitlines()[-1]
    assert line.startswith("DataError: ") and "1 bad rows in the first 3, data.bad_rows allows 0; mend them or" in line
    assert re.search(words, line), line
    assert not (tmp_path / "run" / "checkpoints").exists() and not (tmp_path / "run" / "metrics.jsonl").exists()


def test_bad_rows_within_the_budget_are_left_out_by_name(tmp_path, capsys, one_device):
    folder = set_with(tmp_path / "set", ROWS["truncated JPEG"][0])
    made = settings(folder, data__bad_rows=1)
    shape = build.prepare_assets(made, tmp_path / "assets")
    train_feed, test_feed, orders, _ = build._feeds(made, build.make_processor(made, tmp_path / "assets", shape))
    assert train_feed.usable.rows == [0, 1, 3] and test_feed.usable.rows == [0, 1, 2, 3]
    assert orders["grpo"].size == 3 and "left out, " in capsys.readouterr().err
    assert len(train_feed.usable.dropped) == 1 and "train/000002" in train_feed.usable.dropped[0]


@pytest.mark.parametrize(
    ("scheme", "words"),
    [
        (
            "safegrpo",
            "all three tags, which reward.scheme = 'safegrpo' needs: .*tools/tag.py, or take scheme 'safegrpo_plus'",
        ),
        (
            "safegrpo_plus",
            "a tag or `expected`, which reward.scheme = 'safegrpo_plus' needs: .*, or take a scheme with a judge",
        ),
    ],
)
def test_a_set_that_says_nothing_cannot_be_rewarded_by_rules(scheme, words, tmp_path, capsys, one_device):
    folder = hub_files.write("spa_vl", tmp_path / "set")
    made = settings(folder, data__name="spa_vl", data__eval_split="validation", reward__scheme=scheme)
    told = refusal(capsys, made, tmp_path / "run")
    assert re.search(f"DataError: spa_vl/train: none of 6 rows has {words}", told), told


def test_rows_without_tags_are_left_out_by_name_where_rules_reward(tmp_path, capsys, one_device):
    """VLGuard does not tag the text of an unsafe image: SafeGRPO's rules cannot use those rows, safegrpo_plus can."""
    folder, rows = benchmark_files.write("vlguard", tmp_path / "set"), {}
    for scheme in ("safegrpo", "safegrpo_plus"):
        made = settings(folder, data__name="vlguard", reward__scheme=scheme)
        shape = build.prepare_assets(made, tmp_path / scheme)
        train_feed, test_feed, orders, _ = build._feeds(made, build.make_processor(made, tmp_path / scheme, shape))
        rows[scheme] = sorted(orders["grpo"].dataset[draw] for draw in range(orders["grpo"].size))
        assert build._rewarded(made, test_feed).tolist() == rows[scheme] and len(train_feed.usable.rows) == 9
        warned = "WARNING: vlguard/train: 3 of 9 rows (33.3%), such as vlguard/train/000002, lack all three tags, which"
        assert (warned in capsys.readouterr().err) == (scheme == "safegrpo")
    assert rows == {"safegrpo": [0, 1, 3, 4, 6, 7], "safegrpo_plus": list(range(9))}


def test_a_row_of_forty_images_is_left_out_by_name_or_read_whole(tmp_path, capsys, one_device):
    """Nothing limits their number but the slots: in training, inspection and preparation forty images are one row."""
    many = row(2, images=[{"bytes": safetag_files.picture("jpeg", n), "path": None} for n in range(40)])
    folder = set_with(tmp_path / "set", many)
    told = refusal(capsys, settings(folder, data__bad_rows=0), tmp_path / "run")
    assert re.search(
        r"train/000002: its 40 images need \d{3,} patch slots, prompt.patch_buckets end at 256; raise it", told
    ), told
    made = settings(folder, prompt__patch_buckets=(256, 4096))
    shape = build.prepare_assets(made, tmp_path / "assets")
    processor = build.make_processor(made, tmp_path / "assets", shape)
    feed = build._feeds(made, processor)[0]
    assert len(feed.usable.rows) == 4 and feed.ask([2], [0]).prompts.segment_PX.max() == 40
    source = feed.source
    fit = inspection.Fit(processor.size, made.prompt.buckets, (256,), "")
    assert len(inspection.look(source, processor.limits).bad) == 0
    assert inspection.look(source, processor.limits, fit).bad[0].startswith("safetag/train/000002: its 40 images need")
    prepared.prepare(source, {"name": "safetag", "split": "train"}, tmp_path / "prepared")
    assert prepared.Source(tmp_path / "prepared", "train")[2] == source[2] and len(source[2].images) == 40


def test_wrong_columns_and_an_empty_set(tmp_path, capsys, one_device):
    folder = safetag_files.write_set(tmp_path / "set", 4, 4)
    table = pa.Table.from_pylist(safetag_files.rows(2), schema=safetag_files.SCHEMA)
    path = folder / "data" / "train-00000-of-00001.parquet"
    pq.write_table(table.rename_columns(["question", *table.column_names[1:]]), path)
    told = refusal(capsys, settings(folder), tmp_path / "run")
    assert f"DataError: {path}: no column prompt; it has question, images" in told and "correct data.path" in told
    safetag_files.write(path, [])
    told = refusal(capsys, settings(folder), tmp_path / "run")
    assert "DataError: " in told and "train-00000-of-00001.parquet: split 'train' has no rows" in told
    told = refusal(capsys, settings(tmp_path / "nowhere"), tmp_path / "run")
    assert "nowhere: no such folder; set data.path to the folder" in told


def test_meshes_and_batches_that_do_not_fit(tmp_path, capsys):
    folder = safetag_files.write_set(tmp_path / "set", 4, 4)
    told = refusal(capsys, settings(folder, mesh__data=3), tmp_path / "run")
    assert "MeshError: mesh.data=3, mesh.fsdp=1, mesh.tensor=1 make 3 devices, but there are 8; set sizes whose" in told
    told = refusal(capsys, settings(folder), tmp_path / "run")
    assert "MeshError: eval.prompts = 4, grpo.prompts = 4, sampler.prompts_per_pass = 2: cannot be cut over" in told
    assert "make each a multiple of 8, or give devices to mesh.tensor" in told
    assert not (tmp_path / "run").exists()


def test_a_model_path_without_weights(tmp_path, capsys, one_device):
    folder, path = safetag_files.write_set(tmp_path / "set", 4, 4), tmp_path / "weights"
    told = refusal(capsys, settings(folder, model__path=str(path)), tmp_path / "run")
    assert f"ConfigError: model.path = '{path}': no converted model" in told and "convert.py from-hf SRC" in told
    build.prepare_assets(settings(folder), path / "assets")
    told = refusal(capsys, settings(folder, model__path=str(path)), tmp_path / "run")
    assert f"ConvertError: {path} holds no converted weights" in told and "from-hf" in told
    told = refusal(capsys, settings(folder, model__path=str(path), model__variant="7b"), tmp_path / "run")
    assert f"ConfigError: model.variant = '7b': model.path = '{path}' holds a 'tiny'" in told


def test_corrupt_safetensors(tmp_path):
    build.prepare_assets(tiny_runs.settings(), tmp_path / "hub")
    for content in (b"", b"\x08\0\0\0\0\0\0\0{broken}", b"PK not safetensors at all"):
        (tmp_path / "hub" / "model.safetensors").write_bytes(content)
        with pytest.raises(shards.ConvertError, match="(?s)model.safetensors.*Fix: copy the named files again"):
            convert.from_hf(tmp_path / "hub", tmp_path / "ours")
        assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize(
    "arguments,told",
    [
        (
            ["--config=configs/tiny.py", "--config.grpo.pompts=3"],
            "--config.grpo.pompts: no such setting; did you mean --config.grpo.prompts?",
        ),
        (["--config=configs/tiny.py", "--config.promt.buckets=64"], "did you mean --config.prompt.buckets?"),
        (["--config=configs/tiny.py", "--config.seed.x=1"], "did you mean --config.seed?"),
        (
            ["--config=configs/tiny.py", "--config.zz.zz=1"],
            "--config.zz.zz: no such setting; configs/base.py lists all",
        ),
        (["--config=configs/tiny.py:smok"], "takes no argument or smoke, got 'smok'"),
        (["--config=configs/tiny.py", "--config.grpo.prompts=many"], "--config.grpo.prompts=many: invalid literal"),
        (["--config=configs/tini.py"], "ConfigError: --config=configs/tini.py: no such file; give one such as"),
        (["--config=configs/tini.py:smoke"], "ConfigError: --config=configs/tini.py: no such file; give one such as"),
        (["--config=configs/tiny.py:smoke", "--config.sft.steps=-1"], "ConfigError: sft.steps = -1: must be"),
        (["--config=configs/tiny.py", "--config.data.name=demmo"], "data.name = 'demmo'"),
    ],
)
def test_a_command_line_that_cannot_be_read(arguments, told, capsys, monkeypatch):
    holder, argv = flags.FlagValues(), ["train", *arguments]
    config_flags.DEFINE_config_file("config", flag_values=holder)
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(flags, "FLAGS", holder)
    monkeypatch.setattr("sys.argv", argv)  # config_flags finds the overrides there
    with pytest.raises(SystemExit) as ended, runtime.started(build.BAD_INPUT):
        command_line.parse(argv)
        command_line.read()
    assert ended.value.code == ExitCode.BAD_INPUT and told in capsys.readouterr().err


def test_a_bucket_is_no_folder_to_write_to():
    try:
        with pytest.raises(flags.IllegalFlagValueError, match="workdir=gs://b/run: is an address; .* mount the bucket"):
            flags.FLAGS.workdir = "gs://b/run"
    finally:
        flags.FLAGS["workdir"].unparse()
    with pytest.raises(argparse.ArgumentTypeError, match="'gs://b/x' is an address, not a folder; mount the bucket"):
        arguments.place("gs://b/x")


def test_the_command_ends_with_one_message(tmp_path):
    command = [sys.executable, "-m", "safer_jax.train", "--config=configs/tiny.py", "--config.grpo.prompts=3"]
    folder = tmp_path / "run"
    ended = subprocess.run(
        [*command, f"--workdir={folder}"], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )
    assert ended.returncode == ExitCode.BAD_INPUT, ended.stderr
    assert "\nConfigError: grpo.micro_prompts = " in ended.stderr and "does not divide" in ended.stderr
    assert "Traceback" not in ended.stderr and len(ended.stderr.splitlines()) < 5
    assert not folder.exists()


def test_bugs_keep_their_traceback():
    with pytest.raises(ZeroDivisionError), runtime.started(build.BAD_INPUT):
        print(1 / 0)
