"""ProteinMPNN: what changes a residue's prediction and what must not."""

import dataclasses

import pytest
import torch
from torch import Tensor

from pyrosys.zoo.proteinmpnn import SIZES, ProteinMPNN, ProteinMPNNConfig

BACKBONE = ProteinMPNNConfig(width=16, neighbours=8)
ALPHA_CARBON = dataclasses.replace(BACKBONE, alpha_carbon_only=True)
both = pytest.mark.parametrize("config", [BACKBONE, ALPHA_CARBON], ids=["backbone", "alpha-carbon"])


def sharp(config: ProteinMPNNConfig) -> ProteinMPNN:
    """A model in float64 whose every part matters to its output."""
    model = ProteinMPNN(config).double().eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=0.3)
    return model


def example(model: ProteinMPNN) -> list[Tensor]:
    coordinates, *rest = model.example(torch.Generator().manual_seed(0))
    return [coordinates.double(), *rest]


def padded(inputs: list[Tensor], by: int) -> list[Tensor]:
    """The same residues before some that are not real, with nonsense in them."""
    coordinates, sequence, mask, chains, places, order = inputs
    batch, length = mask.shape
    return [
        torch.cat([coordinates, torch.full((batch, by, 4, 3), torch.nan, dtype=coordinates.dtype)], 1),
        torch.cat([sequence, torch.full((batch, by), 3)], 1),
        torch.cat([mask, torch.zeros(batch, by, dtype=torch.bool)], 1),
        torch.cat([chains, torch.zeros(batch, by, dtype=torch.long)], 1),
        torch.cat([places, torch.full((batch, by), -100)], 1),
        torch.cat([torch.arange(length, length + by).expand(batch, -1), order], 1),
    ]


@pytest.mark.parametrize(("name", "layers", "width", "neighbours"), [("proteinmpnn-v48-020", 3, 128, 48)])
def test_the_published_numbers(name: str, layers: int, width: int, neighbours: int) -> None:
    config = SIZES[name]
    assert (config.encoder_layers, config.decoder_layers, config.width) == (layers, layers, width)
    assert config.neighbours == neighbours
    assert {config for name, config in SIZES.items() if "-ca-" not in name} == {config}


@both
def test_the_example_has_more_real_residues_than_neighbours(config: ProteinMPNNConfig) -> None:
    for released in (config, dataclasses.replace(config, neighbours=48)):
        mask = example(ProteinMPNN(dataclasses.replace(released, width=4)))[2]
        assert mask.sum(1).min() > released.neighbours
        assert not mask.all(1).any()


@both
def test_log_probabilities_are_normalised(config: ProteinMPNNConfig) -> None:
    model = sharp(config)
    total = model(*example(model)).exp().sum(-1)
    torch.testing.assert_close(total, torch.ones_like(total))


@both
@pytest.mark.parametrize("neighbours", [8, 48])
def test_padding_changes_nothing(config: ProteinMPNNConfig, neighbours: int) -> None:
    model = sharp(dataclasses.replace(config, neighbours=neighbours))
    inputs = [one[:, :14] for one in example(model)[:5]]
    inputs.append(torch.rand(2, 14).argsort(-1))
    torch.testing.assert_close(model(*padded(inputs, 5))[:, :14][inputs[2]], model(*inputs)[inputs[2]])


@both
def test_residues_that_are_not_real_change_nothing(config: ProteinMPNNConfig) -> None:
    model = sharp(dataclasses.replace(config, neighbours=48))
    coordinates, sequence, mask, *rest = example(model)
    nonsense = coordinates.masked_fill(~mask[..., None, None], torch.nan), torch.where(mask, sequence, 7)
    assert torch.equal(model(*nonsense, mask, *rest)[mask], model(coordinates, sequence, mask, *rest)[mask])


@both
def test_a_residue_does_not_see_its_own_letter_nor_later_ones(config: ProteinMPNNConfig) -> None:
    model = sharp(config)
    inputs = [one[:1] for one in example(model)]
    order, mask = inputs[5][0], inputs[2][0]
    expected = model(*inputs)[0]
    for step in range(0, len(order), 3):
        changed = inputs[1].clone()
        changed[0, order[step]] = (changed[0, order[step]] + 1) % 20
        same = (model(inputs[0], changed, *inputs[2:])[0] == expected).all(-1)
        assert same[order[: step + 1]].all()
        if mask[order[step]] and step < 8:
            assert not same[order[step + 1 :]].all()


@both
def test_the_first_residue_sees_no_letter_and_the_last_sees_its_neighbours(config: ProteinMPNNConfig) -> None:
    model = sharp(config)
    inputs = [one[:1] for one in example(model)]
    order = inputs[5][0][inputs[2][0][inputs[5][0]]]  # of the real residues
    graph = model.encode(inputs[0], *inputs[2:5])
    expected = model(*inputs)[0]
    alone = model.decode(graph, inputs[1], torch.zeros_like(graph.edge_mask))[0]
    informed = model.decode(graph, inputs[1], torch.ones_like(graph.edge_mask))[0]
    torch.testing.assert_close(expected[order[0]], alone[order[0]])
    assert not torch.allclose(expected[order[-1]], alone[order[-1]])
    assert not torch.allclose(expected[order[-1]], informed[order[-1]])  # it must not see itself


@both
def test_chains_matter_by_being_the_same_and_places_by_their_difference(config: ProteinMPNNConfig) -> None:
    model = sharp(config)
    coordinates, sequence, mask, chains, places, order = example(model)
    expected = model(coordinates, sequence, mask, chains, places, order)[mask]
    other = model(coordinates, sequence, mask, 5 - 2 * chains, places + 1000 * chains, order)[mask]
    torch.testing.assert_close(other, expected)
    one_chain = model(coordinates, sequence, mask, torch.zeros_like(chains), places, order)[mask]
    assert not torch.allclose(one_chain, expected)


def test_moving_the_backbone_changes_nothing() -> None:
    model = sharp(BACKBONE)
    coordinates, *rest = example(model)
    rotation = torch.linalg.qr(torch.randn(3, 3).double()).Q
    rotation = rotation * torch.linalg.det(rotation)
    expected = model(coordinates, *rest)
    torch.testing.assert_close(model(coordinates @ rotation.T + 50.0, *rest), expected)
    assert not torch.allclose(model(-coordinates, *rest), expected)  # the mirror image is another protein


def test_a_shift_far_from_the_origin_changes_nothing_without_backbone() -> None:
    model = sharp(ALPHA_CARBON)
    coordinates, *rest = example(model)
    rest[1] = torch.ones_like(rest[1])  # a missing residue would break the chain
    torch.testing.assert_close(model(coordinates + 200.0, *rest), model(coordinates + 300.0, *rest))


def test_without_backbone_only_alpha_carbons_are_read() -> None:
    model = sharp(ALPHA_CARBON)
    coordinates, *rest = example(model)
    trace = torch.full_like(coordinates, torch.nan)
    trace[:, :, 1] = coordinates[:, :, 1]
    assert torch.equal(model(trace, *rest), model(coordinates, *rest))


def test_the_order_of_chains_changes_nothing() -> None:
    model = sharp(BACKBONE)
    inputs = [one[:1] for one in example(model)]
    first = int((inputs[3] == 0).sum())
    swap = torch.cat([torch.arange(first, inputs[2].shape[1]), torch.arange(first)])
    swapped = [one[:, swap] for one in inputs[:5]] + [swap.argsort()[inputs[5]]]
    torch.testing.assert_close(model(*swapped), model(*inputs)[:, swap])


@both
def test_every_parameter_learns(config: ProteinMPNNConfig) -> None:
    model = ProteinMPNN(config).train()
    inputs = model.example(torch.Generator().manual_seed(0))
    model(*inputs).gather(-1, inputs[1][..., None]).mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


@both
def test_sampling_is_decoding_with_the_letters_so_far(config: ProteinMPNNConfig) -> None:
    model = sharp(config)
    coordinates, sequence, mask, chains, places, order = example(model)
    graph = model.encode(coordinates, mask, chains, places)
    designed = mask & (torch.rand(mask.shape) < 0.7)
    preference = 3 * torch.randn(*mask.shape, 21).double()
    written, log_probabilities = model.sample(graph, sequence, order, designed, preference)
    assert torch.equal(written[~designed], sequence[~designed])
    assert not torch.equal(written, sequence)
    expected = model(coordinates, written, mask, chains, places, order)
    torch.testing.assert_close(log_probabilities[mask], expected[mask], rtol=1e-9, atol=1e-9)
    assert torch.equal(written[designed], (expected + preference).argmax(-1)[designed])
