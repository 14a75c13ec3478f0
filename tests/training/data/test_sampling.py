"""Epochs: every item once, the same on every machine, in batches of similar length."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrosys.errors import InputError
from pyrosys.training.data import Sampler, padding_waste

lengths = st.lists(st.integers(1, 60), min_size=1, max_size=80)


def lognormal(items: int) -> np.ndarray:
    """Lengths as in Swiss-Prot: a median of about 290 residues and a long tail."""
    drawn = np.random.default_rng(0).lognormal(np.log(294), 0.67, items)
    return np.clip(drawn, 16, 1022).astype(np.int64) + 2


@given(
    lengths,
    st.integers(1, 9),
    st.integers(0, 3),
    st.integers(1, 30),
    st.integers(60, 200),
    st.booleans(),
)
def test_no_item_is_lost_or_doubled(
    found: list[int], processes: int, epoch: int, window: int, tokens: int, shuffle: bool
) -> None:
    rows = np.arange(100, 100 + len(found))
    sampler = Sampler(rows, np.array(found), tokens, window=window, shuffle=shuffle)
    shares = [sampler.batches(epoch, rank, processes) for rank in range(processes)]
    assert len({len(share) for share in shares}) == 1
    batches = [batch for share in shares for batch in share]
    assert sorted(row for batch in batches for row in batch) == rows.tolist()
    for batch in batches:
        assert len(batch) * max((found[row - 100] for row in batch), default=0) <= tokens
    if any(not len(batch) for batch in batches):  # nothing was left to split
        assert max(map(len, batches)) == 1


@given(lengths, st.data(), st.integers(1, 4))
def test_one_member_of_each_cluster(found: list[int], data: st.DataObject, processes: int) -> None:
    clusters = np.array(data.draw(st.lists(st.integers(0, 7), min_size=len(found), max_size=len(found))))
    sampler = Sampler(np.arange(len(found)), np.array(found), 60, clusters=clusters)
    for epoch in range(3):
        batches = [batch for rank in range(processes) for batch in sampler.batches(epoch, rank, processes)]
        drawn = [clusters[row] for batch in batches for row in batch]
        assert Counter(drawn) == Counter(set(clusters.tolist()))


def test_members_of_a_cluster_take_turns() -> None:
    sampler = Sampler(np.arange(4), np.full(4, 5), 100, clusters=np.array([0, 0, 0, 1]))
    drawn = Counter(int(row) for epoch in range(600) for batch in sampler.batches(epoch) for row in batch)
    assert drawn[3] == 600
    assert all(150 < drawn[row] < 250 for row in range(3))


def test_an_epoch_depends_on_seed_and_number_only() -> None:
    def epoch(number: int, seed: int = 0) -> list[list[int]]:
        sampler = Sampler(np.arange(200), lognormal(200), 4096, seed=seed, window=50)
        return [batch.tolist() for batch in sampler.batches(number)]

    assert epoch(3) == epoch(3)
    assert epoch(3) != epoch(4)
    assert epoch(3) != epoch(3, seed=1)


def test_processes_share_the_batches_of_one_when_they_divide() -> None:
    sampler = Sampler(np.arange(64), np.full(64, 10), 40)
    together = [batch.tolist() for batch in sampler.batches(0)]
    shares = [[batch.tolist() for batch in sampler.batches(0, rank, 4)] for rank in range(4)]
    assert len(together) == 16
    assert [shares[place % 4][place // 4] for place in range(16)] == together


def test_padding_is_below_five_percent_on_lengths_of_proteins() -> None:
    found = lognormal(20_000)
    sampler = Sampler(np.arange(len(found)), found, 8192)
    assert padding_waste(sampler.batches(0), found) < 0.05
    at_random = np.array_split(np.random.default_rng(0).permutation(len(found)), len(found) // 16)
    assert padding_waste(at_random, found) > 0.3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": np.arange(0), "lengths": np.arange(0)}, "at least 1 item"),
        ({"tokens": 9}, "found one of 10"),
        ({"window": 0}, "window of at least 1"),
    ],
)
def test_what_cannot_be_sampled_is_refused(change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"rows": np.arange(3), "lengths": np.array([4, 10, 3]), "tokens": 20, **change}
    with pytest.raises(InputError, match=message):
        Sampler(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(("epoch", "rank"), [(-1, 0), (0, 2), (0, -1)])
def test_epochs_and_ranks_that_there_are_not(epoch: int, rank: int) -> None:
    sampler = Sampler(np.arange(3), np.full(3, 4), 20)
    with pytest.raises(InputError, match="Count both from 0"):
        sampler.batches(epoch, rank, 2)
