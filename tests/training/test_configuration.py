"""Configuration files: what they say is what is built, and what is wrong in them is explained."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from pyrosys.errors import InputError
from pyrosys.training import Frozen, InverseFoldingTask, LowRank, MaskedLanguageTask, Optimiser, SupervisedTask
from pyrosys.training.configuration import Configuration

ROOT = Path(__file__).parents[2]


def settings(proteins: Path, directory: Path) -> dict[str, Any]:
    return {
        "model": {"family": "esm", "config": {"layers": 1, "width": 16, "heads": 2, "contacts": False}},
        "task": {"kind": "masked-language"},
        "data": {"path": str(proteins), "tokens": 256},
        "trainer": {"directory": str(directory / "run"), "steps": 3, "accelerator": "cpu"},
    }


@pytest.fixture
def base(proteins: Path, tmp_path: Path) -> dict[str, Any]:
    return settings(proteins, tmp_path)


def read(settings: dict[str, Any], tmp_path: Path, *changes: str) -> Configuration:
    path = tmp_path / "configuration.yaml"
    path.write_text(yaml.safe_dump(settings))
    return Configuration.read(path, changes)


def test_least_that_can_be_said(base: dict[str, Any], tmp_path: Path) -> None:
    configuration = read(base, tmp_path)
    task, data = configuration.build()
    assert isinstance(task, MaskedLanguageTask)
    assert task.model.config.width == 16
    assert configuration.optimiser == Optimiser()
    assert data.tokens == 256
    assert configuration.trainer.steps == 3


def test_same_file_gives_the_same_parameters(base: dict[str, Any], tmp_path: Path) -> None:
    first, second = (read(base, tmp_path).build()[0].model.embedding.weight for _ in range(2))
    other = read(base, tmp_path, "trainer.seed=1").build()[0].model.embedding.weight
    assert (first == second).all()
    assert not (first == other).all()


def test_every_task_and_tuning(base: dict[str, Any], tmp_path: Path) -> None:
    base["task"] = {"kind": "property", "level": "residue", "classes": ["h", "e"], "column": "states", "hidden": 8}
    base["tuning"] = {"kind": "low-rank", "rank": 2, "layers": ["key"]}
    task, data = read(base, tmp_path).build()
    assert isinstance(task, SupervisedTask)
    assert task.tuning == LowRank(rank=2, layers=("key",))
    assert next(iter(data.epoch(0)))["labels"].dim() == 2
    base["tuning"] = {"kind": "frozen"}
    assert read(base, tmp_path).tuning == Frozen()
    base["model"] = {"family": "proteinmpnn", "config": {"width": 16, "neighbours": 8}}
    base["task"] = {"kind": "inverse-folding", "noise": 0.2}
    del base["tuning"]
    task, data = read(base, tmp_path).build()
    assert isinstance(task, InverseFoldingTask)
    assert data.recipe.settings()["noise"] == 0.2


def test_changes_replace_what_the_file_says(base: dict[str, Any], tmp_path: Path) -> None:
    configuration = read(base, tmp_path, "trainer.steps=7", "optimiser.learning_rate=1e-3", "data.crop=100")
    assert configuration.trainer.steps == 7
    assert configuration.optimiser.learning_rate == 1e-3
    assert configuration.data.crop == 100


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["trainer.stepz=3"], "trainer.stepz, which is no setting. Did you mean steps?"),
        (["optimizer.learning_rate=1"], "optimizer, which is no setting. Did you mean optimiser?"),
        (["task.rat=0.1"], "task.rat, which is no setting. Did you mean rate?"),
        (["trainer.steps=many"], "trainer.steps 'many'"),
        (["trainer.steps=0"], "steps to be at least 1, found 0"),
        (["optimiser.schedule=square"], "optimiser.schedule 'square'.*'cosine'"),
        (["task.kind=fold"], "task .*'masked-language', 'inverse-folding', 'property'"),
        (["model.config.layer=1"], "layer, which is no setting. Did you mean layers?"),
        (["model.family=esn"], "among esm, proteinmpnn, found 'esn'"),
        (["model.family=proteinmpnn", "model.config={}"], "Expected a MaskedLanguageModel .*found a ProteinMPNN"),
        (["model.start=esm2-8m"], "either `start` or `family`.*found both"),
        (["model=null"], "model None"),
        (["steps"], "a change such as trainer.steps=100"),
    ],
)
def test_mistakes_are_explained(base: dict[str, Any], tmp_path: Path, changes: list[str], message: str) -> None:
    with pytest.raises(InputError, match=f"(?s){message}"):
        read(base, tmp_path, *changes).build()


def test_missing_settings_are_named(base: dict[str, Any], tmp_path: Path) -> None:
    del base["trainer"]["steps"], base["data"]
    with pytest.raises(InputError, match="no data, which is needed\n- no trainer.steps, which is needed"):
        read(base, tmp_path)


@pytest.mark.parametrize("text", ["", "- a\n- b", "a: [", "!!python/object/apply:os.getcwd []"])
def test_files_that_are_no_configuration_are_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "configuration.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"configuration\.yaml"):
        Configuration.read(path)


@pytest.mark.parametrize("path", sorted((ROOT / ".github" / "models").glob("*.yaml")), ids=lambda path: path.stem)
def test_configurations_of_our_models_are_sound(path: Path) -> None:
    assert Configuration.read(path).entry.name == path.stem
