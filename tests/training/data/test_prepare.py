"""Preparation: what goes in comes out once, whatever happens on the way."""

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import pyrosys
from pyrosys.cli import main
from pyrosys.errors import InputError
from pyrosys.training.data import Dataset, prepare
from tests.training.data.conftest import random_sequences, write_fasta

DATA = Path(__file__).parents[2] / "data"
COLUMNS = ["name", "sequence", "cluster", "split", "digest"]


def rows(folder: Path, *columns: str) -> list[dict[str, object]]:
    dataset = Dataset(folder)
    return dataset.read(range(len(dataset)), columns or COLUMNS)


def test_sequences_are_cleaned_and_counted(tmp_path: Path) -> None:
    (tmp_path / "a.fasta").write_text(
        ">one a protein\nMKTA\nyi*\n>two\nMK-T\n> three\nGSHMMM\n\n>four\nMKTAYI\n>five\nGS\n"
    )
    manifest = prepare(tmp_path / "a.fasta", tmp_path / "set", shortest=3)
    assert [(row["name"], row["sequence"]) for row in rows(tmp_path / "set")] == [
        ("one", "MKTAYI"),
        ("three", "GSHMMM"),
    ]
    assert (manifest["items"], manifest["residues"], manifest["repeated"]) == (2, 12, 1)
    assert manifest["rejected"] == {"letter '-'": 1, "shorter than 3": 1}
    assert manifest["rejected_examples"]["letter '-'"] == ["two"]
    assert Dataset(tmp_path / "set").lengths.tolist() == [6, 6]


@pytest.mark.parametrize("format", ["parquet", "arrow"])
def test_structures_keep_their_coordinates(format: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "1ubq.cif.gz").write_bytes(gzip.compress((DATA / "1ubq.cif").read_bytes()))
    (tmp_path / "in" / "broken.pdb").write_text("ATOM")
    write_fasta(tmp_path / "in" / "more.fasta", ["GSHM"])
    manifest = prepare(tmp_path / "in", tmp_path / "set", format=format)  # type: ignore[arg-type]
    assert sum(manifest["rejected"].values()) == 1
    found, sequence = rows(tmp_path / "set", "name", "sequence", "coordinates", "mask", "chain")
    structure = pyrosys.read_structure(DATA / "1ubq.cif")
    assert (found["name"], found["sequence"]) == ("1ubq_A", structure.sequence)
    np.testing.assert_array_equal(found["coordinates"], structure.coordinates)
    np.testing.assert_array_equal(found["mask"], structure.mask)
    assert not np.asarray(found["chain"]).any()
    assert sequence["coordinates"] is None


def test_chains_of_a_structure_are_items_or_one(tmp_path: Path) -> None:
    lines = [line for line in (DATA / "1ubq.pdb").read_text().splitlines() if line.startswith("ATOM")]
    twice = lines + [f"{line[:21]}B{line[22:]}" for line in lines[:400]]
    (tmp_path / "two.pdb").write_text("\n".join([*twice, "END"]) + "\n")
    prepare(tmp_path / "two.pdb", tmp_path / "chains", identity=None)
    prepare(tmp_path / "two.pdb", tmp_path / "complex", identity=None, complexes=True)
    chains = rows(tmp_path / "chains", "name", "sequence")
    (whole,) = rows(tmp_path / "complex", "name", "sequence", "chain")
    assert [row["name"] for row in chains] == ["two_A", "two_B"]
    assert whole["sequence"] == "".join(str(row["sequence"]) for row in chains)
    assert np.diff(np.asarray(whole["chain"])).sum() == 1


def test_tables_bring_clusters_splits_and_labels(tmp_path: Path) -> None:
    table = "id\tseq\tgroup\tsplit\tscore\n1\tMKTA\tx\ttrain\t0.5\n2\tMKTA\tx\ttrain\t0.7\n3\tGS\ty\ttest\t\n4\tGA\ty\tother\t1\n"
    (tmp_path / "a.tsv").write_text(table)
    columns = {"name": "id", "sequence": "seq", "cluster": "group", "label": "score"}
    manifest = prepare(tmp_path / "a.tsv", tmp_path / "set", columns=columns)
    found = rows(tmp_path / "set", "name", "cluster", "split", "label")
    assert [(row["name"], row["cluster"], row["split"], row["label"]) for row in found] == [
        ("1", "x", "train", 0.5),
        ("2", "x", "train", 0.7),  # equal sequences with different labels are different items
        ("3", "y", "test", None),
    ]
    assert manifest["rejected"] == {"split 'other'": 1}


@pytest.mark.parametrize(
    ("text", "label"), [("HHEC", "HHEC"), ("1 2 3 4.5", [1.0, 2.0, 3.0, 4.5]), ("cytoplasm", "cytoplasm"), ("2", 2.0)]
)
def test_kinds_of_labels(text: str, label: object, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"sequence,label\nGS,\nMKTA,{text}\n")
    prepare(tmp_path / "a.csv", tmp_path / "set")
    found = rows(tmp_path / "set", "label")[1]["label"]
    assert found == label if not isinstance(label, list) else np.asarray(found).tolist() == label


def test_similar_sequences_are_in_one_cluster_and_split(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    sequences = random_sequences(40, longest=200)
    families = [text for text in sequences if len(text) > 60]
    for text in families:
        letters = np.array(list(text))
        changed = generator.random(len(text)) < 0.2
        letters[changed] = generator.choice(list("ACDEFGHIKLMNPQRSTVWY"), changed.sum())
        sequences.append("".join(letters)[3:-3])
    manifest = prepare(write_fasta(tmp_path / "a.fasta", sequences), tmp_path / "set", fractions=(0.5, 0.25, 0.25))
    found = rows(tmp_path / "set")
    cluster = {row["sequence"]: row["cluster"] for row in found}
    assert all(cluster[text] == cluster[other] for text, other in zip(families, sequences[40:], strict=True))
    assert manifest["clusters"] == 40
    assert len({(row["cluster"], row["split"]) for row in found}) == 40
    assert {row["split"] for row in found} == {"train", "validation", "test"}


def test_a_table_of_clusters_is_used(tmp_path: Path) -> None:
    fasta = write_fasta(tmp_path / "a.fasta", ["MKTA", "GSHM", "GSHA"])
    (tmp_path / "clusters.tsv").write_text("a-1\ta-1\na-1\ta-2\na-0\ta-0\n")
    prepare(fasta, tmp_path / "set", clusters=tmp_path / "clusters.tsv")
    assert [row["cluster"] for row in rows(tmp_path / "set")] == ["a-0", "a-1", "a-1"]
    (tmp_path / "clusters.tsv").write_text("a-1\ta-1\na-1\ta-2\n")
    with pytest.raises(InputError, match="'a-0' only in the sources"):
        prepare(fasta, tmp_path / "other", clusters=tmp_path / "clusters.tsv")
    (tmp_path / "clusters.tsv").write_text("a-1 a-1\n")
    with pytest.raises(InputError, match="a cluster, a tab and a name"):
        prepare(fasta, tmp_path / "third", clusters=tmp_path / "clusters.tsv")


def test_splits_do_not_depend_on_what_else_there_is(tmp_path: Path) -> None:
    sequences = random_sequences(60)
    prepare(write_fasta(tmp_path / "a.fasta", sequences), tmp_path / "all", identity=None)
    prepare(write_fasta(tmp_path / "b.fasta", sequences[::2]), tmp_path / "half", identity=None)
    split = {row["sequence"]: row["split"] for row in rows(tmp_path / "all")}
    assert all(split[row["sequence"]] == row["split"] for row in rows(tmp_path / "half"))


def test_the_same_again_changes_nothing(tmp_path: Path) -> None:
    fasta = write_fasta(tmp_path / "a.fasta", random_sequences(20))
    first = prepare(fasta, tmp_path / "set")
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "set").iterdir()}
    assert prepare(fasta, tmp_path / "set") == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "set").iterdir()} == stamps
    assert prepare(fasta, tmp_path / "again")["digest"] == first["digest"]
    with pytest.raises(InputError, match="no other data set"):
        prepare(fasta, tmp_path / "set", seed=1)


SCRIPT = """
import sys
from pyrosys.training.data import prepare as module
import pyrosys.training.data.prepare
files = sys.modules["pyrosys.training.data.prepare"]
files.PART_BYTES = 4000
prepare = files.prepare
prepare(sys.argv[1:-1], sys.argv[-1], progress=False, identity=None)
"""


def test_a_killed_preparation_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed again and again, it gives in the end what it gives undisturbed."""
    monkeypatch.setattr(sys.modules["pyrosys.training.data.prepare"], "PART_BYTES", 4000)
    sources = [
        write_fasta(tmp_path / f"{name}.fasta", random_sequences(400, seed)) for name, seed in (("a", 1), ("b", 2))
    ]
    with sources[1].open("a") as file:  # some records of the first again, and some that cannot be used
        file.writelines(f">again-{n}\n{text}\n>bad-{n}\nM1\n" for n, text in enumerate(random_sequences(50, 1)))
    expected = prepare(sources, tmp_path / "whole", identity=None)
    assert expected["files"] > 10
    assert expected["rejected"] == {"letter '1'": 50}
    output = tmp_path / "killed"
    kills = 0
    for wanted in ("read-000003", "part-000002"):
        process = subprocess.Popen([sys.executable, "-c", SCRIPT, *map(str, sources), str(output)])
        while process.poll() is None:
            if any(wanted in path.name for path in output.rglob("*")):
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                kills += 1
                with pytest.raises(InputError, match="half prepared"):
                    Dataset(output)
                break
            time.sleep(0.0005)
    assert kills > 0
    manifest = prepare(sources, output, identity=None)
    assert manifest == expected
    assert rows(output) == rows(tmp_path / "whole")
    assert Counter(path.suffix for path in output.iterdir()) == {".parquet": expected["files"], ".json": 1}


def test_it_goes_on_only_with_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["pyrosys.training.data.prepare"]
    fasta = write_fasta(tmp_path / "a.fasta", random_sequences(20))

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "_arrange", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare(fasta, tmp_path / "set")
    with pytest.raises(InputError, match="Expected the shortest that"):
        prepare(fasta, tmp_path / "set", shortest=7)
    prepare(fasta, tmp_path / "set")
    shutil.rmtree(tmp_path / "set")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "mine.txt").touch()
    with pytest.raises(InputError, match="found files in it"):
        prepare(fasta, tmp_path / "set")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fractions": (0.5, 0.1, 0.1)}, "add up to 1"),
        ({"identity": 0.0}, "identity above 0"),
        ({"shortest": 0}, "lengths from at least 1"),
        ({"format": "csv"}, "'parquet' or 'arrow'"),
        ({"columns": {"sequenz": "a"}}, "sequenz"),
        ({"longest": 3}, "found none: longer than 3"),
    ],
)
def test_what_cannot_be_done_is_refused(change: dict[str, object], message: str, tmp_path: Path) -> None:
    fasta = write_fasta(tmp_path / "a.fasta", ["MKTA"])
    with pytest.raises(InputError, match=message):
        prepare(fasta, tmp_path / "set", **change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.fasta", "MKTA\n", "under a line that begins with >"),
        ("a.fasta", "", "found none"),
        ("a.csv", "name,seq\nx,MKTA\n", "columns sequence"),
        ("a.csv", "", "columns sequence"),
        ("a.txt", ">a\nMKTA\n", "end in one of"),
        ("a.fa.gz", ">a\nMKTA\n", "Not a gzipped file"),
    ],
)
def test_sources_that_cannot_be_read_are_explained(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        prepare(tmp_path / name, tmp_path / "set")


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.csv").write_text("text,sequence\nx,MKTA\ny,M2\n")
    arguments = ["prepare", str(tmp_path / "a.csv"), "--output", str(tmp_path / "set"), "--column", "name=text"]
    assert main([*arguments, "--identity", "none"]) == 0
    printed = capsys.readouterr().out
    assert "1 items, 4 residues, 1 clusters" in printed
    assert "left out, letter '2': 1, such as y" in printed
    assert main([*arguments, "--identity", "none", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["items"] == 1
    assert main([*arguments[:-1], "name"]) == 2
    assert "--column COLUMN=NAME" in capsys.readouterr().err
