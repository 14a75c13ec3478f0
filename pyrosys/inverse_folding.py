"""Inverse folding: the verbs of models that read a backbone and write a sequence, residue by residue in any order.

Log-probabilities are natural logarithms: at most 0, and higher is better. The reference implementations print their
negative, averaged, as "score".
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from pyrosys.errors import InputError
from pyrosys.model import Model
from pyrosys.modules.graph import Graph, gather_nodes
from pyrosys.structure import Structure

__all__ = ["Design", "InverseFolding", "Score", "decoded_before", "example_backbones"]

Config = TypeVar("Config")

RESIDUES_AT_ONCE = 2000  # bounds memory: the decoder needs several 100 kB for each
PATIENCE = 3.0  # seconds before a progress bar appears


@dataclass(frozen=True, eq=False)
class Score:
    """How well a sequence fits a backbone.

    Args:
        structure: The backbone.
        sequence: The sequence that was scored, one letter per residue of the structure.
        designed: The residues that count: the ones chosen, as far as they have coordinates.
        log_probabilities: Of each residue, given those decoded before it; averaged over decoding orders. NaN where a
            residue has no coordinates.
    """

    structure: Structure
    sequence: str
    designed: Bool[Tensor, " length"]
    log_probabilities: Float[Tensor, " length"]

    @property
    def average(self) -> float:
        """The mean log-probability of the residues that count."""
        return self.log_probabilities[self.designed].mean().item()

    @property
    def perplexity(self) -> float:
        """Among how many letters the model is undecided, on average; 1 is certainty."""
        return self.log_probabilities[self.designed].mean().neg().exp().item()

    @property
    def chain_averages(self) -> dict[str, float]:
        """The mean log-probability of the residues that count, for each chain that has some."""
        chains = {
            chain: self.designed & torch.from_numpy(self.structure.chain_ids == chain)
            for chain in self.structure.chains
        }
        return {chain: self.log_probabilities[those].mean().item() for chain, those in chains.items() if those.any()}

    @property
    def chains(self) -> dict[str, str]:
        """The sequence of each chain."""
        letters = np.array(list(self.sequence))
        ids = self.structure.chain_ids
        return {chain: "".join(letters[ids == chain]) for chain in self.structure.chains}


@dataclass(frozen=True, eq=False)
class Design(Score):
    """A sequence that a model wrote for a backbone.

    Args:
        temperature: What it was drawn at.
        seed: What reproduces it, as the only sample.
    """

    temperature: float
    seed: int

    @property
    def recovery(self) -> float:
        """The share of designed residues that are as in the structure; those of unknown type there are left out."""
        pairs = zip(self.sequence, self.structure.sequence, self.designed.tolist(), strict=True)
        same = [new == old for new, old, designed in pairs if designed and old != "X"]
        return sum(same) / len(same) if same else float("nan")


class InverseFolding(Model[Config]):
    """A model of a sequence given a backbone, in two parts: an encoder of the backbone, a decoder in any order.

    Attributes:
        alphabet: The letters, in the order of the model's output.
        atoms: The atoms that a residue needs in order to be seen.
    """

    alphabet: str
    atoms: Sequence[str]

    @abstractmethod
    def encode(
        self,
        coordinates: Float[Tensor, "batch length 4 3"],
        mask: Bool[Tensor, "batch length"],
        chain_index: Int[Tensor, "batch length"],
        residue_index: Int[Tensor, "batch length"],
    ) -> Graph:
        """Represent the backbone."""

    @abstractmethod
    def decode(
        self, graph: Graph, sequence: Int[Tensor, "batch length"], decoded: Bool[Tensor, "batch length count"]
    ) -> Float[Tensor, "batch length letters"]:
        """Log-probabilities of all residues at once, each from those of its neighbours that are decoded before it."""

    @abstractmethod
    def sample(
        self,
        graph: Graph,
        sequence: Int[Tensor, "batch length"],
        decoding_order: Int[Tensor, "batch length"],
        designed: Bool[Tensor, "batch length"],
        preference: Float[Tensor, "batch length letters"],
    ) -> tuple[Int[Tensor, "batch length"], Float[Tensor, "batch length letters"]]:
        """Write the designed residues one by one; also log-probabilities."""

    def score(
        self,
        structure: Structure,
        sequence: str | None = None,
        *,
        chains: Sequence[str] | None = None,
        fixed: Mapping[str, Iterable[int | str]] | None = None,
        samples: int = 1,
        seed: int = 0,
    ) -> Score:
        """Score a sequence on a backbone.

        Args:
            structure: The backbone.
            sequence: One letter per residue of the structure, the structure's own by default. Chains may be set apart
                by ``/``.
            chains: The chains that count; all by default. The others are given, decoded before.
            fixed: Residues of these chains that are given too: numbers by chain, as in ``{"A": [7, "52A"]}``.
            samples: Random decoding orders to average over.
            seed: Seed of the first order; each order has the next.

        Raises:
            InputError: The sequence, a chain or a residue does not fit the structure, or nothing is left to score.
        """
        log_probabilities = self.log_probabilities(
            structure, sequence, chains=chains, fixed=fixed, samples=samples, seed=seed
        )
        designed = self._designed(structure, chains, fixed)
        return Score(*self._fit(structure, self._tokens(structure, sequence), designed, log_probabilities.mean(0)))

    def log_probabilities(
        self,
        structure: Structure,
        sequence: str | None = None,
        *,
        chains: Sequence[str] | None = None,
        fixed: Mapping[str, Iterable[int | str]] | None = None,
        samples: int = 1,
        seed: int = 0,
    ) -> Float[Tensor, "samples length letters"]:
        """Log-probabilities of every letter at each residue, given the backbone and the residues decoded before it.

        What is decoded before is random, but for residues outside ``chains`` and ``fixed`` ones, which come first.
        Arguments and errors are those of ``score``.
        """
        tokens = self._tokens(structure, sequence).to(self.device)
        designed = self._designed(structure, chains, fixed)
        orders = torch.stack([_decoding_order(designed, draw) for draw in _generators(samples, seed)])
        graph = self._encode(structure)
        results = []
        for order in orders.to(self.device).split(_at_once(structure)):
            batch = _repeat(graph, len(order))
            with self._evaluation():
                decoded = decoded_before(order, batch.neighbours)
                results.append(self.decode(batch, tokens.expand_as(order), decoded))
        return torch.cat(results).to("cpu", self._precision)

    def unconditional(self, structure: Structure) -> Float[Tensor, "length letters"]:
        """Log-probabilities of every letter at each residue, given the backbone and no residue at all."""
        graph = self._encode(structure)
        tokens = self._tokens(structure, None).to(self.device)  # none of them is seen
        with self._evaluation():
            result = self.decode(graph, tokens[None], torch.zeros_like(graph.edge_mask))
        return result.squeeze(0).to("cpu", self._precision)

    def design(
        self,
        structure: Structure,
        *,
        chains: Sequence[str] | None = None,
        fixed: Mapping[str, Iterable[int | str]] | None = None,
        temperature: float = 0.1,
        samples: int = 1,
        seed: int = 0,
        omit: str = "X",
        bias: Mapping[str, float] | Float[Tensor, "length letters"] | None = None,
    ) -> list[Design]:
        """Write sequences for a backbone.

        Args:
            structure: The backbone; its sequence is kept wherever nothing is designed.
            chains: The chains to design; all by default.
            fixed: Residues of these chains to keep: numbers by chain, as in ``{"A": [7, "52A"]}``.
            temperature: Small for probable sequences, 1 for the model's own distribution, 0 for the best letter at each
                step.
            samples: How many sequences.
            seed: Seed of the first; each has the next, so that more samples begin with the same ones.
            omit: Letters that are never written.
            bias: What to add to the log-probabilities, by letter or by residue and letter, before the temperature.

        Raises:
            InputError: An argument is out of range or does not fit the structure, or nothing is left to design.
        """
        if not 0 <= temperature < float("inf"):
            raise InputError(f"Expected a temperature of at least 0, found {temperature}. The usual one is 0.1.")
        native = self._tokens(structure, None)
        designed = self._designed(structure, chains, fixed)
        preference = self._preference(len(structure), omit, bias)
        generators = _generators(samples, seed)
        graph = self._encode(structure)
        designs: list[Design] = []
        with tqdm(total=samples, unit="sequence", delay=PATIENCE, leave=False, disable=None) as progress:
            for start in range(0, samples, _at_once(structure)):
                draws = generators[start : start + _at_once(structure)]
                orders = torch.stack([_decoding_order(designed, draw) for draw in draws])
                noise = torch.stack([_gumbel(preference.shape, draw) for draw in draws])
                with self._evaluation():
                    written, log_probabilities = self.sample(
                        _repeat(graph, len(orders)),
                        native.expand_as(orders).to(self.device),
                        orders.to(self.device),
                        designed.expand_as(orders).to(self.device),
                        (preference + temperature * noise).to(self.device),
                    )
                for tokens, scores in zip(written.cpu(), log_probabilities.cpu(), strict=True):
                    fit = self._fit(structure, tokens, designed, scores)
                    designs.append(Design(*fit, temperature=temperature, seed=seed + len(designs)))
                progress.update(len(draws))
        return designs

    @property
    def _precision(self) -> torch.dtype:
        """The parameters' own, but no less than float32: distances in half precision are wrong by tenths of an Å."""
        return torch.promote_types(next(self.parameters()).dtype, torch.float32)

    @contextmanager
    def _evaluation(self) -> Iterator[None]:
        """Run without dropout and gradients, and leave the model as it was."""
        training = self.training
        self.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.train(training)

    def _encode(self, structure: Structure) -> Graph:
        """Encode a structure as a batch of one."""
        coordinates = torch.from_numpy(np.nan_to_num(structure.coordinates)).to(self.device, self._precision)
        indices = (self._observed(structure), structure.chain_index, structure.residue_index)
        batch = (torch.from_numpy(index).to(self.device)[None] for index in indices)
        with self._evaluation():
            return self.encode(coordinates[None], *batch)

    def _observed(self, structure: Structure) -> Bool[np.ndarray, " length"]:
        """Find the residues with all atoms that the model needs."""
        observed = structure.observed(self.atoms)
        if not observed.any():
            raise InputError(
                f"Expected residues with {', '.join(self.atoms)}, found none in {structure.name}. "
                "For structures of CA atoms only there are models of CA only."
            )
        return observed

    def _tokens(self, structure: Structure, sequence: str | None) -> Int[Tensor, " length"]:
        """Turn a sequence, or the structure's own, into letters by their place in the alphabet."""
        letters = structure.sequence if sequence is None else sequence.replace("/", "")
        unknown = sorted(set(letters) - set(self.alphabet))
        if unknown or len(letters) != len(structure):
            raise InputError(
                f"Expected a sequence of {len(structure)} letters among {self.alphabet}, one for each residue of "
                f"{structure.name}, found {len(letters)} letters{', with ' + ''.join(unknown) if unknown else ''}. "
                "Start from the sequence of the structure, which has an X for each missing residue."
            )
        return torch.tensor([self.alphabet.index(letter) for letter in letters])

    def _designed(
        self,
        structure: Structure,
        chains: Sequence[str] | None,
        fixed: Mapping[str, Iterable[int | str]] | None,
    ) -> Bool[Tensor, " length"]:
        """Find the residues to score or design: those of the chosen chains that are seen and not fixed."""
        chosen = np.isin(structure.chain_ids, structure.select(structure.chains if chains is None else chains).chains)
        designed = chosen & self._observed(structure) & ~structure.where(fixed or {})
        if not designed.any():
            raise InputError(
                f"Expected at least 1 residue of {structure.name} that is not fixed and has coordinates, found none in "
                f"chains {', '.join(structure.chains if chains is None else chains)}. Choose other chains or fix less."
            )
        return torch.from_numpy(designed)

    def _preference(
        self, length: int, omit: str, bias: Mapping[str, float] | Tensor | None
    ) -> Float[Tensor, "length letters"]:
        """Gather what is added to the log-probabilities by choice."""
        letters = set(omit) | (set(bias) if isinstance(bias, Mapping) else set())
        if not letters <= set(self.alphabet) or set(self.alphabet) <= set(omit):
            raise InputError(
                f"Expected letters among {self.alphabet}, not all of them omitted, found {''.join(sorted(letters))}. "
                "Write letters in upper case and leave some to choose from."
            )
        preference = torch.zeros(length, len(self.alphabet), dtype=self._precision)
        if isinstance(bias, Mapping):
            preference += torch.tensor([float(bias.get(letter, 0.0)) for letter in self.alphabet])
        elif bias is not None:
            if bias.shape != preference.shape:
                raise InputError(
                    f"Expected a bias of shape {tuple(preference.shape)}, found {tuple(bias.shape)}. "
                    "Give one number for each residue and letter."
                )
            preference += bias.cpu()
        preference[:, [self.alphabet.index(letter) for letter in omit]] = -torch.inf
        return preference

    def _fit(
        self,
        structure: Structure,
        tokens: Int[Tensor, " length"],
        designed: Bool[Tensor, " length"],
        log_probabilities: Float[Tensor, "length letters"],
    ) -> tuple[Structure, str, Bool[Tensor, " length"], Float[Tensor, " length"]]:
        """Pick the log-probabilities of the letters of a sequence."""
        picked = log_probabilities.gather(1, tokens[:, None]).squeeze(1)
        unseen = torch.from_numpy(~self._observed(structure))
        sequence = "".join(self.alphabet[token] for token in tokens.tolist())
        return structure, sequence, designed, picked.masked_fill(unseen, torch.nan)


def decoded_before(
    decoding_order: Int[Tensor, "batch length"], neighbours: Int[Tensor, "batch length count"]
) -> Bool[Tensor, "batch length count"]:
    """Tell which neighbours of each residue are decoded before it.

    Args:
        decoding_order: Residues in the order in which they are decoded.
        neighbours: Neighbours of each residue.

    Example:
        >>> decoded_before(torch.tensor([[2, 0, 1]]), torch.tensor([[[0, 1, 2], [1, 2, 0], [2, 0, 1]]]))
        tensor([[[False, False,  True],
                 [False,  True,  True],
                 [False, False, False]]])
    """
    rank = decoding_order.argsort(-1)[..., None]
    return gather_nodes(rank, neighbours).squeeze(-1) < rank


def example_backbones(generator: torch.Generator, length: int) -> tuple[Tensor, ...]:
    """Two random backbones of two chains as ``forward`` takes them: coordinates, letters, mask, chains, places, order.

    A few residues in each have no coordinates.
    """
    alpha, *others = F.normalize(torch.randn(4, 2, length, 3, generator=generator), dim=-1)
    alpha = 3.8 * alpha.cumsum(1)  # a walk in bonds between CA atoms
    nitrogen, carbon, oxygen = (alpha + 1.5 * other for other in others)
    mask = torch.ones(2, length, dtype=torch.bool)
    mask[0, 2] = mask[1, 4:6] = False
    place = torch.arange(length).expand(2, -1)
    return (
        torch.stack([nitrogen, alpha, carbon, oxygen], 2),
        torch.randint(20, (2, length), generator=generator),
        mask,
        (place >= torch.tensor([[length // 2], [length // 3]])).long(),
        place.contiguous(),
        torch.rand(2, length, generator=generator).argsort(-1),
    )


def _generators(samples: int, seed: int) -> list[torch.Generator]:
    """One source of random numbers for each sample, so that no sample depends on how many there are."""
    if samples < 1:
        raise InputError(f"Expected at least 1 sample, found {samples}. Ask for one or more.")
    return [torch.Generator().manual_seed(seed + sample) for sample in range(samples)]


def _decoding_order(designed: Bool[Tensor, " length"], generator: torch.Generator) -> Int[Tensor, " length"]:
    """Put the residues in random order, those that are given before those that are designed."""
    return (designed + torch.rand(len(designed), generator=generator)).argsort()


def _gumbel(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Noise that makes the largest of several sums, log-probability plus noise, a draw from the distribution.

    Source:
        Gumbel 1954: the maximum of ``log p + noise`` is at each letter with probability ``p``.
    """
    return -torch.empty(shape).exponential_(generator=generator).log()


def _at_once(structure: Structure) -> int:
    """How many samples to compute together."""
    return max(1, RESIDUES_AT_ONCE // len(structure))


def _repeat(graph: Graph, count: int) -> Graph:
    """Repeat a batch of one without a copy."""
    return Graph(*(tensor.expand(count, *tensor.shape[1:]) for tensor in graph))
