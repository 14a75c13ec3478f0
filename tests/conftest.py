"""What every test shares: one thread for each worker, and the same random numbers on every run."""

import os

import pytest
import torch

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # before mlflow is imported: tests do not reach beyond this machine
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Start each test from the same state of torch's global generator."""
    torch.manual_seed(0)
