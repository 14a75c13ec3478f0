"""Recorded operations as plain data: JSON that names operations of the `aten` namespace, and holds no code."""

import base64
import gzip
import operator
from typing import Any

import torch
from torch import Tensor, fx

from pyrosys.adapters.nodes import args_of
from pyrosys.errors import CaptureError, WeightsError

__all__ = ["decode", "encode", "node_from_json", "node_to_json"]


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
        node.meta.update(shape=tuple(entry["shape"]), dtype=getattr(torch, entry["dtype"]))
    return node


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
        dtype = getattr(torch, value["dtype"])
        numel = torch.Size(value["shape"]).numel()
        if numel == 0:
            return torch.zeros(value["shape"], dtype=dtype)
        raw = gzip.decompress(base64.b64decode(value["tensor"]))
        return torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(dtype).reshape(value["shape"])
    if "float" in value:
        return float(value["float"])
    if "torch" in value:
        name = value["torch"]
        return torch.device(name) if name in ("cpu", "meta") else getattr(torch, name)
    return {k: decode(v, nodes) for k, v in value["dict"].items()}
