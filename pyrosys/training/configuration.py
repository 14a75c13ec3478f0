"""What `pyrosys train` reads: a YAML file that says which model to train, for what, on what and how.

Each section is one of the classes below or of those that Python code uses: `Optimiser`, `Full`, `Frozen`, `LowRank` and
`Trainer`. Whatever is misspelt or of the wrong kind is an error; nothing is ignored.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import yaml
from pydantic import Field, TypeAdapter, ValidationError

from pyrosys import catalogue
from pyrosys.errors import InputError
from pyrosys.inverse_folding import InverseFolding
from pyrosys.language import MaskedLanguageModel
from pyrosys.loading import load
from pyrosys.model import Model
from pyrosys.training.data import Backbones, DataModule, Labelled, MaskedResidues, Recipe
from pyrosys.training.inverse_folding import InverseFoldingTask
from pyrosys.training.language import MaskedLanguageTask
from pyrosys.training.optimiser import Optimiser
from pyrosys.training.supervised import SupervisedTask
from pyrosys.training.task import Task
from pyrosys.training.trainer import Trainer
from pyrosys.training.tuning import Frozen, Full, LowRank

__all__ = ["Configuration"]


@dataclass(frozen=True)
class ModelSettings:
    """Which model to train: one that has weights, or a new one.

    Args:
        start: A name of the catalogue or a published entry whose weights to start from.
        family: The family of a new model, such as ``esm``.
        config: The configuration of a new model, as its family's class has it.
    """

    start: str | None = None
    family: str | None = None
    config: dict[str, Any] = field(default_factory=dict)

    def build(self) -> Model[Any]:
        """Load or build the model.

        Raises:
            InputError: It is neither one nor the other, or there is no such family or configuration.
        """
        if (self.start is None) == (self.family is None):
            raise InputError(
                "Expected either `start` or `family` under `model`, found "
                f"{'neither' if self.start is None else 'both'}. Name weights to start from, or a family to build."
            )
        if self.start is not None:
            if self.config:
                raise InputError(
                    "Expected no `config` beside `start` under `model`, found one. The weights have their own."
                )
            return load(self.start)
        assert self.family is not None
        kind = catalogue.family_class(self.family)
        return kind(validate(typing.get_type_hints(kind.__init__)["config"], self.config, "model.config"))


@dataclass(frozen=True)
class MaskedLanguage:
    """To predict hidden residues.

    Args:
        rate: The share of the residues to predict.
    """

    kind: Literal["masked-language"]
    rate: float = 0.15

    def recipe(self, model: Model[Any]) -> Recipe:
        """How rows become batches."""
        return MaskedResidues(_expect(model, MaskedLanguageModel, self.kind).alphabet, self.rate)

    def task(self, model: Model[Any], *arguments: Any) -> Task:
        """Join the model with its loss and metrics."""
        return MaskedLanguageTask(_expect(model, MaskedLanguageModel, self.kind), *arguments)


@dataclass(frozen=True)
class InverseFoldingSettings:
    """To predict sequences from backbones.

    Args:
        noise: Standard deviation in Å of what is added to coordinates in training.
        smoothing: What is added to the one of the native letter, over all letters together.
    """

    kind: Literal["inverse-folding"]
    noise: float = 0.0
    smoothing: float = 0.1

    def recipe(self, model: Model[Any]) -> Recipe:
        """How rows become batches."""
        folding = _expect(model, InverseFolding, self.kind)
        return Backbones(folding.alphabet, self.noise, folding.atoms)

    def task(self, model: Model[Any], *arguments: Any) -> Task:
        """Join the model with its loss and metrics."""
        return InverseFoldingTask(_expect(model, InverseFolding, self.kind), *arguments, smoothing=self.smoothing)


@dataclass(frozen=True)
class Property:
    """To predict numbers or classes of proteins or residues.

    Args:
        level: Whether there is one label per ``protein`` or per ``residue``.
        classes: The classes in order; left out to predict numbers.
        column: The column of the labels.
        hidden: Features of a layer between the encoder and the prediction.
        dropout: Probability of dropout on what goes into the head.
    """

    kind: Literal["property"]
    level: Literal["protein", "residue"] = "protein"
    classes: tuple[str, ...] | None = None
    column: str = "label"
    hidden: int | None = None
    dropout: float = 0.0

    def recipe(self, model: Model[Any]) -> Recipe:
        """How rows become batches."""
        alphabet = _expect(model, MaskedLanguageModel, self.kind).alphabet
        return Labelled(alphabet, self.level, self.classes, self.column)

    def task(self, model: Model[Any], *arguments: Any) -> Task:
        """Join the model with a head, its loss and metrics."""
        return SupervisedTask(
            _expect(model, MaskedLanguageModel, self.kind),
            *arguments,
            level=self.level,
            classes=self.classes,
            hidden=self.hidden,
            dropout=self.dropout,
        )


@dataclass(frozen=True)
class DataSettings:
    """What to train on, as `DataModule` takes it.

    Args:
        path: A folder that ``pyrosys prepare`` wrote, or Parquet or Arrow files.
        tokens: The most tokens in a batch, padding included.
        sampling: ``all`` items in an epoch, or one member of each of the ``clusters``.
        crop: The most residues of an item.
        crop_kind: What is kept of one that is longer: a ``contiguous`` stretch, or what is ``spatial`` near.
        seed: Where the randomness of the data starts.
        window: How many items are sorted by length together.
        workers: Processes that read ahead, for each process of training.
        train: The split to train on; ``null`` for all rows.
        validation: The split to validate on.
    """

    path: str | tuple[str, ...]
    tokens: int = 8192
    sampling: Literal["all", "clusters"] = "all"
    crop: int | None = None
    crop_kind: Literal["contiguous", "spatial"] = "contiguous"
    seed: int = 0
    window: int = 8192
    workers: int = 0
    train: str | None = "train"
    validation: str = "validation"

    def build(self, recipe: Recipe) -> DataModule:
        """Open the data set."""
        own = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}
        return DataModule(own.pop("path"), recipe, **own)


@dataclass(frozen=True)
class Publication:
    """What to say of the trained model in its entry.

    Args:
        name: What its folder is called, in ``entries`` of the run's directory.
        weights_licence: The licence of the weights.
        description: What a reader should know.
    """

    name: str = "model"
    weights_licence: str | None = None
    description: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", self.name, re.ASCII):
            raise InputError(f"Expected letters, digits, dots and dashes in the name of an entry, found {self.name!r}.")


@dataclass(frozen=True)
class Configuration:
    """A run of training: its sections.

    Args:
        model: Which model.
        task: What for.
        data: On what.
        trainer: In how many steps, where, how.
        optimiser: How to change parameters.
        tuning: Which parameters to change.
        entry: What to say of the result.
    """

    model: ModelSettings
    task: Annotated[MaskedLanguage | InverseFoldingSettings | Property, Field(discriminator="kind")]
    data: DataSettings
    trainer: Trainer
    optimiser: Optimiser = field(default_factory=Optimiser)
    tuning: Annotated[Full | Frozen | LowRank, Field(discriminator="kind")] = field(default_factory=Full)
    entry: Publication = field(default_factory=Publication)

    @classmethod
    def read(cls, path: Path, changes: typing.Sequence[str] = ()) -> Configuration:
        """Read a file.

        Args:
            path: The file.
            changes: What to put in place of what it says, as in ``trainer.steps=100``.

        Raises:
            InputError: There is no such file, it is not YAML, or something in it is not known or of the wrong kind.
        """
        try:
            data = yaml.safe_load(path.read_text(encoding="utf-8"))
            for change in changes:
                keys, equals, value = change.partition("=")
                *sections, key = keys.split(".")
                place = data
                for section in sections:
                    place = place.setdefault(section, {})
                if not equals:
                    raise InputError(f"Expected a change such as trainer.steps=100, found {change!r}.")
                place[key] = yaml.safe_load(value)
        except (OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError, TypeError) as error:
            raise InputError(f"Expected a YAML file of sections at {path}, found: {error}. Check the file.") from error
        return validate(cls, data, str(path))

    def build(self) -> tuple[Task, DataModule]:
        """Build the task and open the data; new parameters are drawn from the seed of the trainer."""
        torch.manual_seed(self.trainer.seed)
        model = self.model.build()
        return self.task.task(model, self.optimiser, self.tuning), self.data.build(self.task.recipe(model))


Settings = typing.TypeVar("Settings")


def validate(kind: type[Settings], data: Any, where: str) -> Settings:
    """Make a dataclass of plain data.

    Raises:
        InputError: Something is missing, not known, or of the wrong kind; the message says what and where.
    """
    if not isinstance(data, dict):
        raise InputError(f"Expected settings by name in {where}, found {data!r:.100}.")
    # What pydantic is told of a dataclass holds for those within it.
    whole = dataclasses.make_dataclass("Whole", [("settings", kind)])
    whole.__pydantic_config__ = {"extra": "forbid", "arbitrary_types_allowed": True}
    try:
        return TypeAdapter(whole).validate_python({"settings": data}).settings
    except ValidationError as error:
        lines = [f"- {_explain(kind, mistake)}" for mistake in error.errors(include_url=False)]
        raise InputError("\n".join([f"Expected a configuration as documented in {where}, found:", *lines])) from None


def _explain(kind: Any, mistake: Any) -> str:
    """Say what is wrong, with the closest name of a setting."""
    _, *path, last = mistake["loc"]
    names = []
    for part in path:
        members = [member for member in typing.get_args(kind) if dataclasses.is_dataclass(member)]
        chosen = [member for member in members if part in typing.get_args(typing.get_type_hints(member)["kind"])]
        if chosen:
            (kind,) = chosen
        else:
            names.append(str(part))
            kind = _settings(kind).get(part)
    name, known = ".".join([*names, str(last)]), list(_settings(kind))
    if mistake["type"] == "unexpected_keyword_argument":
        close = difflib.get_close_matches(str(last), known, n=1)
        hint = f"Did you mean {close[0]}?" if close else f"There are: {', '.join(known)}."
        return f"{name}, which is no setting. {hint}"
    if mistake["type"] == "missing":
        return f"no {name}, which is needed"
    return f"{name} {mistake['input']!r:.60}: {mistake['msg'][:1].lower()}{mistake['msg'][1:]}"


def _settings(kind: Any) -> dict[str, Any]:
    """The settings of a section, with their types."""
    hints = typing.get_type_hints(kind) if dataclasses.is_dataclass(kind) else {}
    return {name: hint for name, hint in hints.items() if not name.startswith("_")}


def _expect(model: Model[Any], kind: type[Any], task: str) -> Any:
    if not isinstance(model, kind):
        raise InputError(
            f"Expected a {kind.__name__} for the task {task!r}, found a {type(model).__name__}. Choose another of the two."
        )
    return model
