"""The safetensors format: what is written can be read, what is not sound is refused."""

import json
import os
import resource
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from pyrosys.errors import InputError, WeightsError
from pyrosys.hub import file_sha256, read_weights, tensor_digest, write_weights
from pyrosys.hub.safetensors_file import SafetensorsFile
from pyrosys.hub.tensor_bytes import DTYPES

reuse_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)

# The digest of the file that `test_bytes_are_canonical` writes. If it changes, so do those of published weights.
PINNED = "f2f34aaaf3d266a90f015a14791683cd2255004289a7cd9acef56c34c3594a17"

STATE = {
    "weight": torch.arange(6.0).reshape(2, 3),
    "bias": torch.tensor([7, 8, 9], dtype=torch.int64),
    "scale": torch.tensor([0.5]),
    "empty": torch.zeros(0, 5, dtype=torch.float16),
    "flag": torch.tensor(True),
}


def assert_equal(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
    assert tensor_digest(found) == tensor_digest(expected)


def assemble(header: Any, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def take_apart(content: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "sound.safetensors"
    write_weights(path, STATE, {"note": "one\ntwo", "author": "Å"})
    return path


def test_what_is_written_is_read(written: Path) -> None:
    opened = SafetensorsFile(written)
    assert_equal(opened, STATE)
    assert opened.metadata == {"format": "pt", "note": "one\ntwo", "author": "Å"}
    assert "absent" not in opened
    with pytest.raises(KeyError):
        opened["absent"]


def test_the_library_reads_it_too(written: Path) -> None:
    assert_equal(safetensors.torch.load_file(written), STATE)


def test_files_of_the_library_are_read(tmp_path: Path) -> None:
    safetensors.torch.save_file(STATE, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    assert_equal(read_weights(tmp_path / "theirs.safetensors"), STATE)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_every_type_survives(dtype: torch.dtype, tmp_path: Path) -> None:
    state = {"a": torch.arange(6).reshape(2, 3).to(dtype), "odd": torch.ones(3, dtype=torch.uint8)}
    write_weights(tmp_path / "a.safetensors", state)
    assert_equal(read_weights(tmp_path / "a.safetensors"), state)
    assert_equal(safetensors.torch.load_file(tmp_path / "a.safetensors"), state)


def test_bytes_are_canonical(tmp_path: Path) -> None:
    metadata = {f"key{n}": str(n) for n in range(20)}
    write_weights(tmp_path / "forward.safetensors", STATE, metadata)
    write_weights(tmp_path / "backward.safetensors", dict([*STATE.items()][::-1]), dict([*metadata.items()][::-1]))
    assert file_sha256(tmp_path / "forward.safetensors") == file_sha256(tmp_path / "backward.safetensors")
    assert file_sha256(tmp_path / "forward.safetensors") == PINNED


def test_every_tensor_is_aligned(written: Path) -> None:
    header, data = take_apart(written.read_bytes())
    assert (written.stat().st_size - len(data)) % 8 == 0
    for name, tensor in STATE.items():
        assert header[name]["data_offsets"][0] % tensor.dtype.itemsize == 0


def test_shared_and_strided_memory_is_written_in_full(tmp_path: Path) -> None:
    base = torch.arange(12.0)
    state = {"all": base, "part": base[2:5], "turned": base.reshape(3, 4).T, "wide": torch.ones(1).expand(5)}
    state["parameter"] = torch.nn.Parameter(base)
    write_weights(tmp_path / "a.safetensors", state)
    assert_equal(read_weights(tmp_path / "a.safetensors"), state)


def test_tensors_are_read_from_the_file_on_demand_and_never_change_it(written: Path) -> None:
    before = file_sha256(written)
    weight = read_weights(written)["weight"]
    weight += 1
    assert file_sha256(written) == before
    assert_equal(read_weights(written), STATE)


@pytest.mark.parametrize(
    ("state", "metadata"),
    [
        ({"__metadata__": torch.zeros(1)}, {}),
        ({"bad \ud800": torch.zeros(1)}, {}),
        ({3: torch.zeros(1)}, {}),
        ({"a": torch.zeros(1)}, {"epoch": 3}),
        ({"a": torch.zeros(1, device="meta")}, {}),
        ({"a": torch.zeros(2, 2).to_sparse()}, {}),
    ],
)
def test_what_cannot_be_written_is_refused(state: Any, metadata: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        write_weights(tmp_path / "a.safetensors", state, metadata)
    assert list(tmp_path.glob("*a.safetensors*")) == []


def test_a_failed_write_leaves_the_old_file(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(tensor: Tensor) -> memoryview:
        raise OSError("disk full")

    monkeypatch.setattr("pyrosys.hub.safetensors_file.tensor_bytes", fail)
    with pytest.raises(OSError, match="disk full"):
        write_weights(written, {"other": torch.zeros(3)})
    monkeypatch.undo()
    assert_equal(read_weights(written), STATE)
    assert [path.name for path in written.parent.iterdir()] == [written.name]


# Each of these changes a sound header into one that nothing may accept.
BREAKAGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "unknown type": lambda header: header["bias"].update(dtype="F4"),
    "type is no text": lambda header: header["bias"].update(dtype=["I64"]),
    "longer shape": lambda header: header["weight"].update(shape=[2, 4]),
    "negative shape": lambda header: header["weight"].update(shape=[-2, -3]),
    "fractional shape": lambda header: header["weight"].update(shape=[2.0, 3]),
    "truth as shape": lambda header: header["flag"].update(shape=[True]),
    "shape is no list": lambda header: header["weight"].update(shape=6),
    "giant shape": lambda header: header["empty"].update(shape=[0, 2**62]),
    "giant number in shape": lambda header: header["empty"].update(shape=[0, 10**4000]),
    "giant product": lambda header: header["weight"].update(shape=[2**62] * 64),
    "too many dimensions": lambda header: header["weight"].update(shape=[2, 3] + [1] * 63),
    "shifted": lambda header: header["weight"].update(data_offsets=[29, 53]),
    "overlap": lambda header: header["weight"].update(data_offsets=[0, 24]),
    "negative offsets": lambda header: header["weight"].update(data_offsets=[-24, 0]),
    "reversed offsets": lambda header: header["weight"].update(data_offsets=[52, 28]),
    "beyond the end": lambda header: header["weight"].update(data_offsets=[2**40, 2**40 + 24]),
    "one offset": lambda header: header["weight"].update(data_offsets=[24]),
    "extra field": lambda header: header["weight"].update(stride=[3, 1]),
    "missing field": lambda header: header["weight"].pop("dtype"),
    "entry is no object": lambda header: header.update(weight=[1]),
    "missing tensor": lambda header: header.pop("weight"),
    "additional tensor": lambda header: header.update(more=header["weight"]),
    "metadata is no object": lambda header: header.update(__metadata__=["a"]),
    "metadata is no text": lambda header: header.update(__metadata__={"a": 1}),
}


@pytest.mark.parametrize("breakage", BREAKAGES.values(), ids=BREAKAGES)
def test_broken_headers_are_refused(breakage: Callable[[dict[str, Any]], object], written: Path) -> None:
    header, data = take_apart(written.read_bytes())
    breakage(header)
    written.write_bytes(assemble(header, data))
    with pytest.raises(WeightsError):
        read_weights(written)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 7,
        (2**63).to_bytes(8, "little") + b"{}",
        (100).to_bytes(8, "little") + b"{}",
        assemble(b"", b""),
        assemble(b"[]", b""),
        assemble(b"  {}", b""),
        assemble(b'{"a": NaN}', b""),
        assemble(b"{" * 200_000, b""),
        assemble(b'{"a":' * 200_000, b""),
        assemble(b'{"a": 1' + b"0" * 5000 + b"}", b""),
        assemble('{"a": 1}'.encode("utf-16"), b""),
        assemble(b'{"\xff": 1}', b""),
        assemble(b'{"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}, "a": 0}', b"x"),
        assemble(b'{"\\ud800": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}', b"x"),
        assemble(b'{"a": {"dtype": "U8", "shape": [1], "shape": [1], "data_offsets": [0, 1]}}', b"x"),
        assemble({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}, b""),
        assemble({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}, b"xy"),
    ],
)
def test_broken_files_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError):
        read_weights(path)


def test_duplicate_names_that_the_library_accepts_are_refused(tmp_path: Path) -> None:
    entry = b'{"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}'
    path = tmp_path / "a.safetensors"
    path.write_bytes(assemble(b'{"a": ' + entry + b', "a": ' + entry + b"}", b"x"))
    assert list(safetensors.torch.load_file(path)) == ["a"]
    with pytest.raises(WeightsError, match="the key 'a' occurs twice"):
        read_weights(path)


def read_honestly(content: bytes) -> dict[str, bytes]:
    """What a changed file says when it is taken at its word: the bytes of each tensor."""
    header, data = take_apart(content)
    header.pop("__metadata__", None)
    return {name: data[slice(*entry["data_offsets"])] for name, entry in header.items()}


def assert_refused_or_faithful(path: Path) -> None:
    """A file is refused as a weights error, or every tensor in it is exactly what the file says it is."""
    try:
        state = dict(read_weights(path))
    except WeightsError:
        return
    content = path.read_bytes()
    header, _ = take_apart(content)
    spans = read_honestly(content)
    assert set(state) == set(spans)
    assert sum(map(len, spans.values())) == len(content) - 8 - int.from_bytes(content[:8], "little")
    for name, tensor in state.items():
        assert list(tensor.shape) == header[name]["shape"]
        assert tensor.dtype == DTYPES[header[name]["dtype"]]
        assert bytes(tensor.reshape(-1).view(torch.uint8).tolist()) == spans[name]


def header_end(content: bytes) -> int:
    return 8 + int.from_bytes(content[:8], "little")


@reuse_folder
@given(data=st.data())
def test_any_bytes_of_the_header_may_change(data: st.DataObject, written: Path) -> None:
    sound = written.read_bytes()
    content = bytearray(sound)
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, header_end(sound) - 1))
        content[position] = data.draw(st.integers(0, 255) | st.sampled_from(list(b'0123456789,:[]{}" -')))
    path = written.with_name("changed.safetensors")
    path.write_bytes(content)
    assert_refused_or_faithful(path)


@reuse_folder
@given(data=st.data())
def test_pieces_may_be_cut_moved_and_doubled(data: st.DataObject, written: Path) -> None:
    sound = written.read_bytes()
    first, second, third = sorted(data.draw(st.integers(0, len(sound))) for _ in range(3))
    cut, doubled = sound[:first] + sound[second:], sound[:second] + sound[first:]
    moved = sound[:first] + sound[second:third] + sound[first:second] + sound[third:]
    path = written.with_name("changed.safetensors")
    path.write_bytes(data.draw(st.sampled_from([cut, doubled, moved])))
    assert_refused_or_faithful(path)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text() | st.sampled_from(list(DTYPES)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@reuse_folder
@given(data=st.data())
def test_any_value_of_the_header_may_change(data: st.DataObject, written: Path) -> None:
    header, tensors = take_apart(written.read_bytes())
    name = data.draw(st.sampled_from([*header, "new"]))
    field = data.draw(st.sampled_from(["dtype", "shape", "data_offsets", None]))
    value = data.draw(JSON_VALUES)
    if field is None or name in ("new", "__metadata__"):
        header[name] = value
    else:
        header[name][field] = value
    path = written.with_name("changed.safetensors")
    path.write_bytes(assemble(header, tensors))
    assert_refused_or_faithful(path)


@reuse_folder
@given(spaces=st.integers(0, 40), data=st.data())
def test_the_same_content_written_differently_reads_the_same(spaces: int, data: st.DataObject, written: Path) -> None:
    header, tensors = take_apart(written.read_bytes())
    names = data.draw(st.permutations(list(header)))
    text = json.dumps({name: header[name] for name in names}, indent=data.draw(st.sampled_from([None, 0, 3])))
    path = written.with_name("changed.safetensors")
    path.write_bytes(assemble(text.encode() + b" " * spaces, tensors))
    assert_equal(read_weights(path), STATE)


def test_going_through_a_file_does_not_gather_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = {f"{n:02}": torch.full((64,), float(n)) for n in range(40)}
    write_weights(tmp_path / "a.safetensors", state)
    monkeypatch.setattr("pyrosys.hub.safetensors_file.SHORTEST", 0)
    monkeypatch.setattr("pyrosys.hub.safetensors_file.STRETCHES", 10)
    file, held = SafetensorsFile(tmp_path / "a.safetensors"), {}
    maps: list[weakref.ref[object]] = []
    for name in file:
        if name == "07":
            held[name] = file[name]
        assert torch.equal(file[name], state[name])
        if not maps or maps[-1]() is not file._map:
            maps.append(weakref.ref(file._map))
    assert len(maps) > 5
    assert sum(reference() is not None for reference in maps) == 2  # the present one, and that of the tensor held
    assert torch.equal(held["07"], state["07"])
    held.clear()
    assert sum(reference() is not None for reference in maps) == 1


def test_a_file_is_read_to_its_end_where_no_more_files_may_be_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {f"{n:02}": torch.full((64,), float(n)) for n in range(40)}
    write_weights(tmp_path / "a.safetensors", state)
    monkeypatch.setattr("pyrosys.hub.safetensors_file.SHORTEST", 0)
    file = SafetensorsFile(tmp_path / "a.safetensors")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    os.close(free := os.dup(0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + 3, limits[1]))
    try:
        held = dict(file)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert_equal(held, state)
