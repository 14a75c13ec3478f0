"""A comparison of two models, or a plan, as HTML: one page that needs nothing else, or a part of one for a notebook.

Names and constants come from models and files that nobody vouches for. The page is built as a tree of elements, which
escapes them all; what cannot be printed is spelled out; and the page forbids the browser to load anything.
"""

import base64
import functools
import hashlib
import importlib.resources
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from pyrosys.adapters.certificate import versions
from pyrosys.adapters.names import folded
from pyrosys.adapters.report import KINDS, facts

if TYPE_CHECKING:
    from pyrosys.adapters.diff import Change, Difference, Model, Row

__all__ = ["fragment", "page"]

Node = ElementTree.Element | str
_OPEN = 60  # tensors up to which a tree is shown open
_MANY = 1000  # tensors from which rows that are out of sight are left to be drawn later
_LONGEST = 40  # lines of a table of tensors
_IDLE = {"kept", "unreached", "unused"}
_NOTHING = "—"


def page(found: "Difference") -> str:
    """The whole page."""
    script = _resource("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    head = _tag(
        "head",
        _tag("meta", charset="utf-8"),
        _tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        _tag("meta", name="color-scheme", content="light dark"),
        _tag("meta", **{"http-equiv": "Content-Security-Policy", "content": policy}),
        _tag("title", f"{found.source.name} and {found.target.name}"),
        _tag("style", f"body {{ margin: 0; }}\n{_resource('page.css')}"),
    )
    html = _tag("html", head, _tag("body", _body(found, interactive=True), _tag("script", script)), lang="en")
    return f"<!doctype html>\n{_text(html)}\n"


def fragment(found: "Difference") -> str:
    """The same for a notebook: no script, and styles that touch nothing else."""
    return _text(_tag("style", _resource("page.css"))) + _text(_body(found, interactive=False))


@functools.cache
def _resource(name: str) -> str:
    return importlib.resources.files("pyrosys.adapters").joinpath(name).read_text(encoding="utf-8")


# Elements


def _tag(name: str, /, *children: Node, **attributes: str | None) -> ElementTree.Element:
    """An element; in names of attributes, `_` is `-`, and at the end nothing; those that are None are left out."""
    element = ElementTree.Element(
        name, {k.rstrip("_").replace("_", "-"): _plain(v) for k, v in attributes.items() if v is not None}
    )
    raw = name in ("style", "script")
    for child in children:
        if isinstance(child, ElementTree.Element):
            element.append(child)
        elif len(element):
            element[-1].tail = (element[-1].tail or "") + _plain(child)
        else:
            element.text = (element.text or "") + (child if raw else _plain(child))
    return element


def _plain(text: str) -> str:
    """A text with everything that does not print spelled out, such as marks that turn the direction of writing."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _text(element: ElementTree.Element) -> str:
    return ElementTree.tostring(element, encoding="unicode", method="html")


def _section(title: str, *children: Node) -> ElementTree.Element:
    return _tag("section", _tag("h2", title), *children)


def _table(header: Sequence[str], rows: Iterable[Sequence[Node]], mark: bool = False) -> ElementTree.Element:
    """A table with a title for each row; with `mark`, cells of a row that differ from each other stand out."""
    body = _tag("tbody")
    for title, *cells in rows:
        texts = ["".join(c.itertext()) if isinstance(c, ElementTree.Element) else c for c in cells]
        kind = "differs" if mark and len(set(texts)) > 1 else None
        body.append(_tag("tr", _tag("th", title, scope="row"), *(_tag("td", c, class_=kind) for c in cells)))
    head = [_tag("thead", _tag("tr", *(_tag("th", h, scope="col") for h in header)))] if any(header) else []
    return _tag("div", _tag("table", *head, body), class_="scroll")


def _code(text: str) -> ElementTree.Element:
    return _tag("code", text)


# The page


def _body(found: "Difference", interactive: bool) -> ElementTree.Element:
    parts = [_head(found), *_parting(found), *_changes(found.changes), *_lone(found)]
    parts += [_tensors(found, interactive), *_plan(found), _foot()]
    many = " many" if len(found.source.rows) + len(found.target.rows) > _MANY else ""
    return _tag("main" if interactive else "div", *parts, class_=f"pyrosys{many}")


def _head(found: "Difference") -> ElementTree.Element:
    source, target = found.source, found.target
    verdict = ("same", "✓ The same function") if found.equal else ("other", "≠ Not the same function")
    numbers = {
        "Tensors": f"{len(source.rows):,} → {len(target.rows):,}",
        "Numbers in all": f"{source.parameters:,} → {target.parameters:,}",
    }
    plan = found.plan
    if plan is None:
        lone = [sum(row.lone for row in model.rows.values()) for model in (source, target)]
        numbers["Without a counterpart"] = f"{lone[0]:,} and {lone[1]:,}"
    else:
        verdict = verdict if plan.checked != "structure" else ("same", "A plan, not verified")
        numbers["Verified with"] = plan.checked
        if plan.certificate is not None and plan.certificate.comparisons:
            numbers["Largest difference"] = f"{plan.certificate.max_difference:.1e}"
    facts_ = _tag("dl", *(_tag("div", _tag("dt", name), _tag("dd", value)) for name, value in numbers.items()))
    reason = [_tag("p", found.reason)] if found.reason else []
    title = _tag("h1", source.name, _tag("span", "→"), target.name)
    return _tag("header", title, _tag("p", verdict[1], class_=f"verdict {verdict[0]}"), *reason, facts_)


def _parting(found: "Difference") -> list[ElementTree.Element]:
    from pyrosys.adapters.diff import MOMENT_ROWS, moment_cells

    if found.parting is None or not any(found.parting.moments):
        return []
    left, right = (moment_cells(m) for m in found.parting.moments)
    rows = [
        (name, _code(a or _NOTHING), _code(b or _NOTHING)) for name, a, b in zip(MOMENT_ROWS, left, right, strict=True)
    ]
    return [
        _section(
            "First values that differ",
            _tag("p", "Both models hold the same parameters and see the same inputs here.", class_="quiet"),
            _table(("", "Source", "Target"), rows, mark=all(found.parting.moments)),
        )
    ]


def _changes(changes: Sequence["Change"]) -> list[ElementTree.Element]:
    if not changes:
        return []
    rows = []
    for change in changes:
        places = [_patterns(place[i] or "the top level" for place in change.places) for i in (0, 1)]
        where = _tag("span", _code(places[0]), *(() if places[0] == places[1] else (" · ", _code(places[1]))))
        rows.append((where, _code(", ".join(change.source) or _NOTHING), _code(", ".join(change.target) or _NOTHING)))
    return [
        _section(
            "Operations and constants that differ",
            _tag("p", "On the way to places that correspond, only one side does this.", class_="quiet"),
            _table(("On the way to", "Source", "Target"), rows),
        )
    ]


def _lone(found: "Difference") -> list[ElementTree.Element]:
    rows = []
    for title, model in (("Source", found.source), ("Target", found.target)):
        names = folded(row.name for row in model.rows.values() if row.lone)
        rows += [(title, _code(pattern), str(count)) for pattern, count in names]
    more = len(rows) - _LONGEST
    rest = (
        [_tag("p", f"And {more:,} more; choose “unmatched” below to see them all.", class_="quiet")] if more > 0 else []
    )
    table = _table(("", "Tensors", "Number"), rows[:_LONGEST])
    return [_section("Without a counterpart", table, *rest)] if rows else []


def _patterns(names: Iterable[str]) -> str:
    return ", ".join(pattern for pattern, _ in folded(names))


def _tensors(found: "Difference", interactive: bool) -> ElementTree.Element:
    counts = Counter(kind for row in found.target.rows.values() for kind in row.kinds)
    counts.update(k for row in found.source.rows.values() for k in row.kinds if k in ("unmatched", "unused"))
    items = []
    for kind, meaning in KINDS.items():
        if counts[kind]:
            label = (kind, _tag("b", f"{counts[kind]:,}"))
            chip = (
                _tag(
                    "button", *label, class_="kind", type="button", title=meaning, aria_pressed="false", data_kind=kind
                )
                if interactive
                else _tag("span", *label, class_="kind", title=meaning)
            )
            items.append(_tag("li", chip))
    tools = _tag(
        "div",
        _tag("input", type="search", placeholder="Search names, shapes, steps ( / )", aria_label="Search tensors"),
        _tag("button", "Open all", type="button", value="open"),
        _tag("button", "Close all", type="button", value="close"),
        _tag("output", class_="quiet", aria_live="polite"),
        class_="tools",
        hidden="",
    )
    ids = {side: {name: f"{side}{i}" for i, name in enumerate(model.rows)} for side, model in _sides(found)}
    moments = found.parting.moments if found.parting is not None else (None, None)
    here = [None if moment is None else moment.scope for moment in moments]
    panes = [
        _pane("Source", found.source, "→", ids["s"], ids["t"], here[0]),
        _pane("Target", found.target, "←", ids["t"], ids["s"], here[1]),
    ]
    chips = _tag("ul", *items, class_="kinds")
    return _section("Tensors", chips, *([tools] if interactive else []), _tag("div", *panes, class_="panes"))


def _sides(found: "Difference") -> tuple[tuple[str, "Model"], tuple[str, "Model"]]:
    return ("s", found.source), ("t", found.target)


def _pane(
    title: str, model: "Model", arrow: str, own: dict[str, str], other: dict[str, str], here: str | None
) -> ElementTree.Element:
    """The tree of one model; `here` is the module in which the first value differs."""
    about = f"{model.types.get('', '')} · {len(model.rows):,} tensors".removeprefix(" · ")
    tree = _tag("div", class_="tree")
    folders: dict[str, ElementTree.Element] = {"": tree}
    below = _totals(model)
    few = len(model.rows) <= _OPEN
    for row in model.rows.values():
        home = row.name.rpartition(".")[0]
        _folder(home, folders, model, below, few).append(_row(row, arrow, own, other))
    _point(here, folders)
    return _tag(
        "div",
        _tag("header", _tag("h3", f"{title}: {model.name}"), _tag("p", about, class_="quiet")),
        tree,
        class_="pane",
        role="group",
        aria_label=title,
    )


def _point(here: str | None, folders: dict[str, ElementTree.Element]) -> None:
    """Mark the module in which the first value differs, or the innermost around it that has tensors, and open the way."""
    while here and here not in folders:
        here = here.rpartition(".")[0]
    if not here:
        return
    folders[here][0].append(_tag("span", "first difference", class_="here"))
    while here:
        folders[here].set("open", "")
        here = here.rpartition(".")[0]


def _totals(model: "Model") -> dict[str, Counter[str]]:
    """For each module, its tensors: how many, and how many of a kind that asks for attention."""
    totals: dict[str, Counter[str]] = {}
    for row in model.rows.values():
        home = row.name.rpartition(".")[0]
        while home:
            counter = totals.setdefault(home, Counter())
            counter["all"] += 1
            counter.update(k for k in row.kinds if k in ("unmatched", "resized"))
            home = home.rpartition(".")[0]
    return totals


def _folder(
    name: str, folders: dict[str, ElementTree.Element], model: "Model", totals: dict[str, Counter[str]], few: bool
) -> ElementTree.Element:
    """The element of a module, made when it is first asked for."""
    if name not in folders:
        parent, _, own = name.rpartition(".")
        count = totals[name]
        summary = _tag("summary", _code(own), _tag("span", model.types.get(name, ""), class_="quiet"))
        summary.append(_tag("span", f"{count['all']:,}", class_="quiet"))
        for kind, look in (("unmatched", "bad"), ("resized", "warn")):
            if count[kind]:
                summary.append(_tag("span", f"{count[kind]:,} {kind}", class_=look))
        attention = count["unmatched"] + count["resized"]
        shown = few or 0 < attention < _OPEN
        folder = _tag("details", summary, open="" if shown else None)
        _folder(parent, folders, model, totals, few).append(folder)
        folders[name] = folder
    return folders[name]


def _row(row: "Row", arrow: str, own: dict[str, str], other: dict[str, str]) -> ElementTree.Element:
    kinds = [k for k in row.kinds if k != "copied"]
    look = next((k for k in ("unmatched", "resized") if k in kinds), "idle" if _IDLE & set(kinds) else "")
    source: list[Node] = []
    if row.text:
        source = [f"{arrow} ", *_linked(row, other)]
    tags = [_tag("em", ", ".join(KINDS[k] if k in ("unmatched", *_IDLE) else k for k in kinds))] if kinds else []
    return _tag(
        "div",
        _code(row.name.rpartition(".")[2]),
        _tag("span", " \N{MULTIPLICATION SIGN} ".join(map(str, row.shape)) or "scalar", class_="shape"),
        *([_tag("div", *source, *tags, class_="from")] if source or tags else []),
        class_=f"row {look}".rstrip(),
        id=own[row.name],
        tabindex="-1",
        data_kinds=" ".join(row.kinds),
        title=row.name,
    )


def _linked(row: "Row", other: dict[str, str]) -> list[Node]:
    """A row's text in which the names of the other model's tensors are links."""
    rest, parts = row.text, list[Node]()
    for name in row.others:
        before, found, after = rest.partition(name)
        if found and name in other:
            parts += [before, _tag("a", name, href=f"#{other[name]}")]
            rest = after
    return [*parts, rest]


def _plan(found: "Difference") -> list[ElementTree.Element]:
    plan = found.plan
    if plan is None:
        return []
    parts = []
    if plan.certificate is not None and plan.certificate.comparisons:
        rows = [
            (f"{c.parameters} parameters, {c.precision}", f"{c.difference:.1e}", f"{c.tolerance:.1e}", f"{c.scale:.1e}")
            for c in plan.certificate.comparisons
        ]
        parts.append(_section("Checks", _table(("Run with", "Largest difference", "Allowed", "Largest output"), rows)))
    notes = [(title, _code(", ".join(_patterns([n]) for n in names))) for title, names in facts(plan)]
    if notes:
        parts.append(_section("What to know", _table(("", ""), notes)))
    return parts


def _foot() -> ElementTree.Element:
    found = versions()
    return _tag("footer", f"PyroSys {found['pyrosys']}, torch {found['torch']}")
