"""Recorded operations as plain data: JSON that names operations of the `aten` namespace, and holds no code."""

import base64
import gzip
import operator
import zlib
from typing import Any

import torch
from torch import Tensor, fx

from pyrosys.adapters.nodes import args_of
from pyrosys.adapters.operations import run_node
from pyrosys.errors import CaptureError, WeightsError

__all__ = ["MALFORMED", "check_sizes", "decode", "encode", "node_from_json", "node_to_json"]

# What reading a record can raise when somebody has put something else in it.
MALFORMED = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    RecursionError,
    RuntimeError,
    TypeError,
    ValueError,
    zlib.error,
)
LARGEST_SIDE = 1 << 40
LARGEST = 1 << 30  # elements of a result, unless a parameter has more


def node_to_json(node: fx.Node, numbers: dict[fx.Node, int]) -> dict[str, Any]:
    """A recorded node as plain data; `numbers` are those of the nodes before it."""
    meta = node.meta
    entry: dict[str, Any] = {"scope": meta.get("scope", "")}
    if "shape" in meta:
        entry["shape"] = list(meta["shape"])
        entry["dtype"] = str(meta["dtype"]).removeprefix("torch.")
    if node.op == "placeholder":
        return entry | {"parameter": meta["parameter"]}
    if node.op == "get_attr":
        return entry | {"constant": encode(meta["constant"]), "data": meta["data"]}
    target = "getitem" if node.target is operator.getitem else str(node.target).removeprefix("aten.")
    return entry | {
        "call": target,
        "args": encode(list(args_of(node)), numbers),
        "kwargs": encode(dict(node.kwargs), numbers),
    }


def node_from_json(entry: dict[str, Any], graph: fx.Graph, nodes: list[fx.Node]) -> fx.Node:
    """Append to a graph the node that `node_to_json` described; `nodes` are those before it."""
    if "parameter" in entry:
        node = graph.placeholder(f"parameter_{len(nodes)}")
        node.meta["parameter"] = entry["parameter"]
    elif "constant" in entry:
        node = graph.get_attr(f"constant_{len(nodes)}")
        node.meta.update(constant=decode(entry["constant"]), data=bool(entry["data"]))
    else:
        args = tuple(decode(entry["args"], nodes))
        node = graph.call_function(_operation(entry["call"]), args, decode(entry["kwargs"], nodes))
    node.meta["scope"] = entry["scope"]
    if "shape" in entry:
        node.meta.update(shape=_shape(entry["shape"]), dtype=_of_torch(entry["dtype"], torch.dtype))
    return node


def check_sizes(nodes: list[fx.Node]) -> None:
    """Run recorded nodes on shapes alone, so that a record cannot ask for more memory than it says.

    Raises:
        WeightsError: a result has another shape than the one on record, or one that no model needs.
    """
    shapes: dict[fx.Node, Any] = {}
    parameters = (torch.Size(n.meta["shape"]).numel() for n in nodes if n.op == "placeholder" and n.users)
    largest = max(LARGEST, *parameters, 0)
    for node in nodes:
        dtype = node.meta.get("dtype", torch.float64)
        wide = torch.float64 if dtype.is_floating_point else dtype  # as `execute` runs them
        recorded = torch.empty(node.meta.get("shape", ()), dtype=wide, device="meta")
        if node.op == "call_function":
            try:
                found = run_node(node, shapes.__getitem__)
            except NotImplementedError:  # what depends on values: a mask turned into indices
                found = recorded
            if isinstance(found, Tensor) and "shape" in node.meta and tuple(found.shape) != node.meta["shape"]:
                raise WeightsError(
                    f"Expected {node.target} to give the shape {node.meta['shape']} on record, found {tuple(found.shape)}. "
                    "Do not trust this record."
                )
            recorded = found
        for tensor in recorded if isinstance(recorded, (tuple, list)) else [recorded]:
            if isinstance(tensor, Tensor) and tensor.numel() > largest:
                raise WeightsError(f"Expected at most {largest:,} elements of {node.target}, found {tensor.numel():,}.")
        shapes[node] = recorded


def _shape(value: Any) -> tuple[int, ...]:
    if not (isinstance(value, list) and all(type(n) is int and 0 <= n <= LARGEST_SIDE for n in value)):
        raise WeightsError(f"Expected a shape on record as a list of sizes, found {value!r:.100}.")
    return tuple(value)


def _of_torch(name: Any, kind: Any) -> Any:
    """What torch calls by a name, if it is of a kind that records hold."""
    found = getattr(torch, name, None) if isinstance(name, str) else None
    if not isinstance(found, kind):
        raise WeightsError(
            f"Expected the name of a torch dtype, layout or memory format on record, found {name!r:.60}."
        )
    return found


def _operation(name: str) -> Any:
    if name == "getitem":
        return operator.getitem
    packet, _, overload = name.partition(".")
    found = getattr(getattr(torch.ops.aten, packet, None), overload or "default", None)
    # What was recorded reads tensors and changes none; anything else in a record (`from_file`) was put there.
    reads = isinstance(found, torch._ops.OpOverload) and any("Tensor" in str(a.type) for a in found._schema.arguments)
    if not reads or found._schema.is_mutable:
        raise WeightsError(
            f"Expected an ATen operation on record, found {name!r}; torch has none that a record may call."
        )
    return found


def encode(value: Any, numbers: dict[fx.Node, int] | None = None) -> Any:
    """An argument as plain data: tensors compressed, nodes by number.

    Raises:
        CaptureError: it is neither a tensor nor a plain value.
    """
    if isinstance(value, fx.Node):
        assert numbers is not None
        return {"node": numbers[value]}
    if isinstance(value, Tensor):
        flat = value.detach().contiguous().reshape(-1)
        raw = gzip.compress(flat.view(torch.uint8).numpy().tobytes(), mtime=0) if flat.numel() else b""
        return {
            "tensor": base64.b64encode(raw).decode(),
            "shape": list(value.shape),
            "dtype": str(value.dtype).removeprefix("torch."),
        }
    if isinstance(value, (list, tuple)):
        return [encode(v, numbers) for v in value]
    if isinstance(value, dict):
        return {"dict": {str(k): encode(v, numbers) for k, v in value.items()}}
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return {"float": repr(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (torch.dtype, torch.memory_format, torch.layout, torch.device)):
        return {"torch": str(value).removeprefix("torch.")}
    raise CaptureError(
        f"A record cannot hold an argument of type {type(value).__name__}. Pass tensors and plain values."
    )


def decode(value: Any, nodes: list[fx.Node] | None = None) -> Any:
    """What `encode` made plain data of."""
    if isinstance(value, list):
        return [decode(v, nodes) for v in value]
    if not isinstance(value, dict):
        return value
    if "node" in value:
        assert nodes is not None
        return nodes[value["node"]]
    if "tensor" in value:
        shape, dtype = _shape(value["shape"]), _of_torch(value["dtype"], torch.dtype)
        numel = torch.Size(shape).numel()
        if numel == 0:
            return torch.zeros(shape, dtype=dtype)
        raw = _decompress(base64.b64decode(value["tensor"]), numel * dtype.itemsize)
        return torch.frombuffer(raw, dtype=torch.uint8).view(dtype).reshape(shape)
    if "float" in value:
        return float(value["float"])
    if "torch" in value:
        name = value["torch"]
        kinds = (torch.dtype, torch.layout, torch.memory_format)
        return torch.device(name) if name in ("cpu", "meta") else _of_torch(name, kinds)
    return {k: decode(v, nodes) for k, v in value["dict"].items()}


def _decompress(data: bytes, size: int) -> bytearray:
    """Decompress what has to have this size, and no more than that of anything else."""
    raw = bytearray(zlib.decompressobj(wbits=31).decompress(data, size + 1))
    if len(raw) != size:
        raise WeightsError(
            f"Expected {size:,} bytes of a tensor on record, found {'more' if len(raw) > size else len(raw)}."
        )
    return raw
