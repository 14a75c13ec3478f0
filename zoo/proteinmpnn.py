"""ProteinMPNN, SolubleMPNN and the C-alpha ProteinMPNN: message passing networks that write a sequence for a backbone.

Papers: Dauparas et al. 2022, https://doi.org/10.1126/science.add2187; SolubleMPNN, Goverde et al. 2024,
https://doi.org/10.1038/s41586-024-07601-y.

Reference implementation: proteinmpnn 0.1.3. Licence of its code and of all weights: MIT. One thing differs: residues
without coordinates are no neighbours to the decoder either. The reference lets them be where a structure has fewer
than 48 others, and there its results depend on padding and on where the origin lies.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pyrosys.inverse_folding import InverseFolding, decoded_before, example_backbones
from pyrosys.modules.geometry import AlphaCarbonGeometry, BackboneGeometry, nearest_neighbours
from pyrosys.modules.graph import EdgeEmbedding, Graph, GraphBlock, NodeUpdate, gather_nodes

__all__ = ["SIZES", "ProteinMPNN", "ProteinMPNNConfig"]


@dataclass(frozen=True)
class ProteinMPNNConfig:
    """What distinguishes the members of the family.

    Args:
        width: Features per residue and per edge.
        encoder_layers: Layers that see the backbone only.
        decoder_layers: Layers that also see the residues decoded so far.
        neighbours: Neighbours of a residue, itself included.
        basis: Radial basis functions per distance.
        dropout: Probability of dropout in training.
        alpha_carbon_only: Whether the model sees the CA atoms only.
    """

    width: int = 128
    encoder_layers: int = 3
    decoder_layers: int = 3
    neighbours: int = 48
    basis: int = 16
    dropout: float = 0.1
    alpha_carbon_only: bool = False


class ProteinMPNN(InverseFolding[ProteinMPNNConfig]):
    """An encoder of the backbone and a decoder that writes residues in any order, both over nearest neighbours.

    Example:
        >>> model = ProteinMPNN(ProteinMPNNConfig(width=16, neighbours=6)).eval()
        >>> model(*model.example_input_array).shape
        torch.Size([2, 14, 21])
    """

    alphabet = "ACDEFGHIKLMNPQRSTVWYX"

    def __init__(self, config: ProteinMPNNConfig) -> None:
        super().__init__(config)
        width = config.width
        self.atoms = ("CA",) if config.alpha_carbon_only else ("N", "CA", "C", "O")
        self.geometry = (AlphaCarbonGeometry if config.alpha_carbon_only else BackboneGeometry)(config.basis)
        self.edge_embedding = EdgeEmbedding(width, self.geometry.width)
        self.encoder = nn.ModuleList(GraphBlock(width, dropout=config.dropout) for _ in range(config.encoder_layers))
        self.embedding = nn.Embedding(len(self.alphabet), width)
        self.decoder = nn.ModuleList(
            NodeUpdate(width, 3 * width, dropout=config.dropout) for _ in range(config.decoder_layers)
        )
        self.head = nn.Linear(width, len(self.alphabet))
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(
        self,
        coordinates: Float[Tensor, "batch length 4 3"],
        sequence: Int[Tensor, "batch length"],
        mask: Bool[Tensor, "batch length"],
        chain_index: Int[Tensor, "batch length"],
        residue_index: Int[Tensor, "batch length"],
        decoding_order: Int[Tensor, "batch length"],
    ) -> Float[Tensor, "batch length letters"]:
        """Log-probabilities of the letters of each residue, given the backbone and the residues decoded before it.

        Args:
            coordinates: N, CA, C and O; N, C and O are not read by a model of CA only.
            sequence: Letters, by their place in the alphabet.
            mask: Which residues have coordinates; the others change nothing.
            chain_index: Equal for residues of one chain.
            residue_index: Place in the chain, with numbers left out where residues are missing.
            decoding_order: Residues in the order in which they are decoded.
        """
        graph = self.encode(coordinates, mask, chain_index, residue_index)
        return self.decode(graph, sequence, decoded_before(decoding_order, graph.neighbours))

    def encode(
        self,
        coordinates: Float[Tensor, "batch length 4 3"],
        mask: Bool[Tensor, "batch length"],
        chain_index: Int[Tensor, "batch length"],
        residue_index: Int[Tensor, "batch length"],
    ) -> Graph:
        """Represent the backbone."""
        coordinates = coordinates.masked_fill(~mask[..., None, None], 0.0)
        neighbours = nearest_neighbours(coordinates[:, :, 1], mask, self.config.neighbours)
        edges = self.edge_embedding(
            self.geometry(coordinates, mask, neighbours), neighbours, chain_index, residue_index
        )
        edge_mask = mask[..., None] & gather_nodes(mask[..., None], neighbours).squeeze(-1)
        graph = Graph(edges.new_zeros(*mask.shape, self.config.width), edges, neighbours, mask, edge_mask)
        for block in self.encoder:
            graph = block(graph)
        return graph

    def decode(
        self, graph: Graph, sequence: Int[Tensor, "batch length"], decoded: Bool[Tensor, "batch length count"]
    ) -> Float[Tensor, "batch length letters"]:
        """Predict all residues at once, each from those of its neighbours that are decoded before it."""
        nodes, letters = graph.nodes, self.embedding(sequence)
        for update in self.decoder:
            context = _context(graph.edges, graph.neighbours, decoded, letters, nodes, graph.nodes)
            nodes = update(nodes, context, graph.mask, graph.edge_mask)
        return self.head(nodes).log_softmax(-1)

    def sample(
        self,
        graph: Graph,
        sequence: Int[Tensor, "batch length"],
        decoding_order: Int[Tensor, "batch length"],
        designed: Bool[Tensor, "batch length"],
        preference: Float[Tensor, "batch length letters"],
    ) -> tuple[Int[Tensor, "batch length"], Float[Tensor, "batch length letters"]]:
        """Write the designed residues one by one: at each the letter with the largest log-probability plus preference.

        Args:
            graph: The encoded backbone.
            sequence: Letters of the residues that are not designed.
            decoding_order: Residues in the order in which they are decoded.
            designed: Which residues to write.
            preference: What is added to the log-probabilities; with Gumbel noise in it, the choice is a random draw.

        Returns:
            The letters, and the log-probabilities among which each was chosen, without the preference.
        """
        sequence, batch = sequence.clone(), torch.arange(len(sequence), device=sequence.device)
        decoded = decoded_before(decoding_order, graph.neighbours)
        letters = self.embedding(sequence)
        states = [graph.nodes, *(torch.zeros_like(graph.nodes) for _ in self.decoder)]  # of each layer, as decoded
        log_probabilities = preference.new_zeros(preference.shape)
        for residue in decoding_order.unbind(1):
            edges, neighbours, mask, edge_mask = (tensor[batch, residue, None] for tensor in graph[1:])
            for depth, update in enumerate(self.decoder):
                context = _context(
                    edges, neighbours, decoded[batch, residue, None], letters, states[depth], graph.nodes
                )
                nodes = update(states[depth][batch, residue, None], context, mask, edge_mask)
                states[depth + 1][batch, residue] = nodes.squeeze(1)
            scores = self.head(states[-1][batch, residue]).log_softmax(-1)
            choice = (scores + preference[batch, residue]).argmax(-1)
            sequence[batch, residue] = torch.where(designed[batch, residue], choice, sequence[batch, residue])
            letters[batch, residue] = self.embedding(sequence[batch, residue])
            log_probabilities[batch, residue] = scores.to(log_probabilities)
        return sequence, log_probabilities

    def example(self, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Two random backbones of two chains, a few residues without coordinates, more residues than neighbours."""
        return example_backbones(generator, length=self.config.neighbours + 8)


def _context(
    edges: Float[Tensor, "batch length count width"],
    neighbours: Int[Tensor, "batch length count"],
    decoded: Bool[Tensor, "batch length count"],
    letters: Float[Tensor, "batch nodes width"],
    nodes: Float[Tensor, "batch nodes width"],
    encoded: Float[Tensor, "batch nodes width"],
) -> Float[Tensor, "batch length count context"]:
    """What a residue knows of its neighbours: letter and state of those decoded before it, else what was encoded."""
    hidden = torch.zeros_like(letters)
    before = torch.cat([edges, gather_nodes(letters, neighbours), gather_nodes(nodes, neighbours)], -1)
    after = torch.cat([edges, gather_nodes(hidden, neighbours), gather_nodes(encoded, neighbours)], -1)
    return decoded[..., None] * before + ~decoded[..., None] * after


# The number is the noise on coordinates in training, in hundredths of an Å.
SIZES = {
    "proteinmpnn-v48-002": ProteinMPNNConfig(),
    "proteinmpnn-v48-010": ProteinMPNNConfig(),
    "proteinmpnn-v48-020": ProteinMPNNConfig(),
    "proteinmpnn-v48-030": ProteinMPNNConfig(),
    "solublempnn-v48-002": ProteinMPNNConfig(),
    "solublempnn-v48-010": ProteinMPNNConfig(),
    "solublempnn-v48-020": ProteinMPNNConfig(),
    "solublempnn-v48-030": ProteinMPNNConfig(),
    "proteinmpnn-ca-v48-002": ProteinMPNNConfig(alpha_carbon_only=True),
    "proteinmpnn-ca-v48-010": ProteinMPNNConfig(alpha_carbon_only=True),
    "proteinmpnn-ca-v48-020": ProteinMPNNConfig(alpha_carbon_only=True),
}
