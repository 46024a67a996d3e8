"""The command line: a tiny run from training to prediction, and one clear line for each bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from subbyte import data
from subbyte.backends import _native, cpu
from subbyte.cli import app
from subbyte.scheme import Scheme
from subbyte.train import Checkpoint, Config, read_rows

TINY = ["--epochs", "2", "--batch-size", "128", "--threads", "1"]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def ok(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


def refused(*arguments: object, lines: int = 2) -> str:
    """The message of a refused command: a line or two, no traceback, exit code 2."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") <= lines
    assert "Traceback" not in result.output
    return result.stderr


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """These runs are too small to share, and waiting for one another costs most where the machine is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def int4_run(tmp_path_factory) -> Path:
    """A finished run in 4-bit integers, trained by the command line."""
    path = tmp_path_factory.mktemp("runs") / "int4"
    output = ok("train", "--epochs", 3, "--batch-size", 64, "--threads", 1, "--out", path)
    assert "finished after epoch 3" in output
    assert "100.00% of multiply-accumulates in integers" in output
    return path


@pytest.fixture(scope="module")
def image_files(tmp_path_factory) -> list[Path]:
    """Some test digits as PNG files."""
    image = pytest.importorskip("PIL.Image")
    folder, digits = tmp_path_factory.mktemp("images"), data.load("digits")
    paths = [folder / f"{i}.png" for i in range(8)]
    for path, pixels in zip(paths, digits.test_x):
        image.fromarray(pixels[0].numpy()).save(path)
    return paths


# What the commands do


def test_help_imports_no_training_code():
    code = "import sys, typer.testing, subbyte.cli as c\n"
    code += "r = typer.testing.CliRunner().invoke(c.app, ['train', '--help'])\n"
    code += "assert r.exit_code == 0 and '--scheme' in r.output and '--traceback' in r.output\n"
    code += "assert not any(m in sys.modules for m in ('subbyte.train', 'matplotlib', 'tensorboard'))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_version():
    assert ok("--version").startswith("subbyte ")


def test_default_run_folder_and_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ok("train", *TINY, "--scheme", "float", "--seed", 3, "--label-smoothing", 0.1, "--schedule", "onecycle")
    folder = tmp_path / "runs" / "digits-smallcnn-float-seed3"
    config = Config.from_json((folder / "config.json").read_text())
    assert (config.task, config.model, config.seed, config.schedule) == ("digits", "smallcnn", 3, "onecycle")
    assert config.warmup_epochs == pytest.approx(0.6)


def test_default_scheme_is_int4(int4_run):
    config = Config.from_json((int4_run / "config.json").read_text())
    assert Scheme.from_dict(config.scheme) == Scheme.from_name("int4")
    report = json.loads((int4_run / "report.json").read_text())
    assert report["integer_share"] == 1.0
    assert {layer["name"] for layer in report["layers"]} >= {"block1.0", "fc"}


def test_time_limit_then_resume(tmp_path):
    output = ok("train", *TINY, "--scheme", "float", "--out", tmp_path / "run", "--time-limit", "0.001s")
    assert "the time limit of 0.001 s is reached" in output
    assert f"subbyte train --resume --out {tmp_path / 'run'}" in output
    assert "finished after epoch 2" in ok("train", "--resume", "--out", tmp_path / "run")
    assert "is finished already" in ok("train", "--resume", "--out", tmp_path / "run", "--scheme", "float")


def test_scheme_from_a_file(tmp_path):
    scheme = json.loads(ok("schemes", "int8", "--json"))
    scheme["name"] = "mine"
    (tmp_path / "mine.json").write_text(json.dumps(scheme))
    ok("train", *TINY, "--epochs", 1, "--scheme", tmp_path / "mine.json", "--out", tmp_path / "run")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["scheme"]["name"] == "mine"


def test_schemes_lists_and_prints():
    assert ok("schemes").split() == list(Scheme.names())
    assert "gradient" in ok("schemes", "int4")


@pytest.mark.parametrize("which", ["last", "best"])
def test_eval_agrees_with_training(int4_run, which):
    values = json.loads(ok("eval", int4_run, "--json", "--checkpoint", which))
    rows = [row for row in read_rows(int4_run / "metrics.jsonl") if row["kind"] == "epoch"]
    progress = Checkpoint.load(int4_run / f"{which}.safetensors").progress
    row = rows[progress.epoch - 1]
    assert values["top1"] == row["test_accuracy"]
    assert values["loss"] == pytest.approx(row["test_loss"], rel=1e-6)
    assert values["top1"] <= values["top5"] <= 1
    assert sum(values["class_images"]) == values["images"]
    hits = sum(a * n for a, n in zip(values["class_accuracy"], values["class_images"]))
    assert hits == pytest.approx(values["top1"] * values["images"])


def test_eval_table(int4_run):
    output = ok("eval", int4_run)
    for part in ("loss (nats)", "top-1", "top-5"):
        assert part in output


def test_predict_agrees_with_the_model(int4_run, image_files):
    results = json.loads(ok("predict", int4_run, *image_files, "--json", "--top", 10))
    assert [r["image"] for r in results] == [str(path) for path in image_files]
    for result in results:
        probabilities = [entry["probability"] for entry in result["top"]]
        assert probabilities == sorted(probabilities, reverse=True)
        assert sum(probabilities) == pytest.approx(1)
    labels = data.load("digits").test_y[: len(image_files)].tolist()
    right = sum(result["top"][0]["class"] == str(label) for result, label in zip(results, labels))
    assert right >= len(labels) / 2
    table = ok("predict", int4_run, image_files[0], "--top", 2)
    assert table.count("%") == 2


def test_inspect_shows_every_layer_and_leaves_the_run_alone(int4_run):
    before = load_file(int4_run / "last.safetensors")
    rows = json.loads(ok("inspect", int4_run, "--json"))
    assert {row["name"] for row in rows} >= {"block1.0", "block4.0", "fc"}
    for row in rows:
        assert row["range_min"] <= row["range_median"] <= row["range_max"]
        assert row["octaves"] >= 0
    conv = next(row for row in rows if row["name"] == "block2.0")
    assert conv["gradient"]["sqnr_db"] > 0
    assert conv["gradient"]["clipped_pct"] == 0
    assert 2 <= conv["gradient"]["groups_used"] <= 5
    timed = json.loads(ok("inspect", int4_run, "--json", "--timed"))
    assert all(row["gain"]["ratio"] > 0 for row in timed)
    assert "gain" not in rows[0]
    assert "gain: time of torch's float layer over that of this one" in ok("inspect", int4_run, "--timed")
    output = ok("inspect", int4_run)
    assert "block2.0" in output
    assert (int4_run / "inspect.png").read_bytes().startswith(b"\x89PNG")
    after = load_file(int4_run / "last.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_doctor_names_backends_and_ops():
    sections = json.loads(ok("doctor", "--json"))
    assert sections["versions"]["torch"] == torch.__version__
    assert sections["backends"]["reference"] == "available"
    assert all(chain.endswith("reference") for chain in sections["ops"].values())
    assert "quantize" in sections["ops"]
    kernels = sections["CPU kernels"]
    assert "library" in kernels or kernels["gemm"].endswith(kernels["ISAs here"].split()[-1])
    assert "torch uses" in ok("doctor")


@pytest.mark.skipif(bool(cpu.available()), reason=cpu.available())
def test_doctor_says_which_kernels_an_older_cpu_lacks():
    with _native.forced_isa("portable"):
        kernels = json.loads(ok("doctor", "--json"))["CPU kernels"]
    assert kernels["gemm"].endswith("_portable")
    assert kernels["conv2d_winograd"].startswith("none here; needs ")


def test_demo_compares_and_replaces_an_earlier_demo(tmp_path):
    earlier = tmp_path / "demo-int4"
    earlier.mkdir()
    (earlier / "config.json").write_text("{}")
    (earlier / "left").touch()
    output = ok("demo", "--epochs", 1, "--out", tmp_path)
    for part in ("test accuracy", "integer share (counted)", "100.00%", f"plot: {tmp_path / 'demo.png'}"):
        assert part in output
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert not (earlier / "left").exists()


# Bad input


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--task", "cifar11"], "did you mean 'cifar10'"),
        (["--model", "resnet-20"], "did you mean 'resnet20'"),
        (["--scheme", "int5"], "int"),
        (["--optimizer", "adamm"], "did you mean 'adamw'"),
        (["--schedule", "cosines"], "did you mean 'cosine'"),
        (["--epochs", "0"], "epochs is 0"),
        (["--lr", "nan"], "lr is nan"),
        (["--batch-size", "-4"], "batch_size is -4"),
        (["--time-limit", "soon"], "'soon' is no duration"),
        (["--checkpoint-every", "0"], "checkpoint_every is 0"),
        (["--device", "cuda:99"], "CUDA GPUs; use --device cpu"),
        (["--device", "gpu"], "unknown device 'gpu'"),
        (["--device", "meta"], "not supported"),
        (["--scheme", "nothing.json"], "there is no such file"),
        (["--augment", "crop"], "augmentation 'crop' does not fit"),
        (["--stem", "cifar"], "stem"),
        (["--resume"], "there is no run folder"),
    ],
)
def test_bad_flags_are_refused_before_a_folder_is_made(tmp_path, flags, message):
    folder = tmp_path / "run"
    assert message in refused("train", "--scheme", "float", *flags, "--out", folder)
    assert not folder.exists()


@pytest.mark.parametrize("bits", [1, 9])
def test_a_scheme_with_impossible_bits_is_refused(tmp_path, bits):
    scheme = json.loads(ok("schemes", "int4", "--json"))
    scheme["layer"]["weight"]["bits"] = bits
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(scheme))
    message = refused("train", "--scheme", path, "--out", tmp_path / "run")
    assert str(path) in message
    assert str(bits) in message


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"version": 999}', '{"version": 1, "layers": {}}'])
def test_a_broken_scheme_file_is_refused(tmp_path, text):
    path = tmp_path / "bad.json"
    path.write_text(text)
    assert str(path) in refused("train", "--scheme", path, "--out", tmp_path / "run")


def test_an_existing_run_folder_is_refused(int4_run):
    assert "add --resume" in refused("train", *TINY, "--out", int4_run)


def test_resume_with_other_settings_is_refused(int4_run):
    assert "lr: 0.5 here" in refused("train", "--resume", "--lr", 0.5, "--out", int4_run)
    assert "scheme" in refused("train", "--resume", "--scheme", "int8", "--out", int4_run)


@pytest.mark.parametrize("task", ["mnist", "cifar10", "imagefolder"])
def test_an_empty_data_folder_is_refused(tmp_path, task):
    (tmp_path / "data").mkdir()
    message = refused("train", "--task", task, "--data-dir", tmp_path / "data", "--out", tmp_path / "run", lines=20)
    assert str(tmp_path / "data") in message
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path, int4_run):
    for name in ("config.json", "dataset.json", "last.safetensors"):
        (tmp_path / name).write_bytes((int4_run / name).read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model": "resnet20"}))
    assert "missing from the file" in refused("eval", tmp_path)
    (tmp_path / "last.safetensors").write_bytes((int4_run / "last.safetensors").read_bytes()[:5000])
    assert "truncated or corrupt (5,000 bytes" in refused("eval", tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert "no valid JSON" in refused("eval", tmp_path)


def test_bad_runs_and_images_are_refused(tmp_path, int4_run, image_files):
    assert "there is no run folder" in refused("eval", tmp_path / "nothing")
    assert "no run folder" in refused("predict", tmp_path, image_files[0])
    assert "unknown checkpoint 'worst'" in refused("eval", int4_run, "--checkpoint", "worst")
    assert "no such image file" in refused("predict", int4_run, image_files[0], tmp_path / "none.png")
    (tmp_path / "broken.png").write_bytes(image_files[0].read_bytes()[:40])
    assert "cannot be read as an image" in refused("predict", int4_run, tmp_path / "broken.png")


def test_inspecting_a_float_run_is_refused(tmp_path):
    ok("train", *TINY, "--epochs", 1, "--scheme", "float", "--out", tmp_path / "run")
    assert "no quantized layer to inspect" in refused("inspect", tmp_path / "run")


def test_a_diverging_run_ends_with_code_1(tmp_path):
    flags = ["--scheme", "float", "--lr", "1e30", "--warmup-epochs", "0", "--out", tmp_path / "run"]
    result = run("train", *TINY, *flags)
    assert result.exit_code == 1
    assert "with a lower --lr than 1e+30" in result.stderr


def test_traceback_on_demand(tmp_path):
    result = run("train", "--task", "cifar11", "--traceback")
    assert isinstance(result.exception, ValueError)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="an allocator of glibc")
def test_training_commands_keep_freed_memory():
    """64 MiB, freed and taken again: its 16,384 pages are new by default, and the old ones afterwards."""
    code = (
        "import resource, sys, torch; from subbyte.cli.allocator import keep_freed_memory\n"
        "if sys.argv[1] == 'keep': assert keep_freed_memory()\n"
        "def take(): torch.empty(1 << 24).fill_(1)\n"
        "def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "take(); take(); take(); before = faults(); take(); print(faults() - before)"
    )
    kept, default = (
        int(subprocess.run([sys.executable, "-c", code, how], capture_output=True, check=True, text=True).stdout)
        for how in ("keep", "default")
    )
    assert kept < 1000 < default
