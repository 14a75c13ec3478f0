"""What a data set is on disk: the columns of its Parquet or Arrow files.

| Column | Type | Meaning | Needed |
|---|---|---|---|
| ``sequence`` | string | one upper-case letter per residue | always |
| ``length`` | integer | number of residues | no: it is counted |
| ``name`` | string | what to call the item in messages | no |
| ``cluster`` | string | items of one cluster are similar, or belong together | to sample by cluster |
| ``split`` | string | ``train``, ``validation`` or ``test``, the same for a whole cluster | to use a part of the files |
| ``coordinates`` | list of lists of 12 floats | x, y, z of N, CA, C and O in Å, NaN where an atom is missing | for structures |
| ``mask`` | list of booleans | which residues to use the coordinates of | no: those that have them |
| ``chain`` | list of integers | the chain of each residue, counted from 0 | no: one chain |
| ``label`` | number, string or list | what to predict; the column may have any name | for supervised tasks |
| ``digest`` | string | 32 hexadecimal digits of the SHA-256 of sequence, chain and coordinates | no |

Lists have one entry per residue. Other columns are left alone. A missing value in ``coordinates`` is an item without
structure, and in ``label`` an item without label.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyrosys.errors import InputError, MissingExtra

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["LETTERS", "SPLITS", "check_columns", "prepared_schema", "pyarrow"]

LETTERS = "ACDEFGHIKLMNPQRSTVWYXBZUO"  # the 20, unknown, two ambiguous ones, selenocysteine and pyrrolysine
SPLITS = ("train", "validation", "test")


def pyarrow(module: str = "") -> Any:
    """Import pyarrow, or a module of it, late: it belongs to an extra.

    Raises:
        MissingExtra: It is not installed.
    """
    try:
        return importlib.import_module(f"pyarrow{module and '.'}{module}")
    except ImportError as error:
        raise MissingExtra("Data sets need pyarrow, which is not installed. Install pyrosys[train].") from error


def prepared_schema(*, structures: bool, label: pa.DataType | None) -> pa.Schema:
    """The columns that `prepare` writes.

    Args:
        structures: Whether there are coordinates.
        label: The type of the labels, if there are any.
    """
    arrow = pyarrow()
    columns = [("name", arrow.string()), ("sequence", arrow.string()), ("length", arrow.int32())]
    if structures:
        columns += [
            ("coordinates", arrow.list_(arrow.list_(arrow.float32(), 12))),
            ("mask", arrow.list_(arrow.bool_())),
            ("chain", arrow.list_(arrow.int16())),
        ]
    if label is not None:
        columns.append(("label", label))
    columns += [("cluster", arrow.string()), ("split", arrow.string()), ("digest", arrow.string())]
    return arrow.schema(columns)


def check_columns(schema: pa.Schema, path: Path) -> None:
    """Check that a file's columns are as documented.

    Raises:
        InputError: There is no sequence, or a column has another type.
    """
    types = pyarrow("types")

    def text(kind: pa.DataType) -> bool:
        return (
            text(kind.value_type) if types.is_dictionary(kind) else types.is_string(kind) or types.is_large_string(kind)
        )

    def listed(kind: pa.DataType, inner: Any) -> bool:
        return (types.is_list(kind) or types.is_large_list(kind)) and inner(kind.value_type)

    def atoms(kind: pa.DataType) -> bool:
        if types.is_fixed_size_list(kind):
            return kind.list_size == 12 and types.is_floating(kind.value_type)
        return listed(kind, types.is_floating)

    expected = {
        "sequence": ("strings", text),
        "length": ("integers", types.is_integer),
        "name": ("strings", text),
        "cluster": ("strings", text),
        "split": ("strings", text),
        "coordinates": ("lists of 12 floats for each residue", lambda kind: listed(kind, atoms)),
        "mask": ("lists of booleans", lambda kind: listed(kind, types.is_boolean)),
        "chain": ("lists of integers", lambda kind: listed(kind, types.is_integer)),
        "digest": ("strings", text),
    }
    if "sequence" not in schema.names:
        raise InputError(
            f"Expected a column 'sequence' in {path}, found {', '.join(schema.names) or 'no columns'}. "
            "Rename the column that holds one letter per residue."
        )
    for name, (meaning, fits) in expected.items():
        places = schema.get_all_field_indices(name)
        if len(places) > 1:
            raise InputError(f"Expected one column {name!r} in {path}, found {len(places)}. Rename the others.")
        if places and not fits(schema.field(places[0]).type):
            raise InputError(
                f"Expected {meaning} in the column {name!r} of {path}, found {schema.field(places[0]).type}. "
                "Convert the column, or rename it if it means something else."
            )
