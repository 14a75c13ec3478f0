"""Runs on mlflow: what was trained on what, how it went, and what came out of it."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities import Dataset, DatasetInput, InputTag, Param
from mlflow.exceptions import MlflowException
from mlflow.models import Model as MlflowModel
from pytorch_lightning.loggers import MLFlowLogger
from torch import nn

import pyrosys
from pyrosys.adapters.certificate import Certificate
from pyrosys.adapters.fingerprint import fingerprint
from pyrosys.adapters.plan import Plan
from pyrosys.analysis import pyfunc
from pyrosys.analysis.comparison import Analysis, Comparison
from pyrosys.analysis.report import save
from pyrosys.errors import InputError, SourceError
from pyrosys.hub.digest import file_sha256
from pyrosys.model import Model
from pyrosys.publishing import publish

__all__ = ["Run", "RunLogger", "load_model"]

LONGEST_VALUE = 6000  # characters of a parameter that mlflow keeps; all of them are in the artefact
PARAMETERS_AT_ONCE = 100
DIGITS = 32  # of a digest that mlflow's records of data have room for; all of them are in the artefact


class Run:
    """A run of an mlflow experiment: settings, data, structure, plans, analyses and models, with its metrics.

    Use it as a context: the run is marked as finished when the context ends, and as failed if that was by an error.

    Args:
        experiment: Name of the experiment, which is made if there is none.
        name: Name of the run; mlflow chooses one by default.
        tracking_uri: An mlflow server, or a file as ``sqlite:///runs.db``; by default what mlflow is set to.
        artifacts: Where a new experiment keeps its files; by default where mlflow puts them.
        run_id: A run to go on with, such as one that was interrupted.
        tags: More to find the run by.

    Raises:
        SourceError: There is no such server, database or run.
    """

    def __init__(
        self,
        experiment: str,
        *,
        name: str | None = None,
        tracking_uri: str | None = None,
        artifacts: str | Path | None = None,
        run_id: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        self.tracking_uri = mlflow.get_tracking_uri() if tracking_uri is None else tracking_uri
        try:
            self.client = MlflowClient(self.tracking_uri)
            if run_id is None:
                found = self.client.get_experiment_by_name(experiment)
                place = Path(artifacts).absolute().as_uri() if isinstance(artifacts, Path) else artifacts
                experiment_id = found.experiment_id if found else self.client.create_experiment(experiment, place)
                run_id = self.client.create_run(experiment_id, tags=dict(tags or {}), run_name=name).info.run_id
            else:
                self.client.update_run(run_id, status="RUNNING")
        except MlflowException as error:
            raise SourceError(
                f"Expected mlflow to keep a run of {experiment!r} at {self.tracking_uri}, found: {error}. "
                "Check the address, and the run if one was named."
            ) from error
        self.experiment = experiment
        self.id: str = run_id
        self.client.set_tag(self.id, "pyrosys.version", pyrosys.__version__)

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.client.set_terminated(self.id, "FINISHED" if kind is None else "FAILED")

    def logger(self) -> RunLogger:
        """A Lightning logger for the run, such as for ``pyrosys.training.Trainer(loggers=(run.logger(),))``."""
        return RunLogger(experiment_name=self.experiment, tracking_uri=self.tracking_uri, run_id=self.id)

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log numbers."""
        for name, value in metrics.items():
            self.client.log_metric(self.id, name, value, step=step)

    def log_settings(self, settings: Mapping[str, Any]) -> None:
        """Log settings: as parameters, nested ones with dots, and as the artefact ``settings.json``."""
        rows = [Param(name, str(value)[:LONGEST_VALUE]) for name, value in _flatten(settings)]
        for start in range(0, len(rows), PARAMETERS_AT_ONCE):
            self.client.log_batch(self.id, params=rows[start : start + PARAMETERS_AT_ONCE])
        self.client.log_dict(self.id, dict(settings), "settings.json")

    def log_data(self, files: Mapping[str, str | Path]) -> dict[str, str]:
        """Log digests of files or folders of data, as inputs of the run and as the artefact ``data.json``.

        Args:
            files: By what they are for, such as ``training`` and ``validation``.

        Returns:
            SHA-256 of each file; of a folder, that of the names and digests of all files in it.

        Raises:
            InputError: A file does not exist.
        """
        digests = {name: _digest(Path(path)) for name, path in files.items()}
        inputs = []
        for name, path in files.items():
            source = json.dumps({"uri": Path(path).absolute().as_uri()})
            dataset = Dataset(Path(path).name, digests[name][:DIGITS], "local", source)
            inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", name)]))
        self.client.log_inputs(self.id, inputs)
        rows = {name: {"path": str(path), "sha256": digests[name]} for name, path in files.items()}
        self.client.log_dict(self.id, rows, "data.json")
        return digests

    def log_structure(self, model: nn.Module, inputs: Any = None) -> str:
        """Log the fingerprint of a model, as the tag ``pyrosys.fingerprint``, and of its parts, as ``fingerprint.json``.

        Args:
            model: Any module.
            inputs: What to run it on; by default its own example.

        Raises:
            CaptureError: Its structure cannot be recorded.
        """
        prints = fingerprint(model, inputs)
        self.client.set_tag(self.id, "pyrosys.fingerprint", prints.whole)
        self.client.log_dict(self.id, {"whole": prints.whole, "parts": prints.parts}, "fingerprint.json")
        return prints.whole

    def log_plan(self, plan: Plan, name: str = "plan") -> None:
        """Log a plan: its file, which `pyrosys.Plan.load` reads, and its report."""
        with tempfile.TemporaryDirectory() as folder:
            plan.save(Path(folder, f"{name}.json"))
            Path(folder, f"{name}.txt").write_text(plan.report(), encoding="utf-8")
            self.client.log_artifacts(self.id, folder, "plans")

    def log_certificate(self, certificate: Certificate, name: str = "certificate") -> None:
        """Log a certificate, and the largest difference that it found as a metric."""
        self.client.log_dict(self.id, certificate.to_json(), f"plans/{name}.json")
        self.log_metrics({f"{name}/difference": certificate.max_difference})

    def log_analysis(self, found: Analysis | Comparison, name: str = "analysis") -> None:
        """Log what `analyse` or `compare` returned: the folder that `save` writes, and the numbers as metrics."""
        with tempfile.TemporaryDirectory() as folder:
            save(found, folder)
            self.client.log_artifacts(self.id, folder, name)
        self.log_metrics({f"{name}/{key}": value for key, value in found.numbers().items()})

    def log_model(
        self, model: Model, name: str = "model", *, inputs: Any = None, register: str | None = None, step: int = 0
    ) -> str:
        """Log a model of the zoo in mlflow's format, with its signature. It holds a published entry, and no pickled code.

        Args:
            model: The model, with its weights.
            name: What to call it in the run.
            inputs: What shows what it computes; by default its own example.
            register: A name in the model registry, of which it becomes a new version.
            step: The step of training that it is from.

        Returns:
            An address that ``mlflow.pyfunc.load_model`` and `load_model` take.

        Raises:
            PublishError: It does not load back equal.
            WeightsError: It holds NaN or infinity.
        """
        with tempfile.TemporaryDirectory() as folder:
            publish(model, "published/model", hub=folder, inputs=inputs)
            with self._active():
                logged = mlflow.pyfunc.log_model(
                    name=name,
                    registered_model_name=register,
                    step=step,
                    loader_module=pyfunc.__name__,
                    data_path=str(Path(folder, "published", "model")),
                    signature=pyfunc.signature_of(model),
                    input_example=pyfunc.example_of(model),
                    pip_requirements=[f"pyrosys[analysis]=={pyrosys.__version__}"],
                    metadata={"pyrosys.fingerprint": fingerprint(model, inputs).whole},
                )
        return logged.model_uri

    @contextmanager
    def _active(self) -> Iterator[None]:
        """Make the run the one that mlflow's functions without a client log to, and leave its status as it is."""
        status = self.client.get_run(self.id).info.status
        try:
            with _selected(self.tracking_uri), mlflow.start_run(run_id=self.id, nested=True):
                yield
        finally:
            self.client.update_run(self.id, status=status)


class RunLogger(MLFlowLogger):
    """A Lightning logger that leaves it to the `Run` to say when it has ended."""

    def finalize(self, status: str = "success") -> None:
        """Do nothing."""


def load_model(address: str, *, tracking_uri: str | None = None) -> Model:
    """Give the model itself that `Run.log_model` logged, in evaluation mode, verified; ``mlflow.pyfunc`` gives a wrapper.

    Args:
        address: What `Run.log_model` returned, or of the registry, as ``models:/name/1`` or ``models:/name@alias``.
        tracking_uri: The server or database; by default what mlflow is set to.

    Raises:
        SourceError: There is no such model.
        InputError: It was not logged by `Run.log_model`.
        WeightsError: Its files are damaged.
        VerificationError: It does not compute what it was logged to.
    """
    try:
        with _selected(tracking_uri):
            folder = Path(download_artifacts(artifact_uri=address))
        flavor = MlflowModel.load(str(folder)).flavors.get("python_function", {})
    except MlflowException as error:
        raise SourceError(f"Expected an mlflow model at {address!r}, found: {error}. Check the address.") from error
    if flavor.get("loader_module") != pyfunc.__name__:
        raise InputError(
            f"Expected a model that pyrosys logged at {address!r}, found one that {flavor.get('loader_module')!r} loads. "
            "Load it with mlflow.pyfunc.load_model, if you trust it."
        )
    return pyfunc.load(folder / flavor["data"])


@contextmanager
def _selected(tracking_uri: str | None) -> Iterator[None]:
    """Set mlflow to a server or database, for what has no client."""
    before = mlflow.get_tracking_uri()
    if tracking_uri is not None:
        mlflow.set_tracking_uri(tracking_uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _digest(path: Path) -> str:
    if path.is_file():
        return file_sha256(path)
    if not path.is_dir():
        raise InputError(f"Expected data at {path}, found nothing. Check the path.")
    files = sorted(file for file in path.rglob("*") if file.is_file())
    lines = (f"{file_sha256(file)}  {file.relative_to(path).as_posix()}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()
