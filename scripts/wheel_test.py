"""The wheel as a user gets it: built from the sdist, installed into a fresh environment WITHOUT a compiler, and run.

    python scripts/wheel_test.py          (make wheel-test; about three minutes)

1. sdist -> wheel with a compiler; installed; a short int4 training runs on the best ISA of this machine, then with
   AVX-512 forbidden (SUBBYTE_ISA=avx2), then on plain C++. The report names the kernels that ran.
2. sdist -> wheel without a compiler: a warning, a wheel for any platform, and a training on the reference.
All four trainings have to end in equal checkpoints. torch and the other dependencies are those of this environment.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
from pathlib import Path

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parent.parent
COMPILERS = ("c++", "g++", "clang++", "gcc", "clang", "cc")
TRAIN = ["train", "--epochs", "1", "--batch-size", "64", "--threads", "1", "--seed", "0"]


def run(command: list[str], environment: dict[str, str], cwd: Path) -> str:
    """stdout and stderr of a command that has to succeed."""
    done = subprocess.run(
        command, env=environment, cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode:
        sys.exit(f"failed ({done.returncode}): {' '.join(command)}\n{done.stdout}")
    return done.stdout


def expect(condition: bool, what: str) -> None:
    if not condition:
        sys.exit(f"FAILED: {what}")
    print(f"  ok: {what}", flush=True)


def bare_environment(*folders: Path) -> dict[str, str]:
    """PATH with these folders alone; no CXX, no PYTHONPATH, nothing that chooses a backend."""
    dropped = ("CXX", "PYTHONPATH", "SUBBYTE_ISA", "SUBBYTE_BACKEND", "VIRTUAL_ENV")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    environment = {**kept, "PATH": os.pathsep.join(map(str, folders))}
    found = [name for name in COMPILERS if shutil.which(name, path=environment["PATH"])]
    expect(not found, f"no compiler on PATH {environment['PATH'] or '(empty)'}")
    return environment


def wheel_from(source: Path, out: Path, environment: dict[str, str]) -> tuple[Path, str]:
    """The wheel of an unpacked sdist, and what its build said."""
    said = run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)], environment, source)
    (wheel,) = out.glob("*.whl")
    return wheel, said


def installed(wheel: Path, folder: Path) -> Path:
    """A fresh environment with the wheel, which finds its dependencies here -> its bin folder."""
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", str(wheel)]
    run(command, dict(os.environ), folder)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return folder / "bin"


def trained(binaries: Path, out: Path, environment: dict[str, str]) -> tuple[set[str], dict[str, torch.Tensor]]:
    """A short training -> (the kernels that ran, the tensors of its checkpoint)."""
    run([str(binaries / "subbyte"), *TRAIN, "--out", str(out)], environment, out.parent)
    report = json.loads((out / "report.json").read_text())
    return {kernel for layer in report["layers"] for kernel in layer["kernels"]}, load_file(out / "last.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[key].numpy().tobytes() == b[key].numpy().tobytes() for key in a)


def isas_of(binaries: Path, environment: dict[str, str]) -> list[str]:
    """The ISAs of this machine, plainest first, as the installed package sees them; checks where it comes from."""
    code = "import subbyte; from subbyte.backends import _native; print(subbyte.__file__, *_native.isas())"
    where, *isas = run([str(binaries / "python"), "-c", code], environment, binaries).split()
    expect(Path(where).is_relative_to(binaries.parent), f"the package is the installed one: {where}")
    return isas


def with_kernels(source: Path, work: Path) -> dict[str, torch.Tensor]:
    """Part 1 -> the checkpoint that all trainings have to end in."""
    wheel, _ = wheel_from(source, work / "dist", dict(os.environ))
    expect(
        wheel.name.endswith(".whl") and "-py3-none-any" not in wheel.name, f"the wheel names its platform: {wheel.name}"
    )
    binaries = installed(wheel, work / "venv")
    environment = bare_environment(binaries)
    isas = isas_of(binaries, environment)
    doctor = run([str(binaries / "subbyte"), "doctor"], environment, work)
    expect(
        "none found; set CXX" in doctor and "available" in doctor, "doctor: no compiler, and the cpu backend is there"
    )
    checkpoints = []
    for isa in [isas[-1], *(name for name in ("avx2", "portable") if name in isas[:-1])]:
        kernels, checkpoint = trained(binaries, work / f"run-{isa}", {**environment, "SUBBYTE_ISA": isa})
        here = isas[: isas.index(isa) + 1]
        beyond = [k for k in kernels if k.rpartition("_")[2] not in here]
        expect(any(k.startswith("gemm_") and k.endswith(isa) for k in kernels), f"products ran on {isa}")
        expect(not beyond, f"nothing ran beyond {isa}: {len(kernels)} kernels {beyond or ''}")
        checkpoints.append(checkpoint)
        expect(same(checkpoint, checkpoints[0]), f"the checkpoint of {isa} is that of {isas[-1]}, bit for bit")
    return checkpoints[0]


def without_compiler(source: Path, work: Path, expected: dict[str, torch.Tensor]) -> None:
    """Part 2."""
    work.mkdir()
    wheel, said = wheel_from(source, work / "dist", bare_environment())
    expect("C++ kernels not built, the slow reference will run instead" in said, "the build warns")
    expect("-py3-none-any" in wheel.name, f"the wheel is for any platform: {wheel.name}")
    binaries = installed(wheel, work / "venv")
    environment = bare_environment(binaries)
    expect(isas_of(binaries, environment) == [], "no kernels in it")
    doctor = " ".join(run([str(binaries / "subbyte"), "doctor"], environment, work).split())
    expect("libsubbyte.so is not built: install with a C++ compiler" in doctor, "doctor says why and what to do")
    kernels, checkpoint = trained(binaries, work / "run", environment)
    expect(kernels == {"reference"}, "everything ran on the reference")
    expect(same(checkpoint, expected), "its checkpoint is that of the kernels, bit for bit")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        print("sdist, and the wheel from it", flush=True)
        run([sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(work)], dict(os.environ), ROOT)
        (sdist,) = work.glob("*.tar.gz")
        for name in ("a", "b"):
            with tarfile.open(sdist) as archive:
                archive.extractall(work / name, filter="data")
        (first,), (second,) = (list((work / name).iterdir()) for name in ("a", "b"))
        expected = with_kernels(first, work)
        print("the same without a compiler at any time", flush=True)
        without_compiler(second, work / "plain", expected)
    print("the wheel works without a compiler, with each ISA, and without its kernels")


if __name__ == "__main__":
    main()
