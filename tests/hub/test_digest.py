"""Digests of files and tensors."""

import hashlib
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pyrosys.errors import InputError, IntegrityError
from pyrosys.hub import file_sha256, tensor_digest
from pyrosys.hub.digest import Expected
from pyrosys.hub.tensor_bytes import DTYPES


def sha256(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


def test_file_sha256_is_the_standard_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    assert file_sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_tensor_digest_follows_its_definition() -> None:
    state = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([[3]], dtype=torch.int16), "c": torch.tensor(True)}
    leaves = [
        sha256(b"\x00F32[2]\n", bytes.fromhex("0000803f00000040")),
        sha256(b"\x00I16[1,1]\n", b"\x03\x00"),
        sha256(b"\x00BOOL[]\n", b"\x01"),
    ]
    assert tensor_digest(state) == sha256(b"\x01", sha256(b"\x01", leaves[0], leaves[1]), leaves[2]).hex()
    assert tensor_digest({"a": state["a"]}) == leaves[0].hex()
    assert tensor_digest({}) == hashlib.sha256().hexdigest()


@given(st.permutations(range(7)))
def test_names_matter_only_through_the_order(order: list[int]) -> None:
    tensors = [torch.full((n + 1,), float(n)) for n in range(7)]
    plain = tensor_digest({f"name{n}": tensor for n, tensor in enumerate(tensors)})
    renamed = {f"other{label}": tensors[n] for n, label in enumerate(order)}
    assert tensor_digest(renamed, order=[f"other{label}" for label in order]) == plain
    assert (tensor_digest(renamed) == plain) == (order == sorted(order))


def test_memory_layout_does_not_matter() -> None:
    tensor = torch.arange(12.0).reshape(3, 4)
    assert tensor_digest({"a": tensor.T.contiguous().T}) == tensor_digest({"a": tensor})
    assert tensor_digest({"a": torch.arange(24.0)[::2].reshape(3, 4) / 2}) == tensor_digest({"a": tensor})
    assert tensor_digest({"a": torch.tensor([1 + 2j]).conj()}) == tensor_digest({"a": torch.tensor([1 - 2j])})


def test_shape_type_and_value_matter() -> None:
    variants = [torch.zeros(4), torch.zeros(2, 2), torch.zeros(4, dtype=torch.int32), torch.tensor([0.0, 0, 0, -0.0])]
    assert len({tensor_digest({"a": tensor}) for tensor in variants}) == len(variants)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_every_type_has_a_digest(dtype: torch.dtype) -> None:
    assert tensor_digest({"a": torch.zeros(3, dtype=dtype)}) != tensor_digest({"a": torch.ones(3, dtype=dtype)})
    assert len(tensor_digest({"empty": torch.zeros(0, 2, dtype=dtype)})) == 64


@pytest.mark.parametrize("order", [["a"], ["a", "b", "b"], ["a", "c"]])
def test_an_order_lists_every_name_once(order: list[str]) -> None:
    with pytest.raises(InputError, match="each of 2 names once"):
        tensor_digest({"a": torch.zeros(1), "b": torch.zeros(1)}, order=order)


@pytest.mark.parametrize(
    "tensor", [torch.zeros(2, 2).to_sparse(), torch.zeros(2, device="meta"), torch.zeros(2, dtype=torch.complex128)]
)
def test_tensors_without_plain_bytes_are_refused(tensor: torch.Tensor) -> None:
    with pytest.raises(InputError, match="Expected 'a' to be a dense tensor"):
        tensor_digest({"a": tensor})


def test_expected_tells_both_sides() -> None:
    expected = Expected("a" * 64, 10)
    expected.check_size(10, "it")
    expected.check_sha256("a" * 64, "it")
    with pytest.raises(IntegrityError, match="Expected it to have 10 bytes, found 9"):
        expected.check_size(9, "it")
    with pytest.raises(IntegrityError, match=f"SHA-256 {'a' * 64}, found {'b' * 64}"):
        expected.check_sha256("b" * 64, "it")


@pytest.mark.parametrize("record", [{"sha256": "A" * 64}, {"sha256": "a" * 63}, {"sha256": ""}, {"size": -1}])
def test_malformed_records_are_refused(record: dict) -> None:
    with pytest.raises(InputError, match="Expected a"):
        Expected(**record)
