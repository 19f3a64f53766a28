"""The shell of every page: one file, whose policy forbids outside content and every script but its own."""

from __future__ import annotations

import base64
import hashlib
import json
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
  content="default-src 'none'; style-src 'unsafe-inline'; img-src data:{policy}">
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
</main>{script}
</body>
</html>
"""


def write_page(
    path: Path, title: str, sections: Sequence[str], *, css: str = "", script: str = "", data: object = None
) -> Path:
    """Writes a page of sections, which are HTML; empty ones are left out. -> path

    css: rules after those of report.css. script: the only JavaScript that the page's policy lets run, by its
    hash; it finds `data` as JSON in the element "data".
    """
    css = files("posttrain.evaluate").joinpath("report.css").read_text("utf-8") + css
    foot = f"<footer>Written by posttrain {escape(__version__)} from the files beside this page.</footer>"
    body = "\n".join(section for section in (*sections, foot) if section)
    policy = ""
    if script:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy = f"; script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
        held = f'<script type="application/json" id="data">{inert_json(data)}</script>'
        script = f"\n{held}\n<script>{script}</script>"
    page = PAGE.format(title=f"{escape(title)} · posttrain", css=css, body=body, policy=policy, script=script)
    replace_text(path, page)
    return path


def inert_json(data: object) -> str:
    """JSON that no text in it can end: it stands between script tags. Lone surrogates become U+FFFD."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    # "<" alone ends or opens anything there; the two line separators end a line of JavaScript.
    for character in "<\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Plain cells as a table that scrolls sideways where it must."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in heads)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
