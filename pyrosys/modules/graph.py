"""Graph: message passing over each residue's nearest neighbours.

Members of the family work on nodes ``(batch, length, width)``, edges ``(batch, length, count, width)`` and neighbours
``(batch, length, count)``, the residues at the other end of the edges: a table, so that message passing needs nothing
but ``gather``. A mask is true where a residue, or an edge between two residues, is real.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from pyrosys.modules.feed_forward import FeedForward

__all__ = ["EdgeEmbedding", "Graph", "GraphBlock", "Message", "NodeUpdate", "gather_nodes"]


class Graph(NamedTuple):
    """Residues, and the edges from each to its neighbours."""

    nodes: Float[Tensor, "batch length width"]
    edges: Float[Tensor, "batch length count width"]
    neighbours: Int[Tensor, "batch length count"]
    mask: Bool[Tensor, "batch length"]
    edge_mask: Bool[Tensor, "batch length count"]


def gather_nodes(
    nodes: Shaped[Tensor, "batch nodes width"], neighbours: Int[Tensor, "batch length count"]
) -> Shaped[Tensor, "batch length count width"]:
    """Look up the nodes at the other end of each edge.

    Example:
        >>> gather_nodes(torch.tensor([[[1.0], [2.0], [3.0]]]), torch.tensor([[[0, 2], [1, 0]]])).squeeze(-1)
        tensor([[[1., 3.],
                 [2., 1.]]])
    """
    index = neighbours.flatten(1)[..., None].expand(-1, -1, nodes.shape[-1])
    return nodes.gather(1, index).unflatten(1, neighbours.shape[1:])


class EdgeEmbedding(nn.Module):
    """Embed an edge: how far apart in the sequence, and how the two residues lie in space.

    Args:
        width: Width of the edges.
        geometry: Width of the features in space.
        offset: Width of the embedding of the offset in the sequence.
        longest: Offsets beyond this many residues count as this many; other chains have a place of their own.
    """

    def __init__(self, width: int, geometry: int, *, offset: int = 16, longest: int = 32) -> None:
        super().__init__()
        self.longest = longest
        self.offset = nn.Linear(2 * longest + 2, offset)
        self.input = nn.Linear(offset + geometry, width, bias=False)
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, width)

    def forward(
        self,
        geometry: Float[Tensor, "batch length count geometry"],
        neighbours: Int[Tensor, "batch length count"],
        chain_index: Int[Tensor, "batch length"],
        residue_index: Int[Tensor, "batch length"],
    ) -> Float[Tensor, "batch length count width"]:
        """Embed the edges from each residue to its neighbours."""
        offset = residue_index[:, :, None] - gather_nodes(residue_index[..., None], neighbours).squeeze(-1)
        offset = offset.clamp(-self.longest, self.longest) + self.longest
        same_chain = chain_index[:, :, None] == gather_nodes(chain_index[..., None], neighbours).squeeze(-1)
        offset = torch.where(same_chain, offset, 2 * self.longest + 1)
        offset = F.one_hot(offset, 2 * self.longest + 2).type_as(self.offset.weight)
        features = torch.cat([self.offset(offset), geometry.type_as(self.input.weight)], -1)
        return self.output(self.norm(self.input(features)))


class Message(nn.Module):
    """What an edge tells the residue it belongs to: a perceptron with two hidden layers.

    Args:
        width: Width of the nodes, the hidden layers and the message.
        context: Width of what is known about the neighbour.
    """

    def __init__(self, width: int, context: int) -> None:
        super().__init__()
        self.input = nn.Linear(width + context, width)
        self.hidden = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def forward(
        self, nodes: Float[Tensor, "batch length width"], context: Float[Tensor, "batch length count context"]
    ) -> Float[Tensor, "batch length count width"]:
        """Compute the message of each edge from the residue itself and its neighbour's context."""
        nodes = nodes[:, :, None].expand(-1, -1, context.shape[2], -1)
        message = F.gelu(self.input(torch.cat([nodes, context], -1)))
        return self.output(F.gelu(self.hidden(message)))


class NodeUpdate(nn.Module):
    """Update residues by their neighbours' messages, then each by itself; both residual, normalised after.

    Args:
        width: Width of the nodes.
        context: Width of what is known about a neighbour.
        scale: Messages are added and divided by this.
        dropout: Probability of dropout on both residual branches.
    """

    def __init__(self, width: int, context: int, *, scale: float = 30.0, dropout: float = 0.0) -> None:
        super().__init__()
        self.scale = scale
        self.message = Message(width, context)
        self.message_norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, 4 * width)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        nodes: Float[Tensor, "batch length width"],
        context: Float[Tensor, "batch length count context"],
        mask: Bool[Tensor, "batch length"],
        edge_mask: Bool[Tensor, "batch length count"],
    ) -> Float[Tensor, "batch length width"]:
        """Return the updated nodes, zero where a residue is not real."""
        messages = (self.message(nodes, context) * edge_mask[..., None]).sum(2) / self.scale
        nodes = self.message_norm(nodes + self.dropout(messages))
        nodes = self.feed_forward_norm(nodes + self.dropout(self.feed_forward(nodes)))
        return nodes * mask[..., None]


class GraphBlock(nn.Module):
    """Update residues by their edges, then edges by the residues at both ends; residual, normalised after.

    Args:
        width: Width of nodes and edges.
        dropout: Probability of dropout on the residual branches.

    Source:
        Dauparas et al. 2022, figure 1A: an encoder layer.
    """

    def __init__(self, width: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.node_update = NodeUpdate(width, 2 * width, dropout=dropout)
        self.edge_message = Message(width, 2 * width)
        self.edge_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, graph: Graph) -> Graph:
        """Return the graph with new nodes and edges."""
        _, edges, neighbours, mask, edge_mask = graph
        context = torch.cat([edges, gather_nodes(graph.nodes, neighbours)], -1)
        nodes = self.node_update(graph.nodes, context, mask, edge_mask)
        context = torch.cat([edges, gather_nodes(nodes, neighbours)], -1)
        edges = self.edge_norm(edges + self.dropout(self.edge_message(nodes, context)))
        return graph._replace(nodes=nodes, edges=edges)
