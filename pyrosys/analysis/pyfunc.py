"""Models of the zoo as mlflow's python functions: mlflow finds `_load_pyfunc` here by the name of this module.

A language model takes a column of sequences and gives one vector for each, the mean over its residues. Another model
takes the arrays that its ``forward`` takes, by name, and gives what that returns.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema, TensorSpec
from numpy import ndarray
from torch import Tensor

from pyrosys.entry import Entry
from pyrosys.language import MaskedLanguageModel
from pyrosys.model import Model

__all__ = ["Embedder", "Forward", "example_of", "load", "signature_of"]

COLUMN = "sequence"


class Embedder:
    """Sequences to the mean of what a language model makes of their residues."""

    def __init__(self, model: MaskedLanguageModel[Any]) -> None:
        self.model = model

    def predict(self, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> ndarray:
        """Embed each sequence of the column ``sequence``: an array of shape (sequences, width)."""
        return self.model.embed(model_input[COLUMN].tolist(), pool="mean").numpy()


class Forward:
    """Arrays to what a model's ``forward`` returns."""

    def __init__(self, model: Model[Any]) -> None:
        self.model = model

    def predict(self, model_input: dict[str, ndarray], params: dict[str, Any] | None = None) -> ndarray:
        """Run the model on arrays by the names of its arguments."""
        with torch.inference_mode():
            return self.model(**{name: torch.as_tensor(array) for name, array in model_input.items()}).numpy()


def load(folder: Path) -> Model[Any]:
    """The model that a logged folder holds, verified."""
    return Entry.open(folder, offline=True).model()


def _load_pyfunc(path: str) -> Embedder | Forward:
    model = load(Path(path))
    return Embedder(model) if isinstance(model, MaskedLanguageModel) else Forward(model)


def example_of(model: Model[Any]) -> pd.DataFrame | dict[str, ndarray]:
    """A small input in the form that ``predict`` takes."""
    if isinstance(model, MaskedLanguageModel):
        return pd.DataFrame({COLUMN: ["MKTAYIAKQR", "GSHM"]})
    names = inspect.signature(model.forward).parameters
    tensors = cast("tuple[Tensor, ...]", model.example_input_array)
    return {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}


def signature_of(model: Model[Any]) -> ModelSignature:
    """What ``predict`` takes and gives; every dimension of an array may have any size."""
    example = example_of(model)
    if isinstance(example, pd.DataFrame):
        inputs = Schema([ColSpec(DataType.string, COLUMN)])
    else:
        inputs = Schema([TensorSpec(array.dtype, (-1,) * array.ndim, name) for name, array in example.items()])
    wrapped = Embedder(model) if isinstance(model, MaskedLanguageModel) else Forward(model)
    output = wrapped.predict(example)  # pyright: ignore[reportArgumentType] (each takes its own kind)
    return ModelSignature(inputs, Schema([TensorSpec(np.dtype(output.dtype), (-1,) * output.ndim)]))
