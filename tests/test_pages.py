"""What the README and the documentation claim: their Python runs, and the commands that they name exist."""

import re
import shutil
from pathlib import Path

import pytest

import pyrosys
from pyrosys.catalogue import build, published

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / ".github" / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name)
def test_python_on_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a page run in order, as one program, with random weights in place of those from the network."""
    for name in ("1ubq.cif", "proteins.fasta"):
        shutil.copy(ROOT / "tests" / "data" / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYROSYS_CACHE", str(tmp_path / "cache"))
    load = pyrosys.load
    monkeypatch.setattr(
        pyrosys,
        "load",
        lambda name, **how: load(name, **how) if how or published(name) else build(name).eval(),
    )
    names: dict[str, object] = {"__name__": page.stem}
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), names)


def test_make_targets_on_the_pages_exist() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    commands = {page: set(re.findall(r"\bmake (\w+)$", "\n".join(blocks(page, "sh")), re.MULTILINE)) for page in PAGES}
    assert {"demo", "test"} <= commands[README]
    assert set().union(*commands.values()) <= targets
