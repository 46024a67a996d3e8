"""Compile csrc/*.cc into src/subbyte/_lib/libsubbyte.so: hatchling's build hook, and a script for development.

    python hatch_build.py              compile what changed, in place
    python hatch_build.py --force      compile everything
    python hatch_build.py --out DIR    into DIR, objects included: for another machine, or with flags of its own

The compiler is $CXX, or the first of c++, g++, clang++. Without one, or when it fails, the install goes on and the
package works on its reference; `subbyte doctor` says so. There is no -march: a kernel asks for its ISA by itself and
is chosen at run time, so one library serves every machine. Float contraction is off: results are equal everywhere.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # run as a script
    BuildHookInterface = object  # type: ignore[assignment, misc]

ROOT = Path(__file__).resolve().parent
LIBRARY = Path("src/subbyte/_lib/libsubbyte.so")
OBJECTS = Path("build/obj")
FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-fno-math-errno", "-fwrapv"]
WARNINGS = ["-Wall", "-Wextra", "-Wno-psabi", "-Wno-uninitialized", "-Wno-maybe-uninitialized"]  # gcc's own intrinsics
WARNINGS += ["-Wno-unknown-warning-option"]  # clang knows not all of these


class CompileError(RuntimeError):
    """There is no compiler, or it did not succeed; the message is its output."""


def compiler() -> list[str]:
    """The C++ compiler as a command, or CompileError."""
    if os.environ.get("CXX"):
        return shlex.split(os.environ["CXX"])
    for name in ("c++", "g++", "clang++"):
        if path := shutil.which(name):
            return [path]
    raise CompileError("no C++ compiler: set CXX, or install g++ or clang++")


def build(root: Path = ROOT, force: bool = False, out: Path | None = None) -> bool:
    """Bring the library up to date; True when something was compiled. CompileError if that fails.

    out: a folder for the library and its objects instead of their usual places; the package does not load it.
    """
    library, objects = (root / LIBRARY, root / OBJECTS) if out is None else (out / LIBRARY.name, out / "obj")
    sources = sorted((root / "csrc").glob("*.cc"))
    if not sources:
        raise CompileError(f"no sources in {root / 'csrc'}")
    shared = [root / "hatch_build.py", *(p for p in (root / "csrc").iterdir() if p.suffix in (".h", ".inc"))]
    newest_shared = max(p.stat().st_mtime for p in shared)
    if not force and library.exists() and library.stat().st_mtime > max(newest_shared, *(_mtime(p) for p in sources)):
        return False
    command = [*compiler(), *FLAGS, *shlex.split(os.environ.get("CXXFLAGS", ""))]
    objects.mkdir(parents=True, exist_ok=True)

    def compile_one(source: Path) -> str:
        target = objects / (source.stem + ".o")
        if force or _mtime(target) <= max(newest_shared, _mtime(source)):
            aside = target.with_suffix(f".{os.getpid()}.o")
            _run([*command, *WARNINGS, "-c", str(source), "-o", str(aside)])
            os.replace(aside, target)
        return str(target)

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        compiled = list(pool.map(compile_one, sources))
    library.parent.mkdir(parents=True, exist_ok=True)
    aside = library.with_suffix(f".{os.getpid()}.so")  # written aside: a process that has the old one keeps it intact
    _run([*command, "-shared", *compiled, "-o", str(aside)])
    os.replace(aside, library)
    return True


def platform_tag() -> str:
    """The wheel tag of a build that holds the library: it depends on the platform, on no Python version."""
    return "py3-none-" + sysconfig.get_platform().replace("-", "_").replace(".", "_")


def _mtime(path: Path) -> float:
    return path.stat().st_mtime if path.exists() else 0.0


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise CompileError(f"{command[0]}: {error}") from error
    if done.stderr.strip():
        print(done.stderr, file=sys.stderr)
    if done.returncode:
        raise CompileError(f"failed: {shlex.join(command)}\n{done.stderr}")


class NativeBuildHook(BuildHookInterface):
    """Adds the compiled library to a wheel (or to the source tree, for an editable install)."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict) -> None:
        if self.target_name != "wheel":
            return
        root = Path(self.root)
        try:
            build(root)
        except CompileError as error:
            (root / LIBRARY).unlink(missing_ok=True)  # a stale one must not get into a wheel that says "any"
            self.app.display_warning(f"subbyte: C++ kernels not built, the slow reference will run instead. {error}")
            return
        build_data["pure_python"] = False
        build_data["tag"] = platform_tag()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Compile csrc/*.cc.")
    parser.add_argument("--force", action="store_true", help="compile everything")
    parser.add_argument("--out", type=Path, help="folder for the library and its objects")
    options = parser.parse_args()
    try:
        changed = build(force=options.force, out=options.out)
        print(f"{options.out or LIBRARY.parent}/{LIBRARY.name}: {'compiled' if changed else 'up to date'}")
    except CompileError as error:
        sys.exit(str(error))
