"""Training: the same bits again and after a kill, pauses, run folders, checkpoints that don't fit."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import nn

import subbyte as sb
from subbyte.scheme import Scheme
from subbyte.train import (
    Checkpoint,
    CheckpointError,
    Config,
    DivergedError,
    Progress,
    RunError,
    RunFolder,
    evaluate,
    load_run,
    read_rows,
    train,
)
from subbyte.train.build import load_dataset
from subbyte.train.checkpoint import read_header
from subbyte.train.metrics import TIMINGS


def digits(scheme: str = "float", **settings) -> Config:
    """A run of seconds."""
    settings = {"epochs": 2, "batch_size": 256, "threads": 1, "log_every": 5, **settings}
    return Config.for_task("digits", scheme=Scheme.from_name(scheme).to_dict(), **settings)


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def assert_same_run(a: Path, b: Path) -> None:
    """Equal bytes in every tensor of both checkpoints, equal rows apart from the timings."""
    for name in ("last.safetensors", "best.safetensors"):
        left, right = load_file(a / name), load_file(b / name)
        assert left.keys() == right.keys()
        for key in left:
            assert left[key].dtype == right[key].dtype
            assert left[key].numpy().tobytes() == right[key].numpy().tobytes(), key
    rows = [
        [{k: v for k, v in row.items() if k not in TIMINGS} for row in read_rows(d / "metrics.jsonl")] for d in (a, b)
    ]
    assert rows[0] == rows[1]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A finished float run."""
    path = tmp_path_factory.mktemp("runs") / "float"
    assert train(digits(), path, console=quiet()).finished
    return path


# The same bits again


@pytest.mark.parametrize("scheme", ["float", "int4", "int4-integer-only"])
def test_same_command_twice_gives_identical_checkpoints(tmp_path, scheme):
    config = digits(scheme, epochs=1, batch_size=256)
    for name in "ab":
        train(config, tmp_path / name, console=quiet())
        torch.rand(7)  # whatever the process did before must not matter
    assert_same_run(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize("scheme", ["float", "int4", "int4-integer-only"])
def test_frozen_norms_keep_their_statistics_while_weights_go_on(tmp_path, scheme):
    config = digits(scheme, freeze_norms_epochs=1.0)
    train(config, tmp_path, keep_epochs=[1], console=quiet())
    before, after = load_file(tmp_path / "epoch-1.safetensors"), load_file(tmp_path / "last.safetensors")
    running = [k for k in before if k.startswith("model/") and k.endswith(("running_mean", "running_var"))]
    weights = [k for k in before if k.startswith("model/") and k.endswith("weight")]
    assert len(running) == 8
    assert all(torch.equal(before[k], after[k]) for k in running)
    assert all(not torch.equal(before[k], after[k]) for k in weights)


@pytest.mark.parametrize("scheme", ["float", "int4"])
def test_autocast_decides_what_passes_between_layers(tmp_path, scheme, monkeypatch):
    """In steps alone: their logits are bfloat16, those of the evaluation and the report float32, as the Parameters."""
    seen = []
    cls = sb.nn.Linear if scheme == "int4" else nn.Linear
    original = cls.forward

    def forward(self, x):
        y = original(self, x)
        seen.append((self.training, y.dtype))
        return y

    monkeypatch.setattr(cls, "forward", forward)
    outcome = train(digits(scheme, epochs=1, autocast="bfloat16"), tmp_path, console=quiet())
    assert outcome.finished
    assert set(seen[: outcome.step]) == {(True, torch.bfloat16)}
    assert set(seen[outcome.step :]) == {(False, torch.float32), (True, torch.float32)}
    saved = load_file(tmp_path / "last.safetensors")
    assert {t.dtype for name, t in saved.items() if name.startswith("model/") and t.is_floating_point()} == {
        torch.float32
    }


def test_another_seed_gives_other_weights(tmp_path, finished):
    train(digits(seed=1, epochs=1), tmp_path / "other", console=quiet())
    a, b = (load_file(path / "last.safetensors") for path in (tmp_path / "other", finished))
    assert not torch.equal(a["model/fc.weight"], b["model/fc.weight"])


@pytest.mark.parametrize(
    ("scheme", "optimizer", "more"),
    [
        *(("float", "adamw", {}), ("int4", "sgd", {}), ("int4", "adamw8bit", {}), ("int4", "adamw4bit", {})),
        *(("int4-integer-only", "integer-sgd", {}), ("int4", "sgd", {"autocast": "bfloat16"})),
    ],
)
def test_kill_in_the_middle_of_an_epoch_then_resume_equals_undisturbed(tmp_path, scheme, optimizer, more):
    if library := {"adamw8bit": "bitsandbytes", "adamw4bit": "torchao"}.get(optimizer):
        pytest.importorskip(library, reason="pip install 'subbyte[optim]'")
    settings = {"optimizer": optimizer, "batch_size": 64, "log_every": 4, **more}
    command = [sys.executable, "-m", "subbyte.cli", "train", "--scheme", scheme, "--epochs", "2", "--threads", "1"]
    command += [flag for name, value in settings.items() for flag in ("--" + name.replace("_", "-"), str(value))]

    def position(run: Path) -> dict:
        try:
            return read_header(run / "last.safetensors")["progress"]
        except CheckpointError:
            return {"batch": 0}

    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen([*command, "--checkpoint-every", "3", "--out", str(killed)], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None and position(killed)["batch"] < 6:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    assert position(killed)["batch"] > 0, "it was not killed in the middle of an epoch"
    with open(killed / "metrics.jsonl", "ab") as file:
        file.write(b'{"kind": "step", "cut o')  # what a machine that lost its power may leave

    config = digits(scheme, **settings)
    train(config, killed, resume=True, console=quiet())
    train(config, whole, console=quiet())
    assert_same_run(whole, killed)
    state = Checkpoint.load(whole / "last.safetensors").optimizer.values()
    assert any(tensor.dtype == torch.uint8 for tensor in state) == optimizer.endswith("bit")


def test_a_run_begins_with_the_weights_of_another_scheme(tmp_path, finished):
    """Also where it goes on before its first checkpoint."""
    source = Checkpoint.load(finished / "last.safetensors").model
    config = digits("int4", lr=1e-12, weight_decay=0.0, momentum=0.0, nesterov=False)
    for resume in (False, True):
        train(config, tmp_path, console=quiet(), weights=finished / "last.safetensors", time_limit=1e-9, resume=resume)
        begun = Checkpoint.load(tmp_path / "last.safetensors").model
        weights = [name for name in source if name.endswith("weight")]
        assert all(torch.allclose(begun[name], source[name]) for name in weights)
        (tmp_path / "last.safetensors").unlink()


def test_pausing_again_and_again_changes_nothing(tmp_path, finished):
    path, pauses = tmp_path / "paused", 0
    outcome = train(digits(), path, console=quiet(), time_limit=1e-9)
    while not outcome.finished:
        pauses += 1
        outcome = train(digits(), path, console=quiet(), time_limit=1e-9, resume=True)
    assert pauses >= outcome.step
    assert_same_run(finished, path)


def test_resume_before_the_first_checkpoint_starts_from_the_beginning(tmp_path, finished):
    path = tmp_path / "early"
    train(digits(), path, console=quiet(), time_limit=1e-9)
    (path / "last.safetensors").unlink()
    train(digits(), path, console=quiet(), resume=True)
    assert_same_run(finished, path)


def test_evaluation_leaves_generators_and_mode_alone(finished):
    run = load_run(finished)
    run.model.train()
    before = torch.get_rng_state()
    evaluate(run.model, load_dataset(run.config), batch_size=100)
    assert torch.equal(before, torch.get_rng_state())
    assert run.model.training


# Pausing


def test_time_limit_checkpoints_and_says_so(tmp_path):
    outcome = train(digits(epochs=10**6), tmp_path / "run", console=quiet(), time_limit=0.5)
    assert not outcome.finished
    assert "time limit" in outcome.reason
    assert Checkpoint.load(tmp_path / "run" / "last.safetensors").progress.step == outcome.step > 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_checkpoint_and_end(tmp_path, number):
    class Interrupting(io.StringIO):
        def write(self, text: str) -> int:
            if "test loss" in text:
                signal.raise_signal(number)
            return super().write(text)

    handler = signal.getsignal(number)
    outcome = train(digits(epochs=1000), tmp_path / "run", console=Console(file=Interrupting(), width=200))
    assert not outcome.finished
    assert outcome.reason == f"stopped by {number.name}"
    assert Checkpoint.load(tmp_path / "run" / "last.safetensors").progress.step == outcome.step
    assert signal.getsignal(number) is handler


# The run folder


def test_a_run_folder_holds_everything(finished):
    names = {path.name for path in finished.iterdir()}
    assert names == {
        "config.json",
        "dataset.json",
        "metrics.jsonl",
        "curves.png",
        "report.json",
        "events",
        "last.safetensors",
        "best.safetensors",
    }
    rows = read_rows(finished / "metrics.jsonl")
    assert [row["epoch"] for row in rows if row["kind"] == "epoch"] == [1, 2]
    assert [row["step"] for row in rows if row["kind"] == "step"] == [5, 10]
    assert (finished / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((finished / "events").iterdir())
    json.loads((finished / "report.json").read_text())


def test_it_learns(tmp_path):
    assert train(digits(epochs=4, batch_size=32), tmp_path / "run", console=quiet()).test_accuracy > 0.9


def test_an_existing_folder_is_refused(finished, tmp_path):
    with pytest.raises(RunError, match=r"exists already and holds a run; add --resume .* or choose another --out"):
        train(digits(), finished, console=quiet())
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="holds other files"):
        train(digits(), tmp_path, console=quiet())
    with pytest.raises(RunError, match="is a file"):
        train(digits(), tmp_path / "file", console=quiet())


def test_resume_refuses_what_is_no_run(tmp_path):
    with pytest.raises(RunError, match="there is no run folder"):
        train(digits(), tmp_path / "nothing", resume=True)
    with pytest.raises(RunError, match=r"no run folder: it has no config\.json"):
        train(digits(), tmp_path, resume=True)


def test_resume_refuses_other_settings_and_names_them(finished):
    with pytest.raises(RunError, match=r"lr: 0\.2 here, 0\.05 there"):
        train(digits(lr=0.2), finished, resume=True)


def test_resuming_a_finished_run_changes_nothing(finished):
    before = (finished / "last.safetensors").read_bytes()
    outcome = train(digits(), finished, resume=True, console=quiet())
    assert outcome.finished
    assert (finished / "last.safetensors").read_bytes() == before


def test_a_folder_in_use_is_refused(tmp_path):
    folder = RunFolder(tmp_path)
    with folder.locked(), pytest.raises(RunError, match="in use by another process"), RunFolder(tmp_path).locked():
        pass


@pytest.mark.parametrize("package", ["matplotlib", "tensorboard"])
def test_missing_extras_give_one_note_and_training_goes_on(tmp_path, monkeypatch, package):
    for name in [
        name for name in sys.modules if name.partition(".")[0] == package or name == "torch.utils.tensorboard"
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    console = quiet()
    assert train(digits(), tmp_path / "run", console=console).finished
    assert console.file.getvalue().count(f"{package} is not installed") == 1


# Checkpoints


def test_a_nan_loss_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    path = tmp_path / "run"
    with pytest.raises(
        DivergedError, match=r"(?s)at step \d+ \(epoch .*learning rate .*lower --lr than 1e\+30"
    ) as caught:
        train(digits(lr=1e30, warmup_epochs=0, epochs=3), path, console=quiet(), checkpoint_every=1)
    assert caught.value.exit_code == 1
    if (path / "last.safetensors").exists():
        for tensor in Checkpoint.load(path / "last.safetensors").model.values():
            assert torch.isfinite(tensor.float()).all()


REPLACING = """
import itertools, os, sys
for source in itertools.cycle(sys.argv[1:3]):
    os.link(source, sys.argv[3] + ".part")
    os.replace(sys.argv[3] + ".part", sys.argv[3])
"""


def test_a_checkpoint_replaced_while_it_is_read_is_one_of_the_two(tmp_path):
    """A training that goes on renames its next checkpoint over the one being read."""
    path, sources = tmp_path / "last.safetensors", [tmp_path / "a", tmp_path / "b"]
    for source, n in zip(sources, (1, 4096), strict=True):
        Checkpoint({"w": torch.full((n,), n)}, Progress(step=n), {"pad": "x" * n}).save(source)
    path.write_bytes(sources[0].read_bytes())
    with subprocess.Popen([sys.executable, "-c", REPLACING, *map(str, sources), str(path)]) as writer:
        try:
            seen = set()
            deadline = time.monotonic() + 60
            while len(seen) < 2 and time.monotonic() < deadline:
                seen.add(read_header(path)["progress"]["step"])  # until the replacing is under way
            for _ in range(2000):
                assert read_header(path)["progress"]["step"] in (1, 4096)
                read = Checkpoint.load(path)
                assert read.model["w"].tolist() == [read.progress.step] * read.progress.step
        finally:
            writer.kill()
    assert seen == {1, 4096}


def test_a_truncated_checkpoint_is_refused(tmp_path, finished):
    whole = (finished / "last.safetensors").read_bytes()
    for length in (0, 5, 1000, len(whole) - 1):
        (tmp_path / "cut.safetensors").write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=f"truncated or corrupt \\({length:,} bytes"):
            Checkpoint.load(tmp_path / "cut.safetensors")


def test_a_foreign_or_missing_checkpoint_is_refused(tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match="not a subbyte checkpoint"):
        Checkpoint.load(tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        Checkpoint.load(tmp_path / "nothing.safetensors")


def test_a_checkpoint_of_another_model_is_refused_with_names_and_sizes(tmp_path, finished):
    train(digits(model="resnet20", epochs=1, batch_size=1000), tmp_path / "run", console=quiet(), time_limit=1e-9)
    (tmp_path / "run" / "last.safetensors").write_bytes((finished / "last.safetensors").read_bytes())
    with pytest.raises(
        CheckpointError, match=r"\d+ missing from the file: conv1\.weight.*\d+ not in the model: block1"
    ):
        load_run(tmp_path / "run")
    with pytest.raises(CheckpointError, match="other settings: model: resnet20 here, smallcnn there"):
        train(digits(model="resnet20", epochs=1, batch_size=1000), tmp_path / "run", resume=True, console=quiet())


def test_a_checkpoint_of_another_size_is_refused_with_both_sizes(tmp_path, finished):
    saved = Checkpoint.load(finished / "last.safetensors")
    saved.model["fc.weight"] = torch.zeros(7, 64)
    for file in finished.glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    saved.save(tmp_path / "last.safetensors")
    with pytest.raises(CheckpointError, match=r"1 of another shape: fc\.weight \(file \(7, 64\), model \(10, 64\)\)"):
        load_run(tmp_path)


def test_lost_rows_are_noticed(tmp_path):
    train(digits(), tmp_path / "run", console=quiet())
    (tmp_path / "run" / "metrics.jsonl").write_bytes(b"")
    with pytest.raises(CheckpointError, match="rows are lost"):
        train(digits(), tmp_path / "run", resume=True, console=quiet())


def test_saving_leaves_no_file_aside_and_follows_the_umask(finished):
    assert not list(finished.glob("*.part"))
    assert (finished / "last.safetensors").stat().st_mode == (finished / "config.json").stat().st_mode
