"""Analyses as a folder: plain data, figures, and one page that shows both, without a server."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyrosys.analysis.comparison import Analysis, Comparison
from pyrosys.analysis.plots import figures
from pyrosys.errors import InputError

__all__ = ["DATA", "PAGE", "save"]

DATA, PAGE, STRUCTURE = "analysis.json", "index.html", "structure.html"
STYLE = (
    "body { font: 1rem/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem }"
    " table { border-collapse: collapse } th, td { text-align: left; padding: 0.2rem 1rem 0.2rem 0 }"
    " td { font-variant-numeric: tabular-nums } img { max-width: 100% } code { overflow-wrap: anywhere }"
)


def save(found: Analysis | Comparison, folder: str | Path) -> Path:
    """Write an analysis or comparison into a new folder: ``analysis.json``, ``index.html`` and the figures.

    Args:
        found: What `analyse` or `compare` returned.
        folder: Where to; it must not exist or be empty.

    Returns:
        The path of the page.

    Raises:
        InputError: The folder holds something.
    """
    folder = Path(folder)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise InputError(f"Expected no folder at {folder}, or an empty one, found something in it. Choose another.")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / DATA).write_text(f"{json.dumps(_finite(found.to_json()), indent=2)}\n", encoding="utf-8")
    shown = []
    for name, title, figure in figures(found):
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
        shown.append(f'<h2>{html.escape(title)}</h2>\n<img src="{name}.svg" alt="{html.escape(title)}">')
    if isinstance(found, Comparison) and found.difference is not None:
        found.difference.to_html(folder / STRUCTURE)
    (folder / PAGE).write_text("\n".join([*_head(found), *shown, "</body>", "</html>", ""]), encoding="utf-8")
    return folder / PAGE


def _head(found: Analysis | Comparison) -> Iterator[str]:
    sides = [found] if isinstance(found, Analysis) else [found.first, found.second]
    title = html.escape(" and ".join(side.name for side in sides))
    yield "<!doctype html>"
    yield f'<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n<style>{STYLE}</style>\n</head>'
    yield f"<body>\n<h1>{title}</h1>"
    names = ["class", "fingerprint", *sides[0].numbers()]
    yield "<table>"
    yield _row("th", "", *(side.name for side in sides))
    for name in names:
        values = (
            {"class": side.kind, "fingerprint": side.fingerprint, **side.numbers()}.get(name, "") for side in sides
        )
        yield _row("td", name.replace("_", " "), *(f"{v:,.6g}" if isinstance(v, float) else str(v) for v in values))
    yield "</table>"
    if isinstance(found, Comparison):
        yield f"<p>{len(found.shared)} Modules of both have the same structure.</p>"
        if found.difference is not None:
            verdict = "the same function of their parameters" if found.difference.equal else "different functions"
            yield f'<p>They compute {verdict}: <a href="{STRUCTURE}">where they agree and where they part</a>.</p>'
    yield f'<p>All numbers are in <a href="{DATA}">{DATA}</a>.</p>'


def _row(cell: str, *texts: str) -> str:
    return "<tr>" + "".join(f"<{cell}>{html.escape(text)}</{cell}>" for text in texts) + "</tr>"


def _finite(data: Any) -> Any:
    """Plain data that JSON can hold: NaN and infinities become null."""
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    if isinstance(data, float) and not float("-inf") < data < float("inf"):
        return None
    return data
