"""ProteinMPNN and LigandMPNN.

Some implementations order letters by their longer names. All draw the order of decoding themselves; here it is given.
"""

from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from tests.adapters.pairs import RENUMBERED, in_our_letters
from tests.portbench.pair import Make, Pair, drawn, resolve

BATCH, LENGTH, NEIGHBOURS = 2, 26, 8
SIZES: dict[str, Any] = {"hidden_dim": 20, "num_encoder_layers": 2, "num_decoder_layers": 2}


def backbone(seed: int) -> dict[str, Tensor]:
    """Two complexes of two chains each: atoms N, CA, C, O, with five atoms of a ligand."""
    generator = torch.Generator().manual_seed(seed)

    def directions() -> Tensor:
        return nn.functional.normalize(torch.randn(BATCH, LENGTH, 3, generator=generator), dim=-1)

    alpha = 3.8 * directions().cumsum(1)
    bonds = [alpha + 1.46 * directions(), alpha, alpha + 1.53 * directions(), alpha + 2.4 * directions()]
    chains = (torch.arange(LENGTH) >= torch.tensor([[11], [14]])).long()
    return {
        "atoms": torch.stack(bonds, 2),
        "letters": torch.stack([torch.randperm(LENGTH, generator=generator) % 21 for _ in range(BATCH)]),
        "chains": chains,
        "numbers": torch.arange(LENGTH) + 100 * chains,
        "order": torch.stack([torch.randperm(LENGTH, generator=generator) for _ in range(BATCH)]),
        "ligand": alpha[:, 5:6] + 4 * torch.randn(BATCH, 5, 3, generator=generator),
        "elements": torch.tensor([[6, 7, 8, 16, 6], [6, 15, 8, 9, 7]]),
    }


def present(*shape: int) -> Tensor:
    return torch.ones(BATCH, *shape)


def ranks(order: Tensor) -> Tensor:
    """Random numbers that sort into this order of decoding."""
    return (order.argsort(-1) + 1) / LENGTH


def for_original(seed: int) -> dict[str, Any]:
    given = backbone(seed)
    return {
        "X": given["atoms"],
        "S": given["letters"],
        "mask": present(LENGTH),
        "chain_M": present(LENGTH),
        "residue_idx": given["numbers"],
        "chain_encoding_all": given["chains"] + 1,
        "randn": present(LENGTH),
        "use_input_decoding_order": True,
        "decoding_order": given["order"],
    }


def in_common(given: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"R_idx": given["numbers"], "chain_labels": given["chains"], "order": given["order"]}


def for_ligandmpnn(seed: int) -> tuple[dict[str, Tensor]]:
    given = backbone(seed)
    ligand = {
        "Y": given["ligand"][:, None].repeat(1, LENGTH, 1, 1),
        "Y_t": given["elements"][:, None].repeat(1, LENGTH, 1),
        "Y_m": present(LENGTH, 5),
    }
    masks = {"mask": present(LENGTH), "chain_mask": present(LENGTH)}
    return ({"X": given["atoms"], "S": given["letters"]} | in_common(given) | ligand | masks,)


def for_teddympnn(seed: int) -> tuple[dict[str, Tensor]]:
    given = backbone(seed)
    masks = {"residue_mask": present(LENGTH), "designed_residue_mask": present(LENGTH)}
    return ({"X": given["atoms"], "S": RENUMBERED[given["letters"]]} | in_common(given) | masks,)


def for_foundry(seed: int) -> tuple[dict[str, Tensor]]:
    given = backbone(seed)
    atoms = nn.functional.pad(given["atoms"], (0, 0, 0, 33))
    ligand = {"Y": given["ligand"], "Y_t": given["elements"], "Y_m": present(5).bool()}
    masks = {"X_m": present(LENGTH, 37).bool() & (torch.arange(37) < 4)}
    return ({"X": atoms, "S": RENUMBERED[given["letters"]]} | in_common(given) | ligand | masks,)


def original() -> nn.Module:
    return resolve("proteinmpnn.protein_mpnn_utils.ProteinMPNN")(
        num_letters=21,
        node_features=20,
        edge_features=20,
        k_neighbors=NEIGHBOURS,
        augment_eps=0.0,
        dropout=0.0,
        **SIZES,
    )


def ligandmpnn(kind: str) -> Make:
    def score(model: Any, given: dict[str, Any]) -> Tensor:
        settings: dict[str, Any] = {"randn": ranks(given["order"]), "batch_size": 1, "symmetry_residues": [[]]}
        return model.score(without_order(given) | settings, True)["log_probs"]

    def make() -> nn.Module:
        return resolve("ligandmpnn.utils.model_utils.ProteinMPNN")(
            *(21, 20, 20, 20, 2, 2, 21, NEIGHBOURS, 0.0, 0.0), device="cpu", atom_context_num=5, model_type=kind
        )

    return drawn(make, call=score)


def teddympnn() -> nn.Module:
    return resolve("teddympnn.models.protein_mpnn.ProteinMPNN")(num_neighbors=NEIGHBOURS, **SIZES)


def score_teddympnn(model: nn.Module, given: dict[str, Tensor]) -> Tensor:
    with mock.patch.object(torch, "rand", return_value=ranks(given["order"])):
        return model(without_order(given))["log_probs"]


def foundry(name: str, **more: Any) -> Make:
    def score(model: nn.Module, given: dict[str, Any]) -> Tensor:
        settings: dict[str, Any] = {
            "residue_mask": present(LENGTH).bool(),
            "designed_residue_mask": None,
            "symmetry_equivalence_group": None,
            "symmetry_weight": None,
            "causality_pattern": "auto_regressive",
            "decode_type": "teacher_forcing",
            "structure_noise": 0.0,
            "temperature": None,
            "bias": None,
            "pair_bias": None,
            "repeat_sample_num": None,
            "initialize_sequence_embedding_with_ground_truth": True,
            "features_to_return": {"decoder_features": ["log_probs"]},
            "atomize_side_chains": False,
        }
        with mock.patch.object(torch, "randn", return_value=ranks(given["order"])):
            output = model({"input_features": without_order(given) | settings})
        return output["decoder_features"]["log_probs"]

    def make() -> nn.Module:
        return resolve(f"mpnn.model.mpnn.{name}")(
            num_node_features=20,
            num_edge_features=20,
            num_neighbors=NEIGHBOURS,
            dropout_rate=0.0,
            **SIZES,
            **more,
        )

    return drawn(make, call=score)


def without_order(given: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name != "order"}


mpnn_original, mpnn_ligand = drawn(original), ligandmpnn("protein_mpnn")
mpnn_teddy, mpnn_foundry = drawn(teddympnn, call=score_teddympnn), foundry("ProteinMPNN")
# Distances between atoms are differences of large numbers, which amplify the rounding of float32.
PERMUTED: dict[str, Any] = {
    "target_output": in_our_letters,
    "tags": ("permuted vocabulary", "permuted features"),
    "tolerance": 1e-3,
}
ALIKE: dict[str, Any] = {"tags": ("nesting",), "tolerance": 1e-3}

PAIRS = [
    Pair(
        name="proteinmpnn: original | ligandmpnn",
        source=mpnn_original,
        target=mpnn_ligand,
        inputs=for_original,
        target_inputs=for_ligandmpnn,
        **ALIKE,
    ),
    Pair(
        name="proteinmpnn: original | foundry",
        source=mpnn_original,
        target=mpnn_foundry,
        inputs=for_original,
        target_inputs=for_foundry,
        **PERMUTED,
    ),
    Pair(
        name="proteinmpnn: original | teddympnn",
        source=mpnn_original,
        target=mpnn_teddy,
        inputs=for_original,
        target_inputs=for_teddympnn,
        **PERMUTED,
    ),
    Pair(
        name="proteinmpnn: ligandmpnn | foundry",
        source=mpnn_ligand,
        target=mpnn_foundry,
        inputs=for_ligandmpnn,
        target_inputs=for_foundry,
        **PERMUTED,
    ),
    Pair(
        name="proteinmpnn: ligandmpnn | teddympnn",
        source=mpnn_ligand,
        target=mpnn_teddy,
        inputs=for_ligandmpnn,
        target_inputs=for_teddympnn,
        **PERMUTED,
    ),
    Pair(
        name="proteinmpnn: teddympnn | foundry",
        source=mpnn_teddy,
        target=mpnn_foundry,
        inputs=for_teddympnn,
        target_inputs=for_foundry,
        source_output=in_our_letters,
        target_output=in_our_letters,
        **ALIKE,
    ),
    Pair(
        name="ligandmpnn: ligandmpnn | foundry",
        source=ligandmpnn("ligand_mpnn"),
        target=foundry("LigandMPNN", num_context_atoms=5),
        inputs=for_ligandmpnn,
        target_inputs=for_foundry,
        note="120 and 119 columns for elements; foundry reads weights of the former",
        **PERMUTED,
    ),
]
