"""Structures: the backbones that models of structure read, from PDB and mmCIF files.

Lengths are in Å. Residue numbers, insertion codes and chain names are the authors', as in the file.
"""

from __future__ import annotations

import gzip
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from biotite import DeserializationError, InvalidFileError
from biotite.structure import AtomArray
from biotite.structure.io import pdb, pdbx
from jaxtyping import Bool, Float32, Int, Shaped
from numpy import ndarray

from pyrosys.errors import InputError

__all__ = ["ATOMS", "Structure", "read_structure"]

ATOMS = ("N", "CA", "C", "O")

RESIDUES = "ALA ARG ASN ASP CYS GLN GLU GLY HIS ILE LEU LYS MET PHE PRO SER THR TRP TYR VAL MSE"
LETTERS: dict[str, str] = dict(zip(RESIDUES.split(), "ARNDCQEGHILKMFPSTWYVM", strict=True))


@dataclass(frozen=True, eq=False)
class Structure:
    """The backbone and the sequence of one or more protein chains, residue by residue.

    Args:
        name: What to call it.
        sequence: One letter per residue, ``X`` where it is unknown or missing.
        chain_ids: The chain of each residue; the residues of a chain follow each other.
        residue_numbers: The number of each residue.
        insertion_codes: What tells residues of equal number apart; empty for most.
        coordinates: N, CA, C and O of each residue in Å, NaN where an atom is missing.

    Raises:
        InputError: The arguments do not have the same number of residues, or there are none.

    Example:
        >>> residues = np.array(["A", "A", "B"]), np.array([7, 8, 1]), np.array(["", "", ""])
        >>> structure = Structure("example", "GAS", *residues, np.zeros((3, 4, 3), np.float32))
        >>> len(structure), structure.chains, structure.select("B").sequence
        (3, ('A', 'B'), 'S')
    """

    name: str
    sequence: str
    chain_ids: Shaped[ndarray, " length"]
    residue_numbers: Int[ndarray, " length"]
    insertion_codes: Shaped[ndarray, " length"]
    coordinates: Float32[ndarray, "length 4 3"]

    def __post_init__(self) -> None:
        length = len(self.sequence)
        shapes = [self.chain_ids.shape, self.residue_numbers.shape, self.insertion_codes.shape, self.coordinates.shape]
        if not length or shapes != [(length,), (length,), (length,), (length, 4, 3)]:
            raise InputError(
                f"Expected at least 1 residue and arrays of shapes (length,), (length,), (length,) and (length, 4, 3), "
                f"found {length} letters and shapes {', '.join(map(str, shapes))}. Give one entry per residue."
            )

    def __len__(self) -> int:
        return len(self.sequence)

    @property
    def chains(self) -> tuple[str, ...]:
        """The names of the chains, in order."""
        return tuple(dict.fromkeys(self.chain_ids.tolist()))

    @property
    def labels(self) -> list[str]:
        """Number and insertion code of each residue, as in ``52A``."""
        return [f"{number}{code}" for number, code in zip(self.residue_numbers, self.insertion_codes, strict=True)]

    @property
    def mask(self) -> Bool[ndarray, " length"]:
        """Which residues have all four atoms."""
        return self.observed(ATOMS)

    @property
    def chain_index(self) -> Int[ndarray, " length"]:
        """The place of each residue's chain among the chains."""
        places = {chain: place for place, chain in enumerate(self.chains)}
        return np.array([places[chain] for chain in self.chain_ids.tolist()])

    @property
    def residue_index(self) -> Int[ndarray, " length"]:
        """The place of each residue along its chain, counting residues that are missing; chains follow each other."""
        steps = np.maximum(np.diff(self.residue_numbers), 1)  # an inserted residue is one further
        steps[np.diff(self.chain_index) != 0] = 1
        return np.concatenate([[0], steps.cumsum()])

    def observed(self, atoms: Sequence[str]) -> Bool[ndarray, " length"]:
        """Which residues have all of these atoms."""
        places = [ATOMS.index(atom) for atom in atoms]
        return np.isfinite(self.coordinates[:, places].sum(axis=(1, 2)))

    def where(self, residues: Mapping[str, Iterable[int | str]]) -> Bool[ndarray, " length"]:
        """Find residues by chain and number.

        Args:
            residues: For each chain, numbers, with an insertion code as in ``"52A"``.

        Returns:
            True for these residues.

        Raises:
            InputError: There is no such chain or residue.

        Example:
            >>> residues = np.array(["A", "A", "A"]), np.array([7, 8, 8]), np.array(["", "", "A"])
            >>> Structure("example", "GAS", *residues, np.zeros((3, 4, 3), np.float32)).where({"A": [7, "8A"]})
            array([ True, False,  True])
        """
        found = np.zeros(len(self), dtype=bool)
        place = {key: index for index, key in enumerate(zip(self.chain_ids.tolist(), self.labels, strict=True))}
        for chain, labels in residues.items():
            self._check_chains([chain])
            for label in labels:
                if (chain, str(label)) not in place:
                    numbers = self.residue_numbers[self.chain_ids == chain]
                    raise InputError(
                        f"Expected a residue of chain {chain}, numbered from {numbers.min()} to {numbers.max()} as in "
                        f"the file, found {label!r}. Write an insertion code after the number, as in '52A'."
                    )
                found[place[chain, str(label)]] = True
        return found

    def select(self, chains: str | Sequence[str]) -> Structure:
        """Keep these chains, in this order.

        Raises:
            InputError: There is no such chain.
        """
        chains = [chains] if isinstance(chains, str) else list(chains)
        self._check_chains(chains)
        keep = np.concatenate([np.flatnonzero(self.chain_ids == chain) for chain in dict.fromkeys(chains)])
        return Structure(
            self.name,
            "".join(self.sequence[index] for index in keep),
            self.chain_ids[keep],
            self.residue_numbers[keep],
            self.insertion_codes[keep],
            self.coordinates[keep],
        )

    def _check_chains(self, chains: Sequence[str]) -> None:
        if not chains or not set(chains) <= set(self.chains):
            raise InputError(
                f"Expected chains of {self.name} among {', '.join(self.chains)}, found {', '.join(chains) or 'none'}. "
                "Chains have the names that the authors gave them."
            )


def read_structure(
    path: str | Path,
    *,
    chains: str | Sequence[str] | None = None,
    model: int = 1,
    altloc: Literal["first", "occupancy"] = "first",
) -> Structure:
    """Read the protein chains of a PDB or mmCIF file, compressed with gzip or not.

    Residues are those of ATOM records, and selenomethionine, which counts as methionine. A jump in the numbers of a
    chain is filled with residues of unknown type without coordinates, so that what lies on both sides of a missing loop
    is not taken for neighbours in the sequence.

    Args:
        path: A file that ends in ``.pdb``, ``.ent``, ``.cif`` or ``.mmcif``, or one of these and ``.gz``.
        chains: The chains to keep, in this order; all by default.
        model: Which model to read, from 1.
        altloc: Of an atom in several places take the ``first`` in the file, or the residue's most occupied ones.

    Raises:
        InputError: The file is missing, of another kind or damaged, or it has no protein, no such model or chain.
    """
    path = Path(path)
    atoms = _read_atoms(path, model, altloc)
    residues: list[_Residue] = []
    for chain, members in _group(atoms).items():
        residues.extend(_fill_gaps(chain, members))
    if not residues:
        raise InputError(
            f"Expected at least 1 amino acid residue in {path}, found none. Pass a file with a protein chain."
        )
    ids, numbers, codes, letters, coordinates = zip(*residues, strict=True)
    name = path.name.removesuffix(".gz").rpartition(".")[0]
    structure = Structure(
        name, "".join(letters), np.array(ids), np.array(numbers), np.array(codes), np.stack(coordinates)
    )
    return structure if chains is None else structure.select(chains)


_Residue = tuple[str, int, str, str, ndarray]  # chain, number, insertion code, letter, coordinates


def _read_atoms(path: Path, model: int, altloc: Literal["first", "occupancy"]) -> AtomArray:
    """Read all atoms of a model, those in several places several times."""
    name = path.name.lower().removesuffix(".gz")
    if not name.endswith((".pdb", ".ent", ".cif", ".mmcif")):
        raise InputError(
            f"Expected a .pdb, .ent, .cif or .mmcif file, possibly with .gz, found {path}. Convert it first."
        )
    if altloc not in ("first", "occupancy"):
        raise InputError(f"Expected altloc to be 'first' or 'occupancy', found {altloc!r}. Choose one of them.")
    if not path.is_file():
        raise InputError(f"Expected a structure file at {path}, found none. Check the path.")
    choice = "all" if altloc == "first" else altloc  # "first" in biotite drops atoms that have only a second place
    try:
        with (gzip.open if path.suffix.lower() == ".gz" else open)(path, "rt") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about elements and unit cells, neither of which is read
            if name.endswith((".pdb", ".ent")):
                atoms = pdb.PDBFile.read(file).get_structure(model=model, altloc=choice)
            else:
                atoms = pdbx.get_structure(pdbx.CIFFile.read(file), model=model, altloc=choice)
    except (DeserializationError, InvalidFileError, EOFError, KeyError, IndexError, OSError, ValueError) as error:
        raise InputError(
            f"Expected a complete structure file with model {model} at {path}, found: {error}. "
            "The file may be empty, damaged or cut short: obtain it again."
        ) from error
    assert isinstance(atoms, AtomArray)  # a stack only when no model is named
    return atoms


def _group(atoms: AtomArray) -> dict[str, dict[tuple[int, str], tuple[str, ndarray]]]:
    """Gather letters and coordinates by chain, number and insertion code; the first of several atoms counts."""
    residue_names, atom_names, hetero = (atoms.get_annotation(name) for name in ("res_name", "atom_name", "hetero"))
    backbone = (~hetero | (residue_names == "MSE")) & np.isin(atom_names, ATOMS)
    columns = [atoms.get_annotation(name)[backbone].tolist() for name in ("chain_id", "res_id", "ins_code")]
    columns += [residue_names[backbone].tolist(), atom_names[backbone].tolist(), np.asarray(atoms.coord)[backbone]]
    chains: dict[str, dict[tuple[int, str], tuple[str, ndarray]]] = {}
    for chain, number, code, residue, atom, position in zip(*columns, strict=True):
        unseen = LETTERS.get(residue, "X"), np.full((len(ATOMS), 3), np.nan, dtype=np.float32)
        _, coordinates = chains.setdefault(chain, {}).setdefault((number, code), unseen)
        place = ATOMS.index(atom)
        if np.isnan(coordinates[place]).any():
            coordinates[place] = position
    return chains


def _fill_gaps(chain: str, members: dict[tuple[int, str], tuple[str, ndarray]]) -> Iterator[_Residue]:
    """Go through a chain by number and insertion code, with an unknown residue for each number that is left out."""
    previous = None
    for (number, code), (letter, coordinates) in sorted(members.items(), key=lambda item: item[0]):
        if letter == "X" and np.isnan(coordinates[ATOMS.index("CA")]).any():
            continue  # not an amino acid
        for missing in range(previous + 1, number) if previous is not None else ():
            yield chain, missing, "", "X", np.full_like(coordinates, np.nan)
        yield chain, number, code, letter, coordinates
        previous = number
