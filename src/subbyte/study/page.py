"""One page of HTML from a folder of results: its Markdown files, with the plots inside. Valid without a network."""

from __future__ import annotations

import base64
import html
import re
from pathlib import Path

from markdown_it import MarkdownIt

from subbyte.study.study import StudyError
from subbyte.train.checkpoint import write_text

_TYPES = {".png": "image/png", ".svg": "image/svg+xml"}
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
td { font-variant-numeric: tabular-nums; }
th, td { border: 1px solid #ccc; padding: .25rem .6rem; text-align: left; }
th { background: #f2f2f2; }
img { max-width: 100%; }
code { background: #f4f4f4; }
section { border-top: 2px solid #222; margin-top: 3rem; }
@media (prefers-color-scheme: dark) {
  body { background: #181818; color: #ddd; } th { background: #2a2a2a; } code { background: #262626; }
  th, td { border-color: #444; } img { background: white; } a { color: #8ab4f8; }
}
""".strip()


def write_page(results: Path, path: Path) -> None:
    """Writes `path` from every *.md in `results`. StudyError where there is none, or where an image is missing."""
    pages = sorted(results.glob("*.md"))
    if not pages:
        raise StudyError(f"{results} holds no *.md: run a study first")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page(pages))


def page(pages: list[Path]) -> str:
    """The HTML of several Markdown files, with a list of contents."""
    renderer = MarkdownIt("commonmark", {"html": False}).enable("table")
    sections, contents = [], []
    for file in pages:
        text = file.read_text(encoding="utf-8")
        title = next((line[2:] for line in text.splitlines() if line.startswith("# ")), file.stem)
        contents.append(f'<li><a href="#{file.stem}">{html.escape(title)}</a></li>')
        body = _inline_images(renderer.render(text), file.parent)
        sections.append(f'<section id="{file.stem}">\n{body}</section>')
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>subbyte: results</title>\n<style>\n{_STYLE}\n</style>\n</head>\n<body>\n"
        "<h1>subbyte: results</h1>\n"
        "<p>Made from results/ by <code>subbyte reproduce --html docs/results.html</code>.</p>\n"
        f"<ul>\n{chr(10).join(contents)}\n</ul>\n{chr(10).join(sections)}\n</body>\n</html>\n"
    )


def _inline_images(body: str, folder: Path) -> str:
    def inline(match: re.Match[str]) -> str:
        file = folder / match[1]
        if not file.is_file():
            raise StudyError(f"the results name the image {file}, which is not there: make the tables again (--report)")
        encoded = base64.b64encode(file.read_bytes()).decode()
        return f'src="data:{_TYPES[file.suffix]};base64,{encoded}"'

    return re.sub(r'src="([^":]+)"', inline, body)
