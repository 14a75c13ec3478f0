"""A simple clustering of sequences, for splits whose parts are not similar to each other.

It serves sets of up to some hundred thousand sequences, all of which it holds in memory. For larger ones, and for
thresholds below about 40 % identity, cluster with a tool made for that, such as MMseqs2, and give `prepare` its table.

1. Words: every run of five residues. In each group of sequences that share a word, every one is proposed as similar to
   the longest of the group and to its neighbour in length, so that the work grows with the number of residues, not of
   pairs.
2. Test: two sequences that were proposed by several words at about the same offset, and that share a stretch without
   gaps there, are aligned, locally, in a band around that offset. They are similar if enough of the aligned residues are
   equal, and the alignment covers enough of the shorter sequence.
3. Clusters are what is connected by similar pairs: no sequence was found similar to one of another cluster.

What is similar but shares few words is missed, and peptides of fewer than about ten residues are similar to equal ones
only.

Source:
    Steinegger and Söding 2018, https://doi.org/10.1038/s41467-018-04964-5, for groups around their longest sequence.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from biotite.sequence import ProteinSequence
from biotite.sequence.align import SubstitutionMatrix
from biotite.sequence.align.banded import align_banded
from jaxtyping import Int
from numpy import ndarray
from tqdm import tqdm

__all__ = ["cluster_sequences"]

WORD = 5
AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"
PROPOSALS = 2  # words on similar diagonals that have to propose a pair: one is often shared by chance
NEAR = 16  # how similar those diagonals are
BAND = 32  # on both sides of the diagonal
SCORE = 40  # of a stretch without gaps that both share, below which they are not aligned: about 8 equal residues
GAPS = (-11, -1)  # the usual penalties with BLOSUM62
PATIENCE = 3.0  # seconds before a progress bar appears


def cluster_sequences(
    sequences: Sequence[str], identity: float, coverage: float = 0.8, *, progress: bool = False
) -> Int[ndarray, " sequences"]:
    """Find which sequences belong together.

    Args:
        sequences: Upper-case letters.
        identity: Smallest share of equal residues among those aligned.
        coverage: Smallest share of the shorter sequence that is aligned.
        progress: Whether to show a progress bar on a terminal.

    Returns:
        For each sequence the place of the longest one in its cluster, the first if there are several.

    Example:
        >>> cluster_sequences(["MKTAYIAKQRQISF", "GSHMSTNPKPQRKT", "MKTAYIAKQRQISFVK"], identity=0.5)
        array([2, 1, 2])
    """
    firsts = {sequence: place for place, sequence in reversed(list(enumerate(sequences)))}
    ordered = sorted(firsts, key=lambda sequence: (-len(sequence), firsts[sequence]))
    encoded = [ProteinSequence(sequence.translate(_ALIGNABLE)) for sequence in ordered]
    roots = np.arange(len(ordered))
    pairs = tqdm(
        _propose(ordered),
        desc="cluster",
        unit="pair",
        delay=PATIENCE,
        disable=None if progress else True,
        leave=False,
    )
    for first, second, diagonal in pairs:
        one, other = sorted((_root(roots, first), _root(roots, second)))
        if one != other and _similar(encoded[first], encoded[second], int(diagonal), identity, coverage):
            roots[other] = one  # of the two roots, the longer sequence
    longest = {sequence: firsts[ordered[_root(roots, place)]] for place, sequence in enumerate(ordered)}
    return np.array([longest[sequence] for sequence in sequences], dtype=np.int64)


_MATRIX = SubstitutionMatrix.std_protein_matrix()
_ALIGNABLE = str.maketrans("UO", "CK")  # selenocysteine and pyrrolysine, which the matrix lacks
_CODES = np.full(128, -1, dtype=np.int64)
_CODES[[ord(letter) for letter in AMINO_ACIDS]] = np.arange(len(AMINO_ACIDS))


def _similar(one: ProteinSequence, other: ProteinSequence, diagonal: int, identity: float, coverage: float) -> bool:
    """Tell whether two sequences are similar, with or without gaps near a diagonal."""
    if _score_without_gaps(one.code, other.code, diagonal) < SCORE:
        return False
    band = (max(diagonal - BAND, 1 - len(one)), min(diagonal + BAND, len(other) - 1))
    (alignment,) = align_banded(one, other, _MATRIX, band, GAPS, local=True, max_number=1)
    trace = alignment.trace[(alignment.trace >= 0).all(axis=1)]
    equal = (one.code[trace[:, 0]] == other.code[trace[:, 1]]).sum()
    return len(trace) >= coverage * min(len(one), len(other)) and equal >= identity * len(trace)


def _score_without_gaps(one: Int[ndarray, " one"], other: Int[ndarray, " other"], diagonal: int) -> int:
    """The largest sum of scores over a stretch of the diagonal."""
    length = min(len(one) + min(diagonal, 0), len(other) - max(diagonal, 0))
    starts = max(-diagonal, 0), max(diagonal, 0)
    scores = _MATRIX.score_matrix()[one[starts[0] : starts[0] + length], other[starts[1] : starts[1] + length]]
    sums = np.concatenate([[0], np.cumsum(scores)])
    return int((sums - np.minimum.accumulate(sums)).max())


def _propose(sequences: Sequence[str]) -> Int[ndarray, "pairs 3"]:
    """Pairs of sequences, the longer one first, and the diagonal on which several words propose them.

    Pairs that the most words propose come first.

    Args:
        sequences: The longest first.
    """
    found = [_words(sequence) for sequence in sequences]
    owners = np.repeat(np.arange(len(found), dtype=np.int32), [len(words) for words, _ in found])
    words = np.concatenate([np.empty(0, np.int32), *(words for words, _ in found)])
    places = np.concatenate([np.empty(0, np.int32), *(places for _, places in found)])
    order = np.argsort(words, kind="stable")  # the owners of a word stay in order, the longest first
    words, owners, places = words[order], owners[order], places[order]
    start = np.maximum.accumulate(np.where(np.diff(words, prepend=-1) != 0, np.arange(len(words)), 0))
    member = np.arange(len(words))
    to_longest = np.stack([start, member])[:, member > start]
    to_previous = np.stack([member - 1, member])[:, member > start + 1]
    one, other = np.concatenate([to_longest, to_previous], axis=1)
    return _find_diagonals(owners[one], owners[other], places[other] - places[one])


def _find_diagonals(
    first: Int[ndarray, " words"], second: Int[ndarray, " words"], diagonal: Int[ndarray, " words"]
) -> Int[ndarray, "pairs 3"]:
    """Of the words that propose a pair, count those on similar diagonals, and drop pairs with too few of them."""
    order = np.lexsort((diagonal, second, first))
    rows = np.stack([first, second, diagonal], axis=1)[order]
    steps = np.diff(rows, axis=0, prepend=-1)
    starts = np.flatnonzero((steps[:, :2] != 0).any(axis=1) | (steps[:, 2] > NEAR))
    sizes = np.diff(starts, append=len(rows))
    middles = rows[starts + sizes // 2]
    enough = np.flatnonzero(sizes >= PROPOSALS)
    best = enough[np.argsort(-sizes[enough], kind="stable")]
    _, once = np.unique(middles[best, :2], axis=0, return_index=True)  # of each pair, the diagonal of the most words
    return middles[best[np.sort(once)]]


def _words(sequence: str) -> tuple[Int[ndarray, " words"], Int[ndarray, " words"]]:
    """The different words of a sequence as numbers, and where each is first; without those of unknown residues."""
    codes = _CODES[np.frombuffer(sequence.encode(), dtype=np.uint8)]
    if len(codes) < WORD:
        return np.empty(0, np.int32), np.empty(0, np.int32)
    windows = np.lib.stride_tricks.sliding_window_view(codes, WORD)
    known = np.flatnonzero((windows >= 0).all(axis=1))
    words, places = np.unique((windows @ len(AMINO_ACIDS) ** np.arange(WORD))[known], return_index=True)
    return words.astype(np.int32), known[places].astype(np.int32)


def _root(roots: Int[ndarray, " sequences"], place: int) -> int:
    """The representative of a cluster; the way there is cut short for next time."""
    while roots[place] != place:
        roots[place] = roots[roots[place]]
        place = int(roots[place])
    return int(place)
