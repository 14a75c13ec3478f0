"""Metrics under data parallelism: two workers, with unequal shares, give what one gives."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed
from torch import Tensor
from torch.multiprocessing.spawn import spawn
from torchmetrics import Metric

from pyrosys.losses import squared_error
from pyrosys.metrics import (
    LDDT,
    RMSD,
    ContactPrecision,
    Mean,
    Perplexity,
    PseudoPerplexity,
    SequenceRecovery,
    Spearman,
    TMScore,
)

Update = Callable[[Metric, slice], None]


def updates() -> dict[str, tuple[Metric, Update]]:
    """Each metric, and how to show it some of the same six proteins."""
    generator = torch.Generator().manual_seed(0)
    logits, sequence = (torch.randn(6, 40, 20, generator=generator) for _ in range(2))
    points = torch.randn(6, 40, 3, generator=generator).cumsum(1)
    tokens, mask = sequence.argmax(-1), torch.rand(6, 40, generator=generator) < 0.8
    maps = torch.randn(6, 40, 40, generator=generator)
    truth = points + 0.5 * torch.randn(6, 40, 3, generator=generator)

    def of(*arrays: Tensor) -> Update:
        return lambda metric, rows: metric.update(*(array[rows] for array in arrays))

    return {
        "mean": (
            Mean(),
            lambda metric, rows: metric.update(squared_error(points[rows], truth[rows], points[rows] > 0)),
        ),
        "perplexity": (Perplexity(), of(logits, tokens, mask)),
        "pseudo-perplexity": (PseudoPerplexity(), of(logits.log_softmax(-1)[..., 0], mask)),
        "recovery": (SequenceRecovery(), of(logits.argmax(-1) // 4, tokens // 4, mask)),
        "recovery per protein": (SequenceRecovery(per_protein=True), of(logits.argmax(-1) // 4, tokens // 4, mask)),
        "spearman": (Spearman(), of(points, truth, mask[..., None].expand(6, 40, 3))),
        "contacts": (ContactPrecision(divisor=2, closest=6), of(maps + maps.mT, maps + maps.mT > 0.5, mask)),
        "lddt": (LDDT(), of(points, truth, mask)),
        "tm": (TMScore(), of(points, truth, mask)),
        "rmsd": (RMSD(), of(points, truth, mask)),
    }


# The second worker of the second round sees nothing at all.
SHARES = [(slice(0, 5), slice(5, 6)), (slice(0, 6), slice(6, 6))]


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    results = []
    for shares in SHARES:
        values = {}
        for name, (metric, update) in updates().items():
            for start in range(shares[rank].start, shares[rank].stop, 2):
                update(metric, slice(start, min(start + 2, shares[rank].stop)))
            values[name] = metric.compute()
        results.append(values)
    torch.save(results, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("name", updates())
def test_an_empty_batch_changes_nothing(name: str) -> None:
    (metric, update), (expected, _) = updates()[name], updates()[name]
    for rows in (slice(0, 6), slice(6, 6)):
        update(metric, rows)
    update(expected, slice(0, 6))
    torch.testing.assert_close(metric.compute(), expected.compute())


def test_two_workers_give_what_one_gives(tmp_path: Path) -> None:
    spawn(work, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        for values in torch.load(tmp_path / f"{rank}.pt", weights_only=True):
            for name, (metric, update) in updates().items():
                update(metric, slice(0, 6))
                torch.testing.assert_close(
                    values[name], metric.compute(), msg=lambda text, name=name: f"{name}: {text}"
                )
