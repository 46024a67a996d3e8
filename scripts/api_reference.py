"""docs/api/: the API reference, a page a module, from the docstrings (griffe reads the sources, nothing is imported).

    python scripts/api_reference.py            write the pages
    python scripts/api_reference.py --check    say which pages are out of date, or which public name has no docstring

A name is public when its module's __all__ has it; in a module without one, when it is defined there and has no
underscore. Each is described once, on the page of the module that defines it; other pages link there.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import griffe

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "api"
PAGES = ("subbyte", "scheme", "quantizers", "nn", "products", "ops", "qtensor", "numerics")
COMMAND = "python scripts/api_reference.py"


def load() -> griffe.Module:
    """The package as griffe sees it."""
    loader = griffe.GriffeLoader(search_paths=[ROOT / "src"])
    package = loader.load("subbyte")
    loader.resolve_aliases(external=False)
    assert isinstance(package, griffe.Module)
    return package


def module_of(package: griffe.Module, page: str) -> griffe.Module:
    return package if page == "subbyte" else package[page]


def public(module: griffe.Module) -> dict[str, griffe.Object]:
    """name -> what it stands for: functions, classes and documented constants."""
    names = [str(name) for name in module.exports] if module.exports else sorted(module.members)
    found = {}
    for name in sorted(names, key=str.lower):
        member = module.members[name]
        if not module.exports and (member.is_alias or name.startswith("_")):
            continue
        target = member.final_target if isinstance(member, griffe.Alias) else member
        source = module.imports.get(name, "")
        if target.is_module and source not in ("", target.path):  # an import hides the module of the same name
            target = module[source.removeprefix(module.path + ".")]
        if not target.is_module and not (target.is_attribute and not module.exports and not target.has_docstring):
            found[name] = target
    return found


def home(target: griffe.Object) -> str:
    """The page that describes an object: the one whose module is nearest above where it is defined."""
    path = target.path.split(".")
    return path[1] if len(path) > 2 and path[1] in PAGES else "subbyte"


def methods(cls: griffe.Object) -> dict[str, griffe.Object]:
    """Public functions and properties that a class defines itself."""
    own = {name: m for name, m in cls.members.items() if not name.startswith("_") and not m.is_alias}
    return {name: m for name, m in own.items() if m.is_function or "property" in m.labels}  # type: ignore[misc]


def undocumented(package: griffe.Module) -> list[str]:
    """Public names without a docstring, methods included."""
    missing = []
    for page in PAGES:
        for target in public(module_of(package, page)).values():
            for item in (target, *(methods(target).values() if target.is_class else ())):
                if not item.has_docstring and not overrides(item):
                    missing.append(item.path)
    return sorted(set(missing))


def overrides(item: griffe.Object) -> bool:
    """Does a class of this package, further up, document the method that this one replaces?"""
    parent = item.parent
    if not isinstance(parent, griffe.Class):
        return False
    above = (base.members.get(item.name) for base in parent.mro())
    return item.name in ("forward", "extra_repr") or any(m is not None and m.has_docstring for m in above)


def text(docstring: str) -> Iterator[str]:
    """A docstring as Markdown: examples and aligned tables become blocks, what would look like markup is escaped."""
    for paragraph in re.split(r"\n\s*\n", docstring.strip("\n")):
        lines = paragraph.splitlines()
        if lines[0].lstrip().startswith(">>>"):
            yield "```python\n" + paragraph + "\n```"
        elif any(re.search(r"\S {2,}\S", line) or line.startswith("  ") for line in lines):
            yield "```text\n" + paragraph + "\n```"
        else:
            parts = re.split(r"(`[^`]*`)", " ".join(line.strip() for line in lines))
            yield "".join(p if p.startswith("`") else re.sub(r"([*_<>|\[\]])", r"\\\1", p) for p in parts)


def signature(name: str, item: griffe.Object) -> str:
    """As it is called."""
    if "property" in item.labels:
        return f"{name}: {item.annotation}"  # type: ignore[attr-defined]
    if item.is_attribute:
        return f"{name} = {item.value}" if len(str(item.value)) < 80 else name  # type: ignore[attr-defined]
    if item.is_class:
        bases = [str(base) for base in item.bases]  # type: ignore[attr-defined]
        made = f"\n{item.signature(name=name, return_type=False)}" if len(item.parameters) > 1 else ""  # type: ignore
        return f"class {name}({', '.join(bases)})" + made if bases else f"class {name}" + made
    return str(item.signature(name=name, return_type=True))  # type: ignore[attr-defined]


def section(name: str, item: griffe.Object, level: int, owner: str = "") -> Iterator[str]:
    yield f"{'#' * level} {owner}{name}".replace("_", r"\_")
    yield f"```python\n{signature(name, item)}\n```"
    if item.docstring:
        yield from text(item.docstring.value)
    if item.is_class:
        for method, found in sorted(methods(item).items()):
            if found.has_docstring:
                yield from section(method, found, level + 1, f"{name}.")


def page_text(package: griffe.Module, page: str) -> str:
    module = module_of(package, page)
    title = "subbyte" if page == "subbyte" else f"subbyte.{page}"
    blocks = [f"# {title}", f"Made from the docstrings by `{COMMAND}`. All pages: [API reference](README.md)."]
    if module.docstring and page != "subbyte":
        blocks += text(module.docstring.value)
    names = public(module)
    elsewhere = {name: home(target) for name, target in names.items() if home(target) != page}
    if elsewhere:
        rows = "\n".join(f"| `{name}` | [{there}]({there}.md) |" for name, there in elsewhere.items())
        blocks.append("Also here, described on other pages:\n\n| name | page |\n|---|---|\n" + rows)
    for name, target in names.items():
        if name not in elsewhere:
            blocks += section(name, target, 2)
    return "\n\n".join(blocks) + "\n"


def index(package: griffe.Module) -> str:
    rows = []
    for page in PAGES:
        docstring = module_of(package, page).docstring
        first = next(text(docstring.value)).split(". ")[0].rstrip(".") if docstring else ""
        shown = "subbyte" if page == "subbyte" else f"subbyte.{page}"
        rows.append(f"| [{shown}]({page}.md) | {first} |")
    head = f"# API reference\n\nMade from the docstrings by `{COMMAND}`; a test holds the pages to the sources.\n\n"
    return head + "| module | what it is |\n|---|---|\n" + "\n".join(rows) + "\n"


def pages() -> dict[str, str]:
    """file name -> contents."""
    package = load()
    return {"README.md": index(package), **{f"{page}.md": page_text(package, page) for page in PAGES}}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 for what is out of date")
    check = parser.parse_args().check
    made = pages()
    there = {path.name: path.read_text() for path in FOLDER.glob("*.md")} if FOLDER.is_dir() else {}
    stale = sorted(name for name in {*made, *there} if made.get(name) != there.get(name))
    missing = undocumented(load())
    for name in missing:
        print(f"no docstring: {name}")
    if check:
        for name in stale:
            print(f"out of date: docs/api/{name}; run {COMMAND}")
        return int(bool(stale or missing))
    FOLDER.mkdir(exist_ok=True)
    for name in stale:
        (FOLDER / name).unlink(missing_ok=True)
        if name in made:
            (FOLDER / name).write_text(made[name])
    print(f"docs/api: {len(made)} pages, {len(stale)} changed")
    return int(bool(missing))


if __name__ == "__main__":
    sys.exit(main())
