"""What every test shares: one thread for each worker, and the same random numbers on every run."""

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Start each test from the same state of torch's global generator."""
    torch.manual_seed(0)
