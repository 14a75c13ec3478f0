"""The package as a whole: what importing it costs, and what it exports."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import pyrosys

ROOT = Path(__file__).parents[1]
EXTRAS = {"mlflow", "peft", "ray"}  # not what Lightning imports where it is installed, such as torchmetrics
HEAVY = {"biotite", "huggingface_hub", "jaxtyping", "networkx", "numpy", "pytorch_lightning", "safetensors", "torch"}


def in_fresh_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=True)


def test_import_loads_nothing_heavy() -> None:
    rows = in_fresh_python("-X", "importtime", "-c", "import pyrosys").stderr.splitlines()[1:]
    microseconds = {name.strip(): int(total) for _, total, name in (row.split("|") for row in rows)}
    assert not HEAVY & {name.partition(".")[0] for name in microseconds}
    assert microseconds["pyrosys"] < 100_000


def test_import_needs_the_standard_library_only() -> None:
    script = "import sys; before = set(sys.modules); import pyrosys; print(*(set(sys.modules) - before))"
    loaded = {name.partition(".")[0] for name in in_fresh_python("-c", script).stdout.split()}
    assert loaded <= sys.stdlib_module_names | {"pyrosys"}


def test_errors_load_nothing_heavy() -> None:
    script = "import sys, pyrosys; pyrosys.PyrosysError; print(*sys.modules)"
    assert not HEAVY & set(in_fresh_python("-c", script).stdout.split())


def test_using_a_model_loads_nothing_of_training_and_analysis() -> None:
    script = """
import sys, pyrosys
from pyrosys.zoo.esm import ESM, ESMConfig
model = ESM(ESMConfig(layers=1, width=16, heads=2)).eval()
model.embed(["MKTAYI"])
pyrosys.fingerprint(model)
print(*sys.modules)
"""
    loaded = set(in_fresh_python("-c", script).stdout.split())
    assert not EXTRAS & loaded
    assert not {f"pyrosys.{name}" for name in ("analysis", "losses", "metrics", "training")} & loaded


@pytest.mark.parametrize(
    ("package", "module", "extra"), [("metrics", "torchmetrics", "train"), ("analysis", "mlflow", "analysis")]
)
def test_what_an_extra_is_missing_for_is_explained(package: str, module: str, extra: str) -> None:
    script = f"""
import sys, pyrosys
sys.modules[{module!r}] = None  # as if it were not installed
try:
    pyrosys.{package}
except pyrosys.errors.MissingExtra as error:
    print(error)
"""
    message = in_fresh_python("-c", script).stdout
    assert f"found no module {module!r}" in message
    assert f"pip install 'pyrosys[{extra}]'" in message


@pytest.mark.parametrize("name", pyrosys.__all__)
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(pyrosys, name) is not None
    assert name in dir(pyrosys)


def test_public_names_are_the_same_for_readers_checkers_and_imports() -> None:
    assert pyrosys.__all__ == sorted(pyrosys.__all__)
    block = next(node for node in ast.parse(Path(pyrosys.__file__).read_text()).body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    declared = [(str(node.module), alias.name) for node in imports for alias in node.names]
    assert sorted(name for _, name in declared) == pyrosys.__all__
    for home, name in declared:
        assert getattr(importlib.import_module(home), name) is getattr(pyrosys, name)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        getattr(pyrosys, "absent")  # noqa: B009
