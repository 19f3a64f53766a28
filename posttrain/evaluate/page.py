"""The shell of every page: one file, whose own policy forbids scripts and content from outside."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from posttrain import __version__
from posttrain.evaluate.charts import escape
from posttrain.files import replace_text

RECIPE_LIMIT = 100_000  # characters of a recipe shown

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
{css}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


def write_page(path: Path, title: str, sections: Sequence[str]) -> Path:
    """Writes a page of sections, which are HTML; empty ones are left out. -> path"""
    css = files("posttrain.evaluate").joinpath("report.css").read_text("utf-8")
    foot = f"<footer>Written by posttrain {escape(__version__)} from the files beside this page.</footer>"
    body = "\n".join(section for section in (*sections, foot) if section)
    replace_text(path, PAGE.format(title=f"{escape(title)} · posttrain", css=css, body=body))
    return path


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Plain cells as a table that scrolls sideways where it must."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in heads)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
