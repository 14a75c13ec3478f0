"""Runs and models on a real mlflow server, and in a database file without one."""

import json
import pickle
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from mlflow import MlflowClient
from torch import nn

import pyrosys
from pyrosys.analysis import Run, compare, load_model
from pyrosys.analysis.pyfunc import Forward, example_of, signature_of
from pyrosys.errors import InputError, SourceError, WeightsError
from pyrosys.hub.digest import file_sha256
from pyrosys.zoo.esm import ESM, ESMConfig
from pyrosys.zoo.proteinmpnn import ProteinMPNN, ProteinMPNNConfig

pytestmark = [
    # mlflow 3.17 with newer versions of what it builds on
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType"),
    pytest.mark.filterwarnings("ignore:Operation with range is deprecated"),
]


@pytest.fixture(scope="module")
def model() -> ESM:
    torch.manual_seed(0)
    return ESM(ESMConfig(layers=1, width=16, heads=2)).eval()


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('database')}/runs.db"


def read(client: MlflowClient, run: str, path: str, folder: Path) -> str:
    return Path(client.download_artifacts(run, path, str(folder))).read_text(encoding="utf-8")


def test_a_server_keeps_everything_about_a_run(mlflow_server: str, model: ESM, tmp_path: Path) -> None:
    before = mlflow.get_tracking_uri()
    other = ESM(model.config).eval()
    data = tmp_path / "training"
    data.mkdir()
    (data / "a.fasta").write_text(">a\nMKT\n")
    with Run("everything", name="first", tracking_uri=mlflow_server, tags={"kind": "test"}) as run:
        run.log_settings({"trainer": {"steps": 3}, "sizes": [1, 2], "empty": {}})
        digests = run.log_data({"training": data, "validation": data / "a.fasta"})
        assert run.log_structure(model) == pyrosys.fingerprint(model).whole
        plan = pyrosys.match(model, other, model.example_input_array)
        run.log_plan(plan)
        run.log_certificate(plan.verify(model, other))
        run.log_analysis(compare(model, other, sequences=["MKTAYIAKQR"], structure=False))
        run.log_metrics({"loss": 2.0}, step=1)
        run.log_metrics({"loss": 1.0}, step=2)
        address = run.log_model(model, register="tiny-esm", step=2)

    client = MlflowClient(mlflow_server)
    kept = client.get_run(run.id)
    assert kept.info.status == "FINISHED"
    assert kept.info.run_name == "first"
    assert kept.data.params == {"trainer.steps": "3", "sizes": "[1, 2]", "empty": "{}"}
    assert kept.data.tags["pyrosys.fingerprint"] == pyrosys.fingerprint(model).whole
    assert kept.data.tags["kind"] == "test"
    assert digests["validation"] == file_sha256(data / "a.fasta")
    inputs = {kept.tags[0].value: kept.dataset.digest for kept in kept.inputs.dataset_inputs}
    assert inputs == {name: digest[:32] for name, digest in digests.items()}
    assert [(metric.step, metric.value) for metric in client.get_metric_history(run.id, "loss")] == [(1, 2), (2, 1)]
    assert kept.data.metrics["certificate/difference"] < 1e-4
    assert kept.data.metrics["analysis/first_parameters"] == sum(p.numel() for p in model.parameters())
    assert json.loads(read(client, run.id, "settings.json", tmp_path))["trainer"] == {"steps": 3}
    assert json.loads(read(client, run.id, "data.json", tmp_path))["training"]["sha256"] == digests["training"]
    assert read(client, run.id, "analysis/index.html", tmp_path).startswith("<!doctype html>")
    assert {file.path for file in client.list_artifacts(run.id, "analysis")} >= {"analysis/similarity.svg"}
    moved = pyrosys.Plan.load(client.download_artifacts(run.id, "plans/plan.json", str(tmp_path)))
    state = moved.apply(model.state_dict(), other.state_dict())
    torch.testing.assert_close(state, dict(model.state_dict()), rtol=0, atol=0)

    assert mlflow.get_tracking_uri() == before  # what the user has set stays
    mlflow.set_tracking_uri(mlflow_server)
    try:
        function = mlflow.pyfunc.load_model("models:/tiny-esm/1")
    finally:
        mlflow.set_tracking_uri(before)
    sequences = ["MKTAYI", "GS"]
    np.testing.assert_allclose(
        function.predict(pd.DataFrame({"sequence": sequences})), model.embed(sequences, pool="mean").numpy(), rtol=1e-6
    )
    assert function.metadata.metadata["pyrosys.fingerprint"] == pyrosys.fingerprint(model).whole
    with pytest.raises(mlflow.exceptions.MlflowException, match="sequence"):
        function.predict(pd.DataFrame({"structure": sequences}))

    loaded = load_model(address, tracking_uri=mlflow_server)
    assert not loaded.training
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_a_database_file_does_without_a_server(database: str, model: ESM, tmp_path: Path) -> None:
    with Run("local", tracking_uri=database, artifacts=tmp_path / "files") as run:
        address = run.log_model(model, "logged")
        assert run.client.get_run(run.id).info.status == "RUNNING"
        assert mlflow.active_run() is None
    loaded = load_model(address, tracking_uri=database)
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    logged = [path for path in (tmp_path / "files").rglob("*") if path.is_file()]
    assert {"model.safetensors", "manifest.json", "MLmodel"} <= {path.name for path in logged}
    assert not [path for path in logged if path.suffix in (".pkl", ".pickle", ".pt", ".pth", ".bin")]
    assert not [path for path in logged if path.read_bytes()[:1] == pickle.PROTO]

    (weights,) = [path for path in logged if path.name == "model.safetensors"]
    spoilt = bytearray(weights.read_bytes())
    spoilt[-1] ^= 1
    weights.write_bytes(spoilt)
    with pytest.raises(WeightsError):
        load_model(address, tracking_uri=database)


def test_a_run_says_how_it_ended_and_can_go_on(database: str, tmp_path: Path) -> None:
    client = MlflowClient(database)
    with pytest.raises(ZeroDivisionError), Run("ends", tracking_uri=database, artifacts=tmp_path / "files") as run:
        raise ZeroDivisionError
    assert client.get_run(run.id).info.status == "FAILED"
    with Run("ends", tracking_uri=database, run_id=run.id) as again:
        assert client.get_run(run.id).info.status == "RUNNING"
        again.log_settings({"seed": 1})
    assert again.id == run.id
    assert client.get_run(run.id).info.status == "FINISHED"


@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.. is deprecated")  # Lightning, with torch 2.13
def test_lightning_logs_into_the_run(database: str, tmp_path: Path) -> None:
    class Task(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def training_step(self, batch, index):
            self.log("loss", self.weight**2)
            return self.weight**2

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    with Run("trained", tracking_uri=database, artifacts=tmp_path / "files") as run:
        trainer = pl.Trainer(
            accelerator="cpu",
            max_steps=3,
            logger=pickle.loads(pickle.dumps(run.logger())),  # as a worker gets it
            log_every_n_steps=1,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Task(), torch.utils.data.DataLoader(range(3)))  # pyright: ignore[reportArgumentType]
        assert run.client.get_run(run.id).info.status == "RUNNING"
        history = run.client.get_metric_history(run.id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [
        (0, pytest.approx(1.0)),
        (1, pytest.approx(0.64)),
        (2, pytest.approx(0.4096)),
    ]


def test_models_that_take_arrays_are_functions_of_them() -> None:
    model = ProteinMPNN(ProteinMPNNConfig(width=16, neighbours=8)).eval()
    example = example_of(model)
    assert isinstance(example, dict)
    assert list(example)[:3] == ["coordinates", "sequence", "mask"]
    with torch.no_grad():
        expected = model(*model.example_input_array)
    np.testing.assert_allclose(Forward(model).predict(example), expected.numpy(), rtol=1e-6)
    signature = signature_of(model)
    assert signature.inputs.input_names() == list(example)
    assert signature.outputs.inputs[0].shape == (-1, -1, -1)


def test_models_of_others_are_not_run(database: str, tmp_path: Path) -> None:
    (tmp_path / "theirs.py").write_text(
        "from mlflow.models import set_model\nfrom mlflow.pyfunc import PythonModel\n"
        "class Theirs(PythonModel):\n    def predict(self, model_input: list[str]) -> list[str]:\n        return model_input\n"
        "set_model(Theirs())\n"
    )
    mlflow.pyfunc.save_model(tmp_path / "model", python_model=str(tmp_path / "theirs.py"), pip_requirements=["mlflow"])
    with pytest.raises(InputError, match="if you trust it"):
        load_model(str(tmp_path / "model"))


@pytest.mark.parametrize("address", ["models:/absent/1", "runs:/0123456789abcdef/model"])
def test_missing_models_are_explained(database: str, address: str) -> None:
    with pytest.raises(SourceError, match="Check the address"):
        load_model(address, tracking_uri=database)


def test_missing_runs_and_data_are_explained(database: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="absent"):
        Run("any", tracking_uri=database, run_id="absent")
    with (
        Run("any", tracking_uri=database, artifacts=tmp_path / "files") as run,
        pytest.raises(InputError, match="found nothing"),
    ):
        run.log_data({"training": tmp_path / "absent"})
