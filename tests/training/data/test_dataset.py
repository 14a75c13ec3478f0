"""Data sets: rows by number, from files of either kind, and what is said of files that do not fit."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pyrosys.errors import InputError
from pyrosys.training.data import Dataset
from tests.training.data.conftest import random_sequences


def write(path: Path, table: pa.Table, rows: int) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=rows)
    else:
        with pa.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=rows)
    return path


@pytest.fixture
def table() -> pa.Table:
    sequences = random_sequences(100, longest=20)
    generator = np.random.default_rng(0)
    coordinates = [generator.normal(size=(len(text), 12)).tolist() for text in sequences]
    return pa.table({"sequence": sequences, "coordinates": coordinates, "cluster": [text[0] for text in sequences]})


def test_rows_are_those_of_the_files_in_order(table: pa.Table, tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", table.slice(0, 35), 10)
    write(tmp_path / "b.arrow", table.slice(35, 40), 7)
    write(tmp_path / "c.parquet", table.slice(75), 100)
    dataset = Dataset(tmp_path, cache=4000)  # a few row groups
    order = np.random.default_rng(0).permutation(100).tolist()
    found = dataset.read(order, ["sequence", "coordinates"])
    sequences, coordinates = table.column("sequence").to_pylist(), table.column("coordinates").to_pylist()
    for row, place in zip(found, order, strict=True):
        assert row["sequence"] == sequences[place]
        np.testing.assert_allclose(row["coordinates"], np.reshape(coordinates[place], (-1, 4, 3)), rtol=1e-6)
    assert dataset._kept_bytes <= 4000 + max(kept.nbytes for kept in dataset._kept.values())
    assert dataset.lengths.tolist() == list(map(len, sequences))
    codes, names = dataset.codes("cluster")
    assert [names[code] for code in codes] == table.column("cluster").to_pylist()
    again = pickle.loads(pickle.dumps(dataset))
    assert again.read([50], ["sequence"])[0]["sequence"] == sequences[50]
    assert len(pickle.dumps(dataset)) < 2000  # nothing that was read travels


def test_digest_follows_the_contents(table: pa.Table, tmp_path: Path) -> None:
    one = Dataset(write(tmp_path / "a.parquet", table, 10)).digest
    assert Dataset(write(tmp_path / "b.parquet", table, 10)).digest == one
    assert Dataset(write(tmp_path / "c.parquet", table.slice(1), 10)).digest != one


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sequence": None}, "a column 'sequence'"),
        ({"sequence": pa.array([1, 2])}, "Expected strings in the column 'sequence'"),
        ({"length": pa.array(["3", "2"])}, "Expected integers in the column 'length'"),
        ({"coordinates": pa.array([[[0.0] * 9], []])}, None),
        ({"coordinates": pa.array([[0.0], [1.0]])}, "lists of 12 floats"),
        ({"chain": pa.array([[0.5], [1.0]])}, "lists of integers"),
        ({"mask": pa.array([[1], [0]])}, "lists of booleans"),
        ({"cluster": pa.array([1, 2])}, "strings in the column 'cluster'"),
    ],
)
def test_columns_of_another_kind_are_explained(change: dict[str, Any], message: str | None, tmp_path: Path) -> None:
    columns = {"sequence": pa.array(["MKT", "GS"]), **change}
    path = write(
        tmp_path / "a.parquet", pa.table({name: value for name, value in columns.items() if value is not None}), 9
    )
    if message is None:  # of a width that only a row shows
        with pytest.raises(InputError, match="12 numbers"):
            Dataset(path).read([0], ["sequence", "coordinates"])
    else:
        with pytest.raises(InputError, match=message):
            Dataset(path)


@pytest.mark.parametrize(
    ("column", "value"),
    [("length", [4, 2]), ("mask", [[True], [True] * 2]), ("chain", [[0], [0] * 2])],
)
def test_rows_that_contradict_themselves_are_explained(column: str, value: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", pa.table({"sequence": ["MKT", "GS"], column: value}), 9)
    dataset = Dataset(path)
    assert len(dataset.read([1], ["sequence", column])) == 1
    with pytest.raises(InputError, match=f"Expected 3 residues, as in its sequence, in '{column}' of row 0"):
        dataset.read([0], ["sequence", column])


def test_missing_values_and_columns_are_explained(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", pa.table({"sequence": ["MKT", ""], "split": ["train", None]}), 9)
    dataset = Dataset(path)
    with pytest.raises(InputError, match="1 without"):
        dataset.codes("split")
    with pytest.raises(InputError, match="Expected a column 'cluster'"):
        dataset.codes("cluster")
    with pytest.raises(InputError, match="Expected a sequence in row 1"):
        dataset.read([1], ["sequence"])
    with pytest.raises(IndexError):
        dataset.read([2], ["sequence"])


def test_files_that_are_none_are_explained(table: pa.Table, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Check the path"):
        Dataset(tmp_path / "absent.parquet")
    with pytest.raises(InputError, match="Prepare a data set there first"):
        Dataset(tmp_path)
    whole = write(tmp_path / "a.parquet", table, 10).read_bytes()
    for content in (b"", whole[: len(whole) // 2]):
        (tmp_path / "b.parquet").write_bytes(content)
        with pytest.raises(InputError, match="complete parquet file"):
            Dataset(tmp_path / "b.parquet")
    write(tmp_path / "b.parquet", table.select(["sequence"]), 10)
    with pytest.raises(InputError, match="the same columns"):
        Dataset(tmp_path)
