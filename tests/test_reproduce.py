"""`subbyte reproduce`: runs are done once, stop and go on, and give rows that say everything."""

from __future__ import annotations

import dataclasses
import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from subbyte.cli import app
from subbyte.recipes import find
from subbyte.study import Place, RowFile, Run, Study, StudyError, execute, training
from subbyte.study.runner import planned
from subbyte.train.checkpoint import read_header
from subbyte.train.folder import hold

FAST = dict(model="smallcnn", batch_size=256, log_every=5)


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def make(schemes=("float", "int4"), seeds=(0,), **settings) -> Study:
    """A study on the embedded digits, of seconds."""
    how = {"epochs": 1, **FAST, **settings}
    runs = [Run(name, training("digits", name, seed, **how)) for seed in seeds for name in schemes]
    return Study("tiny", "a tiny study", None, None, lambda config: runs)


def place(tmp_path: Path, **settings) -> Place:
    return Place(tmp_path / "results", tmp_path / "runs", command="subbyte reproduce tiny", **settings)


def rows_of(tmp_path: Path) -> list[dict]:
    return RowFile(tmp_path / "results" / "tiny.jsonl").read()


def test_runs_give_rows_and_are_not_done_again(tmp_path):
    study = make()
    progress = execute(study, None, place(tmp_path), quiet())
    assert progress.done == ["float-seed0", "int4-seed0"]
    assert progress.left == []
    rows = rows_of(tmp_path)
    always = {
        "study",
        "task",
        "model",
        "scheme",
        "quantizer",
        "seed",
        "epochs",
        "metric",
        "seconds",
        "commit",
        "machine",
    }
    for row in rows:
        assert always <= set(row)
        assert 0 < row["value"] <= 1
        assert row["command"] == "subbyte reproduce tiny"
    assert [row["integer_share"] for row in rows] == [0.0, 1.0]
    assert [row["quantizer"] for row in rows] == ["none", "s4 TokenShiftQuant(5 groups of tokens, stochastic)"]
    assert rows[1]["settings"]["scheme"]["layer"]["weight"] == {
        "type": "BlockShiftQuant",
        "bits": 4,
        "signed": True,
        "rounding": "nearest",
        "groups": 3,
        "block": 8,
        "clip": 1.0,
        "channel_groups": 1,
        "channels_apart": 0,
    }
    before = (tmp_path / "results" / "tiny.jsonl").read_bytes()
    assert execute(study, None, place(tmp_path), quiet()).done == []
    assert (tmp_path / "results" / "tiny.jsonl").read_bytes() == before
    assert "| int4 | 1 |" in (tmp_path / "results" / "tiny.md").read_text()


def test_another_setting_is_another_run(tmp_path):
    execute(make(("float",)), None, place(tmp_path), quiet())
    assert execute(make(("float",), lr=0.01), None, place(tmp_path), quiet()).done == ["float-seed0"]
    assert len(rows_of(tmp_path)) == 2


def test_a_time_limit_leaves_a_checkpoint_and_says_what_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr("subbyte.study.runner.budget", lambda *_: [])  # it would take all of the time
    study = make(("int4", "float"), epochs=2)
    progress = execute(study, None, place(tmp_path, time_limit=0.05), quiet())
    assert progress.done == []
    assert progress.left == ["int4-seed0", "float-seed0"]
    assert "time limit" in progress.reason
    assert not (tmp_path / "results" / "tiny.jsonl").exists()
    folder = next(iter(study.runs(None))).folder(tmp_path / "runs")
    assert 0 < read_header(folder.last)["progress"]["step"] < 12
    assert execute(study, None, place(tmp_path), quiet()).left == []
    undisturbed = tmp_path / "other"
    execute(study, None, place(undisturbed), quiet())
    keys = ("variant", "value", "train_loss", "test_loss", "curve")
    assert [[r[k] for k in keys] for r in rows_of(tmp_path)] == [[r[k] for k in keys] for r in rows_of(undisturbed)]


KILLED = """
import io, sys
from pathlib import Path
from rich.console import Console
sys.path.insert(0, {tests!r})
from test_reproduce import make, place, quiet
from subbyte.study import execute
execute(make(("int4",), epochs=4), None, place(Path({folder!r})), quiet())
"""


def test_a_killed_study_goes_on_to_the_same_row(tmp_path):
    run = next(iter(make(("int4",), epochs=4).runs(None)))
    script = KILLED.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", script])
    last = run.folder(tmp_path / "runs").last
    deadline = time.monotonic() + 120
    while not last.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert last.exists()
    assert not rows_of(tmp_path)
    assert execute(make(("int4",), epochs=4), None, place(tmp_path), quiet()).done == ["int4-seed0"]
    execute(make(("int4",), epochs=4), None, place(tmp_path / "other"), quiet())
    for key in ("value", "train_loss", "test_loss", "curve"):
        assert rows_of(tmp_path)[0][key] == rows_of(tmp_path / "other")[0][key]


def test_a_folder_killed_before_its_settings_is_begun_again(tmp_path):
    study = make(("float",))
    folder = next(iter(study.runs(None))).folder(tmp_path / "runs")
    folder.path.mkdir(parents=True)
    folder.dataset_file.write_text("{}")
    assert execute(study, None, place(tmp_path), quiet()).done == ["float-seed0"]


def test_a_run_that_another_process_holds_is_left_to_it(tmp_path):
    study = make(("float", "int4"))
    run = next(iter(study.runs(None)))
    lock = tmp_path / "runs" / f"{run.name}-{run.key()}.lock"
    lock.parent.mkdir()
    lock.touch()
    with hold(lock) as held:
        assert held
        progress = execute(study, None, place(tmp_path), quiet())
    assert progress.done == ["int4-seed0"]
    assert progress.left == ["float-seed0"]


def test_a_run_that_diverges_is_a_row_without_a_value(tmp_path):
    study = make(("float",), lr=1e30)
    assert execute(study, None, place(tmp_path), quiet()).done == ["float-seed0"]
    (row,) = rows_of(tmp_path)
    assert row["value"] is None
    assert "loss" in row["diverged"] or "finite" in row["diverged"]
    assert "1 diverged" in (tmp_path / "results" / "tiny.md").read_text()


def test_the_budget_is_steps_times_a_measured_step(tmp_path):
    console = quiet()
    progress = execute(make(("float", "int4"), seeds=(0, 1)), None, place(tmp_path, budget_only=True), console)
    assert progress.done == []
    assert len(progress.left) == 4
    text = console.file.getvalue()
    assert "| float | 2 |" in text
    assert "| int4 | 2 |" in text
    assert "| 12 |" in text  # 2 runs of ceil(1442 / 256) = 6 steps
    assert not (tmp_path / "results").exists()


def test_a_run_of_another_study_is_not_done_again(tmp_path):
    execute(make(("float",)), None, place(tmp_path), quiet())
    for number, row in enumerate(({"case": 1}, {"key": "k", "time": "t"}, {"key": "k"}, {"key": "k"})):
        (tmp_path / "results" / f"kind{number}.jsonl").write_text(2 * (json.dumps(row) + "\n"))
    other = dataclasses.replace(make(), name="other")
    assert execute(other, None, place(tmp_path), quiet()).done == ["int4-seed0"]
    rows = RowFile(tmp_path / "results" / "other.jsonl").read()
    assert [(row["study"], row["variant"]) for row in rows] == [("other", "float"), ("other", "int4")]
    assert rows[0]["value"] == rows_of(tmp_path)[0]["value"]


def test_some_runs_can_be_chosen(tmp_path):
    study = make(("float", "int4"), seeds=(0, 1))
    assert [run.name for run in planned(study, None, "int4-*")] == ["int4-seed0", "int4-seed1"]
    with pytest.raises(StudyError, match="no run of tiny matches 'int5'"):
        planned(study, None, "int5")


def test_two_equal_runs_are_a_mistake_of_the_recipe():
    run = Run("float", training("digits", "float", 0))
    with pytest.raises(StudyError, match="are the same run"):
        planned(Study("tiny", "", None, None, lambda config: [run, run]), None)


# The command line


def ok(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_the_list_names_every_study():
    text = ok("reproduce", "--list")
    assert all(name in text for name in ("resnet-cifar10", "theory", "helps", "resnet-imagenet"))


def test_bad_input_is_one_line():
    for arguments, message in (
        (["gradint"], "did you mean 'gradients'"),
        (["theory", "--seeds", "a b"], "write whole numbers"),
        (["theory", "--time-limit", "soon"], "no duration"),
        (["theory", "--report", "--out", "nowhere"], "no rows yet"),
    ):
        result = CliRunner().invoke(app, ["reproduce", *arguments])
        assert result.exit_code == 2
        assert message in result.stderr
        assert "Traceback" not in result.output


def quick(name: str, tmp_path: Path, *arguments: object, only: str = "*") -> list[dict]:
    """A smoke run by the command line; its rows."""
    out = tmp_path / "out"
    common = ["--quick", "--out", out, "--runs", tmp_path / "runs", "--only", only]
    ok("reproduce", name, *common, *arguments)
    study = find(name)
    again = ok("reproduce", name, *common, *arguments)
    assert "0 to do" in again
    assert "## Sources" in (out / f"{name}.md").read_text()
    wanted = {run.key() for run in planned(study, study.quick, only)}
    rows = RowFile(out / f"{name}.jsonl").read()
    assert {row["key"] for row in rows} == wanted
    assert all(json.dumps(row) for row in rows)
    return rows


@pytest.mark.parametrize("name", ["bits", "foundation", "helps", "integer-only", "resnet-cifar10"])
def test_quick_runs_of_trainings(name, tmp_path):
    rows = quick(name, tmp_path)
    assert all(0 < row["value"] <= 1 for row in rows)
    float_rows = {row["variant"] for row in rows if row["integer_share"] == 0}
    assert float_rows <= {"float", "float, long warm-up", "float, weight standardization"}


def test_quick_late_begins_every_variant_with_one_net(tmp_path):
    rows = {row["variant"]: row for row in quick("late", tmp_path, only="*-seed0")}
    assert list(rows) == ["start", "float", "int4", "groups-w, whole-a"]
    assert all(rows[name]["train_loss"] < 0.9 * rows["start"]["train_loss"] for name in ("float", "int4"))
    alone = quick("late", tmp_path / "alone", only="int4-*")  # trains the net that it begins with, too
    assert [row["train_loss"] for row in alone] == [rows["int4"]["train_loss"]]


def test_quick_gradients_measure_each_quantizer_on_one_net(tmp_path):
    rows = quick("gradients", tmp_path)
    measured = {row["variant"]: row for row in rows if row["metric"] == "gradient"}
    assert measured["absmax"]["gradient_variance"] > 10 * measured["float-gradients"]["gradient_variance"]
    assert all(row["step_seconds"] > 0 for row in measured.values())
    assert {row["group"] for row in rows} == {"resnet", "channels far apart"}


def test_quick_theory_captures_every_layer(tmp_path):
    rows = quick("theory", tmp_path)
    tensors = [row for row in rows if row["metric"] == "bound"]
    assert len(tensors) == 2 * 8  # stages, and ResNet-8's six convolutions behind the stem, the stem and fc
    assert all(row["bounds"]["free_4"] <= row["bounds"]["pow2_4"] <= row["bounds"]["consecutive_4"] for row in tensors)
    assert all(1 <= row["chosen"] <= row["consecutive"] for row in tensors)


def test_quick_norms_measure_sharpness(tmp_path):
    rows = quick("norms", tmp_path, only="*-l1-4-*")
    assert [row["group"] for row in rows] == ["resnet8", "smallvit"]
    for row in rows:
        assert row["hessian"] != 0
        assert len(row["landscape"][0]) == len(row["distances"]) == 3


def test_quick_imagenet_on_a_small_folder(tmp_path):
    from PIL import Image

    for split, count in (("train", 4), ("val", 2)):
        for label, colour in (("cat", (200, 30, 30)), ("dog", (30, 30, 200))):
            folder = tmp_path / "images" / split / label
            folder.mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (40, 36), tuple(c + i for c in colour)).save(folder / f"{i}.png")
    rows = quick("resnet-imagenet", tmp_path, "--data-dir", tmp_path / "images", only="resnet18-*")
    assert {row["variant"] for row in rows} == {"float", "int4"}
    assert all(row["integer_share"] == (row["variant"] == "int4") for row in rows)
