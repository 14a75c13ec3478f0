"""Masked language models of protein sequences: what can be asked of any of them.

Positions are counted from 1, as in the names of mutations. Log-probabilities are natural logarithms, normalised over
the whole vocabulary. Results are on the CPU and carry no special tokens.
"""

from __future__ import annotations

import math
import re
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import ClassVar, Literal, NamedTuple, TypeVar, overload

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm import tqdm

from pyrosys.alphabet import Alphabet
from pyrosys.errors import InputError
from pyrosys.model import Model

__all__ = ["MaskedLanguageModel"]

Config = TypeVar("Config")
Residues = list[str]
Pool = Literal["mean", "cls"]
Method = Literal["masked-marginal", "wildtype-marginal"]
Compute = Callable[[Tensor], Tensor]  # a batch of tokens to a tensor of as many rows
Cut = Callable[[Tensor, int], Tensor]  # a row, and the number of residues in it, to what belongs to the sequence

READ_AHEAD = 16  # batches' worth of sequences that are sorted by length together
PATIENCE = 3.0  # seconds before a progress bar appears


class Mutation(NamedTuple):
    """A residue changed into another; ``place`` counts from 0."""

    place: int
    wild_type: str
    mutant: str


class MaskedLanguageModel(Model[Config]):
    """A model that predicts hidden residues from the others: ``forward`` turns tokens into logits.

    The verbs below take sequences of any lengths and run them in batches of similar length. A batch has at most
    ``batch_tokens`` tokens, padding and special tokens included, or a single sequence. A collection of sequences gives
    all results at once; an iterator gives an iterator, which reads a little ahead and keeps nothing, so there is no
    end to what can go through it.
    """

    alphabet: ClassVar[Alphabet]
    layers: nn.ModuleList

    @property
    @abstractmethod
    def longest(self) -> int | None:
        """Largest number of residues, if there is one."""

    @abstractmethod
    def encode(
        self, tokens: Int[Tensor, "batch length"], layer: int | None = None
    ) -> Float[Tensor, "batch length width"]:
        """Represent tokens by the output of the first ``layer`` layers, or of all of them."""

    def example(self, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Two sequences as tokens, one of them with a hidden residue and one with padding."""
        letters, mask = self.alphabet.letters, self.alphabet.mask
        whole, short = ([letters[int(n)] for n in torch.randint(20, (size,), generator=generator)] for size in (7, 4))
        return (self.alphabet.collate([[*whole[:2], mask, *whole[3:]], short]),)

    @overload
    def embed(
        self, sequences: Iterator[str], *, layer: int = ..., pool: Pool | None = ..., batch_tokens: int = ...
    ) -> Iterator[Tensor]: ...
    @overload
    def embed(
        self, sequences: Collection[str], *, layer: int = ..., pool: None = ..., batch_tokens: int = ...
    ) -> list[Tensor]: ...
    @overload
    def embed(self, sequences: Collection[str], *, layer: int = ..., pool: Pool, batch_tokens: int = ...) -> Tensor: ...
    def embed(
        self,
        sequences: Iterable[str],
        *,
        layer: int = -1,
        pool: Pool | None = None,
        batch_tokens: int = 4096,
    ) -> Iterator[Tensor] | list[Tensor] | Tensor:
        """Represent sequences by vectors.

        Args:
            sequences: One-letter codes.
            layer: 0 is what goes into the first layer, 1 what comes out of it, and -1 what comes out of the last.
            pool: ``"mean"`` for the mean over residues, ``"cls"`` for the vector at the start token, ``None`` for one
                vector per residue.
            batch_tokens: Largest number of tokens in a batch.

        Returns:
            One tensor per sequence, ``(length, width)``; pooled, one tensor ``(sequences, width)``.

        Raises:
            InputError: A sequence is empty, too long or has an unknown letter, or there is no such layer or pooling.

        Example:
            >>> from pyrosys.zoo.esm import ESM, ESMConfig
            >>> model = ESM(ESMConfig(layers=2, width=16, heads=4))
            >>> [embedding.shape for embedding in model.embed(["MKTAYI", "GS"])]
            [torch.Size([6, 16]), torch.Size([2, 16])]
            >>> model.embed(["MKTAYI", "GS"], pool="mean").shape
            torch.Size([2, 16])
        """
        depth = len(self.layers)
        if not -depth - 1 <= layer <= depth:
            raise InputError(f"Expected a layer from {-depth - 1} to {depth}, found {layer}. Choose one of them.")
        cuts: dict[str | None, Cut] = {
            None: _cut_residues,
            "mean": lambda x, length: _cut_residues(x, length).mean(0),
            "cls": lambda x, length: x[0],
        }
        if pool not in cuts:
            raise InputError(f"Expected pool to be 'mean', 'cls' or None, found {pool!r}. Choose one of them.")
        layer %= depth + 1
        results = self._run(sequences, lambda tokens: self.encode(tokens, layer), cuts[pool], batch_tokens)
        return torch.stack(results) if pool is not None and isinstance(results, list) and results else results

    @overload
    def logits(self, sequences: Iterator[str], *, batch_tokens: int = ...) -> Iterator[Tensor]: ...
    @overload
    def logits(self, sequences: Collection[str], *, batch_tokens: int = ...) -> list[Tensor]: ...
    def logits(self, sequences: Iterable[str], *, batch_tokens: int = 4096) -> Iterator[Tensor] | list[Tensor]:
        """Predict every residue, in the order of ``alphabet.tokens``.

        Args:
            sequences: One-letter codes, with ``<mask>`` for a residue to be predicted from the others alone.
            batch_tokens: Largest number of tokens in a batch.

        Returns:
            One tensor per sequence, ``(length, vocabulary)``.

        Raises:
            InputError: A sequence is empty, too long or has an unknown letter.
        """
        return self._run(sequences, self, _cut_residues, batch_tokens)

    @overload
    def score(self, sequence: str, mutations: str, method: Method = ..., *, batch_tokens: int = ...) -> float: ...
    @overload
    def score(
        self, sequence: str, mutations: list[str], method: Method = ..., *, batch_tokens: int = ...
    ) -> list[float]: ...
    def score(
        self,
        sequence: str,
        mutations: str | list[str],
        method: Method = "masked-marginal",
        *,
        batch_tokens: int = 4096,
    ) -> float | list[float]:
        """Score variants by the sum, over mutated positions, of log p(mutant) − log p(wild type).

        A positive score means that the model prefers the variant to the wild type.

        Args:
            sequence: The wild type.
            mutations: One variant, or several: ``"A42G"`` for alanine 42 to glycine, ``"A42G:L55F"`` for two at once.
            method: ``"masked-marginal"`` hides the mutated positions of a variant, all together, before it predicts
                them. ``"wildtype-marginal"`` predicts them from the whole wild type, once for all variants.
            batch_tokens: Largest number of tokens in a batch.

        Returns:
            One score per variant.

        Raises:
            InputError: A variant cannot be read or does not fit the sequence, the sequence cannot be used, or there is
                no such method.

        Source:
            Meier et al. 2021, https://doi.org/10.1101/2021.07.09.450648.

        Example:
            >>> from pyrosys.zoo.esm import ESM, ESMConfig
            >>> model = ESM(ESMConfig(layers=2, width=16, heads=4))
            >>> model.score("MKTAYI", "K2K")  # the wild type is as good as itself
            0.0
            >>> len(model.score("MKTAYI", ["K2R", "K2R:A4G"]))
            2
        """
        if method not in ("masked-marginal", "wildtype-marginal"):
            raise InputError(f"Expected method 'masked-marginal' or 'wildtype-marginal', found {method!r}. Choose one.")
        (residues,) = self._read([sequence])
        variants = [
            _read_variant(name, residues, self.alphabet)
            for name in ([mutations] if isinstance(mutations, str) else mutations)
        ]
        sharing: dict[tuple[int, ...], list[int]] = {}  # which variants are predicted from the same hidden positions
        for number, variant in enumerate(variants):
            hidden = tuple(sorted(mutation.place for mutation in variant)) if method == "masked-marginal" else ()
            sharing.setdefault(hidden, []).append(number)
        scores = [0.0] * len(variants)
        index = self.alphabet.index
        for hidden, prediction in self._predict(residues, list(sharing), batch_tokens):
            for number in sharing[hidden]:
                scores[number] = sum(
                    float(prediction[place, index[mutant]] - prediction[place, index[wild_type]])
                    for place, wild_type, mutant in variants[number]
                )
        return scores[0] if isinstance(mutations, str) else scores

    def pseudo_perplexity(self, sequence: str, *, batch_tokens: int = 4096) -> float:
        """How many residues the model hesitates between, on average, when it predicts each from all the others.

        It is the exponential of the mean of −log p over residues, each hidden in turn: 1 at best, and 20 for a guess
        among the amino acids.

        Args:
            sequence: One-letter codes.
            batch_tokens: Largest number of tokens in a batch.

        Raises:
            InputError: The sequence is empty or too long, or has an unknown letter or a residue that is hidden already.

        Source:
            Salazar et al. 2020, https://doi.org/10.18653/v1/2020.acl-main.240.
        """
        (residues,) = self._read([sequence])
        if self.alphabet.mask in residues:
            raise InputError(
                f"Expected a sequence without {self.alphabet.mask}, found one at position "
                f"{residues.index(self.alphabet.mask) + 1}. Write the residue that it hides."
            )
        predictions = self._predict(residues, [(place,) for place in range(len(residues))], batch_tokens)
        total = sum(
            float(prediction[place, self.alphabet.index[residues[place]]]) for (place,), prediction in predictions
        )
        return math.exp(-total / len(residues))

    def _read(self, sequences: Iterable[str]) -> Iterator[Residues]:
        """Split sequences into residues and check their lengths."""
        if isinstance(sequences, str):
            raise InputError("Expected several sequences, found a single string. Put it in a list.")
        for number, sequence in enumerate(sequences, start=1):
            try:
                residues = self.alphabet.split(sequence)
            except InputError as error:
                raise InputError(f"In sequence {number}: {error}") from None
            if self.longest is not None and len(residues) > self.longest:
                raise InputError(
                    f"In sequence {number}: Expected at most {self.longest} residues, the positions this model has "
                    f"learned, found {len(residues)}. Cut it into parts, or use a model with rotary positions."
                )
            yield residues

    def _run(
        self, sequences: Iterable[str], compute: Compute, cut: Cut, batch_tokens: int
    ) -> list[Tensor] | Iterator[Tensor]:
        """Compute something of every sequence: an iterator's one by one, a collection's all at once."""
        if isinstance(sequences, Iterator):
            return self._stream(self._read(sequences), compute, cut, batch_tokens)
        residues = list(self._read(sequences))  # find errors before the work
        return list(self._stream(residues, compute, cut, batch_tokens, total=len(residues)))

    def _predict(
        self, residues: Residues, contexts: Sequence[tuple[int, ...]], batch_tokens: int
    ) -> Iterator[tuple[tuple[int, ...], Float[Tensor, "length vocabulary"]]]:
        """Predict all residues of a sequence, as log-probabilities, once for each set of places to be hidden."""
        masked = (
            [self.alphabet.mask if place in hidden else residue for place, residue in enumerate(residues)]
            for hidden in contexts
        )
        results = self._stream(masked, self, _cut_residues, batch_tokens, total=len(contexts))
        for hidden, logits in zip(contexts, results, strict=True):
            yield hidden, logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)

    def _stream(
        self, sequences: Iterable[Residues], compute: Compute, cut: Cut, batch_tokens: int, total: int | None = None
    ) -> Iterator[Tensor]:
        """Compute something of every sequence, in batches of similar length, and yield it in the order of arrival."""
        with tqdm(total=total, unit="sequence", delay=PATIENCE, leave=False, disable=None) as progress:
            for window in _windows(sequences, READ_AHEAD * batch_tokens):
                results: dict[int, Tensor] = {}
                for batch in _batches(window, batch_tokens):
                    tokens = self.alphabet.collate([window[number] for number in batch]).to(self.device)
                    with torch.inference_mode():
                        rows = compute(tokens)
                        kept = [cut(row, len(window[number])) for number, row in zip(batch, rows, strict=True)]
                    # Copied outside inference mode, they can be trained on, and do not hold on to the batch.
                    results.update(zip(batch, (row.to("cpu", copy=True) for row in kept), strict=True))
                    progress.update(len(batch))
                for number in range(len(window)):
                    yield results.pop(number)


def _cut_residues(row: Float[Tensor, "length ..."], residues: int) -> Float[Tensor, "residues ..."]:
    return row[1 : residues + 1]


def _windows(sequences: Iterable[Residues], tokens: int) -> Iterator[list[Residues]]:
    """Collect sequences until they are ``tokens`` long together."""
    window: list[Residues] = []
    size = 0
    for residues in sequences:
        window.append(residues)
        size += len(residues) + 2
        if size >= tokens:
            yield window
            window, size = [], 0
    if window:
        yield window


def _batches(window: Sequence[Residues], tokens: int) -> Iterator[list[int]]:
    """Group sequences of similar length, named by their places in ``window``, so that padded they fit in ``tokens``."""
    batch: list[int] = []
    for number in sorted(range(len(window)), key=lambda number: len(window[number])):
        longest = len(window[number]) + 2
        if batch and (len(batch) + 1) * longest > tokens:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def _read_variant(name: str, residues: Residues, alphabet: Alphabet) -> list[Mutation]:
    """Read a variant such as ``A42G:L55F``, and check it against the wild type."""
    variant: dict[int, Mutation] = {}
    for part in name.split(":"):
        match = re.fullmatch(r"(\D)([1-9]\d*)(\D)", part)
        if match is None or match[3] not in alphabet.letters:
            raise InputError(
                f"Expected mutations such as A42G, or A42G:L55F for several at once, found {part!r} in {name!r}. "
                f"Write them in the letters {alphabet.letters}."
            )
        wild_type, position, mutant = match[1], int(match[2]), match[3]
        if position > len(residues):
            raise InputError(
                f"Expected a position from 1 to {len(residues)}, found {position} in {name!r}. Count from 1 along the "
                "sequence that is passed."
            )
        if residues[position - 1] != wild_type:
            raise InputError(
                f"Expected {residues[position - 1]} at position {position}, as in the sequence, found {wild_type} in "
                f"{name!r}. Count from 1 along the sequence that is passed."
            )
        if position - 1 in variant:
            raise InputError(f"Expected one mutation at position {position}, found two in {name!r}. Leave one out.")
        variant[position - 1] = Mutation(position - 1, wild_type, mutant)
    return list(variant.values())
