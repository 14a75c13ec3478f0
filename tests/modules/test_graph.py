"""Message passing: what a message may depend on."""

import pytest
import torch

from pyrosys.modules.graph import EdgeEmbedding, Graph, GraphBlock, Message, NodeUpdate, gather_nodes


@pytest.fixture
def graph() -> Graph:
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[0, 4:] = False
    neighbours = torch.stack([torch.stack([torch.randperm(6)[:4] for _ in range(6)]) for _ in range(2)])
    edge_mask = mask[..., None] & gather_nodes(mask[..., None], neighbours).squeeze(-1)
    return Graph(torch.randn(2, 6, 8), torch.randn(2, 6, 4, 8), neighbours, mask, edge_mask)


def test_gather_nodes_looks_up_each_neighbour(graph):
    found = gather_nodes(graph.nodes, graph.neighbours)
    assert found.shape == (2, 6, 4, 8)
    for batch, residue, place in ((0, 0, 0), (1, 5, 3), (0, 2, 1)):
        neighbour = graph.neighbours[batch, residue, place]
        assert torch.equal(found[batch, residue, place], graph.nodes[batch, neighbour])


def test_gather_nodes_of_one_residue(graph):
    one = gather_nodes(graph.nodes, graph.neighbours[:, 3:4])
    assert torch.equal(one, gather_nodes(graph.nodes, graph.neighbours)[:, 3:4])


class TestEdgeEmbedding:
    embedding = EdgeEmbedding(8, 5, longest=3)
    geometry = torch.randn(1, 4, 4, 5)
    neighbours = torch.arange(4).expand(1, 4, 4)
    chains = torch.tensor([[0, 0, 1, 1]])
    places = torch.tensor([[0, 1, 0, 1]])

    def embed(self, chains=None, places=None):
        chains = self.chains if chains is None else chains
        return self.embedding(self.geometry, self.neighbours, chains, self.places if places is None else places)

    def test_shape(self):
        assert self.embed().shape == (1, 4, 4, 8)

    def test_only_differences_count(self):
        assert torch.equal(self.embed(), self.embed(self.chains + 7, self.places + 100))

    def test_places_in_other_chains_do_not_count(self):
        assert torch.equal(self.embed(), self.embed(places=torch.tensor([[0, 1, 50, 51]])))

    def test_long_offsets_are_alike(self):
        chains = torch.zeros_like(self.chains)
        near, far, farther = (self.embed(chains, torch.tensor([[0, 1, 2, last]])) for last in (4, 30, 90))
        assert torch.equal(far, farther)
        assert not torch.equal(near, far)

    def test_direction_counts(self):
        chains = torch.zeros_like(self.chains)
        assert not torch.equal(self.embed(chains), self.embed(chains, self.places.flip(1)))

    def test_another_chain_is_not_an_offset(self):
        assert not torch.equal(self.embed(), self.embed(torch.zeros_like(self.chains)))


def test_a_message_depends_on_its_own_edge_only(graph):
    message = Message(8, 8)
    changed = graph.edges.clone()
    changed[0, 1, 2] += 1.0
    difference = (message(graph.nodes, changed) - message(graph.nodes, graph.edges)).abs().sum(-1) > 0
    assert difference.nonzero().tolist() == [[0, 1, 2]]


class TestNodeUpdate:
    def test_masked_edges_say_nothing(self, graph):
        update = NodeUpdate(8, 8)
        noisy = torch.where(graph.edge_mask[..., None], graph.edges, 100.0)
        expected = update(graph.nodes, graph.edges, graph.mask, graph.edge_mask)
        assert torch.equal(update(graph.nodes, noisy, graph.mask, graph.edge_mask), expected)

    def test_residues_that_are_not_real_are_zero(self, graph):
        nodes = NodeUpdate(8, 8)(graph.nodes, graph.edges, graph.mask, graph.edge_mask)
        assert not nodes[~graph.mask].any()
        assert nodes[graph.mask].abs().sum(-1).min() > 0

    def test_the_order_of_neighbours_does_not_count(self, graph):
        update, order = NodeUpdate(8, 8), torch.tensor([2, 0, 3, 1])
        shuffled = update(graph.nodes, graph.edges[:, :, order], graph.mask, graph.edge_mask[:, :, order])
        torch.testing.assert_close(shuffled, update(graph.nodes, graph.edges, graph.mask, graph.edge_mask))

    def test_it_normalises_only_when_its_branches_end_in_zero(self, graph):
        update = NodeUpdate(8, 8)
        for layer in (update.message.output, update.feed_forward.down):
            torch.nn.init.zeros_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
        norm = torch.nn.LayerNorm(8)
        expected = norm(norm(graph.nodes)) * graph.mask[..., None]
        torch.testing.assert_close(update(graph.nodes, graph.edges, graph.mask, graph.edge_mask), expected)

    def test_messages_are_added_and_scaled(self, graph):
        update = NodeUpdate(8, 8, scale=5.0)
        torch.nn.init.zeros_(update.feed_forward.down.weight)
        torch.nn.init.zeros_(update.feed_forward.down.bias)
        everything = torch.ones_like(graph.edge_mask)
        messages = update.message(graph.nodes, graph.edges).sum(2) / 5.0
        norm = torch.nn.LayerNorm(8)
        expected = norm(norm(graph.nodes + messages)) * graph.mask[..., None]
        torch.testing.assert_close(update(graph.nodes, graph.edges, graph.mask, everything), expected)


class TestGraphBlock:
    def test_it_changes_nodes_and_edges_only(self, graph):
        new = GraphBlock(8)(graph)
        assert new.nodes.shape == graph.nodes.shape
        assert new.edges.shape == graph.edges.shape
        assert new.neighbours is graph.neighbours
        assert not torch.equal(new.nodes, graph.nodes)
        assert not torch.equal(new.edges, graph.edges)

    def test_names_of_residues_do_not_count(self, graph):
        block, order = GraphBlock(8), torch.tensor([3, 5, 0, 1, 4, 2])
        renamed = Graph(
            graph.nodes[:, order],
            graph.edges[:, order],
            order.argsort()[graph.neighbours[:, order]],
            graph.mask[:, order],
            graph.edge_mask[:, order],
        )
        expected, found = block(graph), block(renamed)
        torch.testing.assert_close(found.nodes, expected.nodes[:, order])
        torch.testing.assert_close(found.edges, expected.edges[:, order])

    def test_edges_see_the_new_nodes(self, graph):
        block = GraphBlock(8)
        torch.nn.init.zeros_(block.node_update.feed_forward_norm.weight)
        torch.nn.init.zeros_(block.node_update.feed_forward_norm.bias)  # all new nodes are zero
        moved = graph._replace(nodes=graph.nodes + torch.randn(2, 6, 8))
        torch.testing.assert_close(block(moved).edges, block(graph).edges)

    def test_dropout_acts_in_training_only(self, graph):
        block = GraphBlock(8, dropout=0.5)
        assert not torch.equal(block(graph).nodes, block(graph).nodes)
        block.eval()
        assert torch.equal(block(graph).nodes, block(graph).nodes)
