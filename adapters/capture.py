"""Record a model's forward pass as an ATen-level `torch.fx` graph.

The model runs eagerly under a dispatch mode, so Python control flow, masks and fused kernels are no obstacle. What depends
on a parameter is a `Traced` tensor: it has a shape and a graph node but, in the usual *symbolic* run, no numbers, so a model
of any size is recorded without allocating a weight. What does not depend on a parameter (masks, position tables) is computed
for real and enters the graph as a constant.

A model whose control flow looks at activations cannot run symbolically; it is recorded a second time with numbers.

Mutation is undone on the way: an in-place operation becomes its functional twin, and every view of the changed memory is
re-read from the new value, so that the graph is a pure function of parameters and constants.

Source: `torch.fx` (Reed et al. 2022, arXiv:2112.08429); `torch.utils._python_dispatch`.
"""

import contextlib
import copy
import dataclasses
import operator
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._decomp import core_aten_decompositions
from torch.nn.modules import module as hooks
from torch.utils._mode_utils import no_dispatch

from pyrosys.adapters.decompose import DECOMPOSITIONS
from pyrosys.adapters.nodes import args_of, drop_unused, leaves, map_leaves, target_of
from pyrosys.adapters.operations import is_known
from pyrosys.adapters.precision import PlainMode, default_dtype, wide
from pyrosys.adapters.zeros import drop_products_of_zero
from pyrosys.errors import CaptureError, PyrosysError

__all__ = ["Capture", "Inputs", "as_inputs", "capture", "output_tensors", "quiet_kernels", "with_outputs"]

OutputSelector = Callable[[Any], Any]
aten = torch.ops.aten
_CORE = core_aten_decompositions()
EQUAL_HERE = "equal here"
"""Marks a node that stands for others which have the same values on this probe, and perhaps not on another."""


class Inputs:
    """Arguments of one forward pass, positional and by keyword.

    Example:
        >>> from pyrosys import Inputs
        >>> Inputs(1, mask=None)
        Inputs(1, mask=None)
    """

    def __init__(self, *args: Any, **kwargs: Any):
        self.args = args
        self.kwargs = kwargs

    def __repr__(self) -> str:
        parts = [_brief(value) for value in self.args]
        parts += [f"{name}={_brief(value)}" for name, value in self.kwargs.items()]
        return f"Inputs({', '.join(parts)})"

    def map(self, function: Callable[[Any], Any]) -> "Inputs":
        """The same arguments with `function` applied to every tensor in them."""

        def convert(value: Any) -> Any:
            return function(value) if isinstance(value, Tensor) else value

        args, kwargs = _map_containers(convert, (self.args, self.kwargs))
        return Inputs(*args, **kwargs)

    def tensors(self) -> list[Tensor]:
        """Every tensor among the arguments, in order."""
        return [leaf for leaf in _leaves((self.args, self.kwargs)) if isinstance(leaf, Tensor)]


def as_inputs(inputs: Any) -> list[Inputs]:
    """Probes in the one form the engine uses.

    Args:
        inputs: a tuple of positional arguments, a dict of keyword arguments, `Inputs`, one tensor, or a list of these.

    Raises:
        CaptureError: there is no probe, or an element is of another kind.
    """
    probes = inputs if isinstance(inputs, list) else [inputs]
    if not probes:
        raise CaptureError("Expected at least one probe, found an empty list. Pass a tuple, a dict or pyrosys.Inputs.")
    return [_as_one_probe(probe) for probe in probes]


def _as_one_probe(probe: Any) -> Inputs:
    if isinstance(probe, Inputs):
        return probe
    if isinstance(probe, Tensor):
        return Inputs(probe)
    if isinstance(probe, Mapping):
        return Inputs(**{str(name): value for name, value in probe.items()})
    if isinstance(probe, tuple):
        return Inputs(*probe)
    raise CaptureError(
        f"Expected a probe as a tuple of arguments, a dict of keyword arguments or pyrosys.Inputs, found {type(probe).__name__}."
    )


def _brief(value: Any) -> str:
    return f"Tensor{tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)


def _leaves(value: Any) -> Iterator[Any]:
    """Leaves of nested containers, data classes and plain objects that hold tensors."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _leaves(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from _leaves(getattr(value, field.name))
    else:
        yield value


def _map_containers(function: Callable[[Any], Any], value: Any) -> Any:
    """`function` applied to the leaves of nested containers and data classes; containers are rebuilt, never changed."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_map_containers(function, item) for item in value))
    if type(value) in (list, tuple):
        return type(value)(_map_containers(function, item) for item in value)
    if type(value) is dict:
        return {key: _map_containers(function, item) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changed = {
            f.name: _map_containers(function, getattr(value, f.name)) for f in dataclasses.fields(value) if f.init
        }
        return dataclasses.replace(value, **changed)
    return function(value)


def output_tensors(output: Any, select: OutputSelector | None) -> list[Tensor]:
    """The floating-point tensors of a model's output that count, in order."""
    chosen = output if select is None else select(output)
    seen: list[Tensor] = []
    for leaf in _leaves(chosen):
        is_real = isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())
        if is_real and not any(leaf is other for other in seen):
            seen.append(leaf)
    return seen


@contextlib.contextmanager
def quiet_kernels() -> Iterator[None]:
    """Switch off the fused paths that hide structure: attention kernels, the encoder fast path, oneDNN."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    with (
        warnings.catch_warnings(action="ignore"),
        torch.no_grad(),
        torch.nn.attention.sdpa_kernel([torch.nn.attention.SDPBackend.MATH]),
        torch.backends.mkldnn.flags(enabled=False),
    ):
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_path)


class _NeedsNumbers(Exception):
    """The model looked at the value of an activation; a symbolic run cannot answer."""


class _Memory:
    """One storage of the recorded run: the node that holds its newest value."""

    def __init__(self, node: fx.Node, template: Tensor):
        self.node = node
        self.template = template
        self.version = 0
        self.written: list[Tensor | None] = []
        """Where each version differs from the one before it; None for everywhere."""


class Traced(torch.Tensor):
    """A tensor that depends on a parameter: a graph node and, for shape rules, an inner tensor (on meta if symbolic)."""

    __module__ = "torch"  # libraries ask the class for its module to find out whose tensor it is

    held: Tensor
    memory: _Memory
    node: fx.Node
    version: int

    @staticmethod
    def __new__(cls, inner: Tensor, memory: _Memory, node: fx.Node, device: torch.device) -> "Traced":
        self = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=device,
            requires_grad=False,
        )
        self.held = inner
        self.memory = memory
        self.node = node
        self.version = memory.version
        return self

    def __init__(self, *_: Any):
        super().__init__()

    def __repr__(self, **_: Any) -> str:
        return f"Traced({tuple(self.shape)}, {self.node})"

    def tolist(self) -> Any:
        if self.held.is_meta:
            raise _NeedsNumbers
        return self.held.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        if self.held.is_meta:
            raise _NeedsNumbers
        raise CaptureError(
            "Expected a forward pass made of torch operations, found a conversion of an activation to numpy, which hides how it "
            "depends on the parameters. Use torch operations in forward."
        )

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise CaptureError(
            f"{func} was called on a tensor of a recording that has ended. Do not keep activations between calls."
        )


@dataclasses.dataclass(frozen=True)
class _Like:
    """How a tensor without values is laid out."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @staticmethod
    def of(tensor: Tensor) -> "_Like":
        return _Like(tuple(tensor.shape), tensor.stride(), tensor.dtype)

    def empty(self) -> Tensor:
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device="meta")


def _signature(value: Any) -> Any:
    """What the shape of a result can depend on."""
    if isinstance(value, Tensor):
        return _Like.of(value)
    if isinstance(value, (tuple, list)):
        return tuple(_signature(v) for v in value)
    if isinstance(value, dict):
        return tuple((k, _signature(v)) for k, v in sorted(value.items()))
    return type(value), value


class _Recorder(PlainMode):
    """Builds the graph while the model runs."""

    def __init__(self, graph: fx.Graph, device: torch.device, symbolic: bool, routed: bool, in_float64: bool):
        super().__init__()
        self.routed = routed
        self.in_float64 = in_float64
        self.graph = graph
        self.device = device
        self.symbolic = symbolic
        self.scope: list[str] = []
        self.memories: dict[int, _Memory] = {}
        self.data: set[int] = set()
        self.alive: list[Any] = []
        self.constants: dict[tuple[int, int], tuple[Tensor, fx.Node]] = {}
        self.results: dict[Any, Any] = {}

    # Leaves

    def parameter(self, name: str, tensor: Tensor) -> Traced:
        node = self.graph.placeholder(f"parameter_{len(self.graph.nodes)}")
        node.meta.update(parameter=name, shape=tuple(tensor.shape), dtype=tensor.dtype, scope="")
        dtype = torch.float64 if self.in_float64 and tensor.is_floating_point() else tensor.dtype
        inner = torch.empty(tensor.shape, dtype=dtype, device="meta") if self.symbolic else tensor.detach().to(dtype)
        return Traced(inner, _Memory(node, inner), node, self.device)

    def mark_data(self, tensor: Tensor) -> None:
        self.data.add(_storage(tensor))
        self.alive.append(tensor)

    def constant(self, tensor: Tensor) -> fx.Node:
        key = (id(tensor), tensor._version if not tensor.is_inference() else 0)
        known = self.constants.get(key)
        if known is not None:
            return known[1]
        node = self.graph.get_attr(f"constant_{len(self.constants)}")
        value = tensor.detach().clone()
        is_data = _storage(tensor) in self.data
        node.meta.update(constant=value, data=is_data, shape=tuple(tensor.shape), dtype=tensor.dtype, scope=self.where)
        self.constants[key] = (tensor, node)
        return node

    @property
    def where(self) -> str:
        return self.scope[-1] if self.scope else ""

    # Recording

    def promoted(self, value: Any) -> bool:
        return isinstance(value, Tensor) and not isinstance(value, Traced) and _storage(value) in self.memories

    def is_traced(self, value: Any) -> bool:
        return isinstance(value, Traced) or self.promoted(value)

    def node_of(self, tensor: Tensor) -> fx.Node:
        """The node with the tensor's present value, re-reading memory that changed under it."""
        if isinstance(tensor, Traced):
            memory, geometry = tensor.memory, tensor.held
            if tensor.version == memory.version or not self.is_stale(tensor):
                return tensor.node
        elif self.promoted(tensor):
            memory, geometry = self.memories[_storage(tensor)], tensor
        else:
            return self.constant(tensor)
        template = memory.template
        if geometry.shape == template.shape and geometry.stride() == template.stride():
            node = memory.node
        else:
            args = (memory.node, list(geometry.shape), list(geometry.stride()), geometry.storage_offset())
            node = self.emit(aten.as_strided.default, args, {}, geometry)
        if isinstance(tensor, Traced):
            tensor.node, tensor.version = node, memory.version
        return node

    def is_stale(self, tensor: Traced) -> bool:
        """Whether an element of a view has been written since the view's node was made."""
        since = tensor.memory.written[tensor.version :]
        places = [at for at in since if at is not None]
        if len(places) < len(since) or tensor.held.dtype != tensor.memory.template.dtype:
            return True
        return bool(torch.isin(_positions(tensor.held), torch.cat(places)).any())

    def emit(self, func: Any, args: Any, kwargs: Any, like: Any) -> fx.Node:
        node = self.graph.call_function(func, args, kwargs)
        node.meta.update(scope=self.where)
        if isinstance(like, Tensor):
            node.meta.update(shape=tuple(like.shape), dtype=like.dtype)
        return node

    def graph_argument(self, value: Any) -> Any:
        return self.node_of(value) if isinstance(value, Tensor) else value

    def inner_argument(self, value: Any) -> Any:
        if isinstance(value, Traced):
            return value.held
        if isinstance(value, Tensor) and self.symbolic:
            return value if value.is_meta else value.to("meta")
        if isinstance(value, torch.device) and self.symbolic:
            return torch.device("meta")
        return value

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.in_float64:
            args, kwargs = wide((args, kwargs))
        if not any(map(self.is_traced, leaves((args, kwargs)))):
            result = func(*args, **kwargs)
            self.inherit_data(func, (args, kwargs), result)
            return result
        if func in _VALUE_FREE:
            return self.value_free(func, args, kwargs)
        if self.routed and func is CHOICE:
            return self.choose(*args, **kwargs)
        if func.is_view and self.promoted(args[0]):
            view = func(*args, **kwargs)
            if all(self.promoted(part) for part in (view if isinstance(view, (list, tuple)) else [view])):
                return view  # of memory that the model has written into: it is read when it is used
        if func in DECOMPOSITIONS:
            with self:
                result = DECOMPOSITIONS[func](*args, **kwargs)
            if result is not NotImplemented:
                return result
        elif not is_known(func) and func in _CORE:
            with self:
                return _CORE[func](*args, **kwargs)
        if func._schema.is_mutable:
            return self.mutate(func, args, kwargs)
        if self.symbolic and func in _LOOKS_AT_VALUES:
            raise _NeedsNumbers
        if func is aten._local_scalar_dense.default:
            return args[0].held.item()
        node_args, node_kwargs = map_leaves(self.graph_argument, (list(args), dict(kwargs)))
        inner_args, inner_kwargs = map_leaves(self.inner_argument, (list(args), dict(kwargs)))
        try:
            inner = self.inner_result(func, inner_args, inner_kwargs)
        except NotImplementedError as error:
            if self.symbolic:
                raise _NeedsNumbers from error
            raise
        node = self.emit(func, tuple(node_args), node_kwargs, inner)
        sources = [value for value in leaves((args, kwargs)) if isinstance(value, Tensor)]
        if isinstance(inner, Tensor):
            return self.wrap(inner, node, sources)
        if isinstance(inner, (tuple, list)):
            parts = []
            for position, part in enumerate(inner):
                if isinstance(part, Tensor):
                    item = self.emit(operator.getitem, (node, position), {}, part)
                    parts.append(self.wrap(part, item, sources))
                else:
                    parts.append(part)
            return type(inner)(parts)
        return inner

    def inner_result(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What an operation makes of inner tensors.

        Without values a result is a shape, which layers that are alike share: most shape rules of torch are written in Python,
        and would take half of the time of a capture.
        """
        if not self.symbolic or func.is_view:
            return func(*args, **kwargs)
        key = func, _signature(args), _signature(kwargs)
        known = self.results.get(key)
        if known is not None:
            return map_leaves(_Like.empty, known)
        result = func(*args, **kwargs)
        inputs = {_storage(a) for a in leaves((args, kwargs)) if isinstance(a, Tensor)}
        found = list(leaves(result))
        if all(isinstance(r, Tensor) and _storage(r) not in inputs for r in found):
            self.results[key] = map_leaves(_Like.of, result)
        return result

    def wrap(self, inner: Tensor, node: fx.Node, sources: Sequence[Tensor]) -> Traced:
        """A traced result; a view shares the memory of the tensor it looks at."""
        for source in sources:
            if isinstance(source, Traced) and _storage(source.held) == _storage(inner):
                return Traced(inner, source.memory, node, self.device)
        memory = _Memory(node, inner)
        return Traced(inner, memory, node, self.device)

    def inherit_data(self, func: Any, args: Any, result: Any) -> None:
        tensors = [a for a in leaves(args) if isinstance(a, Tensor)]
        is_data = func not in _VALUE_FREE and any(_storage(a) in self.data for a in tensors)
        if is_data and func in _GATHERS and _storage(tensors[0]) not in self.data and _is_uniform(tensors[0]):
            return
        if is_data:
            for leaf in leaves(result):
                if isinstance(leaf, Tensor):
                    self.mark_data(leaf)

    def value_free(self, func: Any, args: Any, kwargs: Any) -> Any:
        """A constant made in the shape of a traced tensor (`zeros_like`, `new_full`)."""
        template = args[0]
        stand_in = torch.empty_strided(
            tuple(template.shape), template.stride(), dtype=template.dtype, device=self.device
        )
        return func(stand_in, *args[1:], **kwargs)

    def choose(self, scores: Tensor, count: int, dim: int = -1, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """A choice among scores that does not depend on them: each row takes others, and with enough rows each is taken."""
        rows, many = (*scores.shape[:dim], *scores.shape[dim:][1:]), scores.shape[dim]
        start = torch.arange(torch.Size(rows).numel(), device=self.device).reshape(*rows, 1)
        chosen = (start + start // many + torch.arange(count, device=self.device)) % many
        chosen = chosen.movedim(-1, dim)
        with self:
            return torch.gather(scores, dim, chosen), chosen

    def mutate(self, func: Any, args: Any, kwargs: Any) -> Any:
        name, overload = func._schema.name.split("::")[1], func._overloadname
        functional = getattr(getattr(aten, name.removesuffix("_"), None), overload, None)
        target = args[0]
        if func in _TURNS:
            return self.turn(func, args)
        if not name.endswith("_") or functional is None:
            raise CaptureError(
                f"Expected operations that have a functional form, found {func}. Replace it in the model's forward."
            )
        if functional is aten.copy.default:
            value = self._expanded_copy(target, args[1])
        elif functional in (aten.zero.default, aten.fill.Scalar):
            fill = args[1] if len(args) > 1 else 0
            value = torch.full(tuple(target.shape), fill, dtype=target.dtype, device=self.device)
        else:
            with self:
                value = functional(*args, **kwargs)
                if value.dtype != target.dtype:
                    value = value.to(target.dtype)
        self.write(target, value)
        return target

    def turn(self, func: Any, args: Any) -> Tensor:
        """Look at a tensor in another way from now on; its elements stay where they are."""
        target = args[0]
        if not isinstance(target, Traced):
            return func(*args)  # memory that the model has written into: it is read when it is used
        with self:
            view = _TURNS[func](*args)
        target.held, target.memory, target.node, target.version = view.held, view.memory, view.node, view.version
        with no_dispatch():
            func(*args)
        return target

    def _expanded_copy(self, target: Tensor, source: Tensor) -> Tensor:
        with self:
            value = source if source.dtype == target.dtype else source.to(target.dtype)
            return value.expand(target.shape) if value.shape != target.shape else value

    def write(self, target: Tensor, value: Tensor) -> None:
        """Give `target`'s memory a new value; every other view of it sees the change."""
        if isinstance(target, Traced):
            memory, geometry = target.memory, target.held
        else:
            key = _storage(target)
            geometry = target
            memory = self.memories.get(key)
            if memory is None:
                base = torch.as_strided(target, (target.untyped_storage().nbytes() // target.element_size(),), (1,), 0)
                memory = _Memory(self.constant(base), base)
                self.memories[key] = memory
                self.alive.append(target)
        template = memory.template
        node = self.node_of(value)
        if geometry.shape == template.shape and geometry.stride() == template.stride():
            memory.node = node
        else:
            if not template.is_contiguous():
                self.straighten(memory)
                template = memory.template
            if not (template.is_contiguous() and template.storage_offset() == 0):
                raise CaptureError(
                    "Expected in-place writes into dense memory, found a write through overlapping views."
                )
            memory.node = self.put(memory, node, geometry)
        memory.version += 1
        everywhere = memory.node is node or geometry.dtype != template.dtype
        memory.written.append(None if everywhere else _positions(geometry))
        if isinstance(target, Traced):
            target.node, target.version = node, memory.version

    def put(self, memory: _Memory, value: fx.Node, geometry: Tensor) -> fx.Node:
        """The memory with a value at the places of a view; not by `as_strided_scatter`, two of which have a wrong gradient."""
        template = memory.template
        places = torch.arange(template.numel()).as_strided(geometry.shape, geometry.stride(), geometry.storage_offset())
        args = (self.line(memory.node), [self.constant(places.reshape(-1))], self.line(value))
        filled = self.emit(aten.index_put.default, args, {}, template.reshape(-1))
        return self.emit(aten.reshape.default, (filled, list(template.shape)), {}, template)

    def line(self, node: fx.Node) -> fx.Node:
        """A node's elements in one line; of a constant, another constant."""
        if node.op == "get_attr":
            line = node.meta["constant"].reshape(-1)
            if node.meta["data"]:
                self.mark_data(line)
            return self.constant(line)
        like = torch.empty(torch.Size(node.meta["shape"]).numel(), dtype=node.meta["dtype"], device="meta")
        return self.emit(aten.reshape.default, (node, [-1]), {}, like)

    def straighten(self, memory: _Memory) -> None:
        """Take memory whose axes lie in another order for a tensor with the axes in order of storage."""
        order = sorted(range(memory.template.dim()), key=lambda d: -memory.template.stride(d))
        memory.template = memory.template.permute(order)
        turned = self.emit(aten.permute.default, (memory.node, order), {}, memory.template)
        memory.node = self.emit(
            aten.clone.default, (turned,), {"memory_format": torch.contiguous_format}, memory.template
        )


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _positions(view: Tensor) -> Tensor:
    """Where in its memory each element of a view lies."""
    place = torch.tensor(int(view.storage_offset()))
    for size, stride in zip(view.shape, view.stride(), strict=True):
        place = place.unsqueeze(-1) + torch.arange(size) * stride
    return place.reshape(-1)


_GATHERS = {aten.gather.default, aten.index.Tensor, aten.index_select.default, aten.embedding.default}


def _is_uniform(tensor: Tensor) -> bool:
    """Whether all elements are equal, so that picking some by index gives the same whatever the index."""
    return not tensor.is_meta and tensor.numel() > 0 and bool((tensor == tensor.reshape(-1)[0]).all())


CHOICE = aten.topk.default
"""The operation by which activations choose."""

_VALUE_FREE = {
    aten.zeros_like.default,
    aten.ones_like.default,
    aten.full_like.default,
    aten.empty_like.default,
    aten.rand_like.default,
    aten.randn_like.default,
    aten.new_zeros.default,
    aten.new_ones.default,
    aten.new_full.default,
    aten.new_empty.default,
}

_TURNS = {
    aten.t_.default: aten.t.default,
    aten.transpose_.default: aten.transpose.int,
    aten.squeeze_.default: aten.squeeze.default,
    aten.squeeze_.dim: aten.squeeze.dim,
    aten.squeeze_.dims: aten.squeeze.dims,
    aten.unsqueeze_.default: aten.unsqueeze.default,
}
"""Operations that turn a tensor in place, and those that give a turned view."""

_LOOKS_AT_VALUES = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.is_nonzero.default,
    aten.masked_select.default,
    aten.equal.default,
    aten.allclose.default,
    aten.item.default,
    aten.bincount.default,
    aten._unique2.default,
}


@dataclasses.dataclass
class Capture:
    """A recorded forward pass.

    Attributes:
        graph: the `torch.fx` graph. Placeholders are parameters and persistent buffers (`meta["parameter"]` is the name),
            `get_attr` nodes are constants (`meta["constant"]`), everything else is an ATen operation.
        outputs: the nodes of the output tensors that count.
        tensors: name to shape of every parameter and persistent floating-point buffer of the model.
        ties: name of a tensor that is a second name of another, to the first name.
        buffers: names among `tensors` that are buffers.
        derived: names among `buffers` whose present value is part of the structure.
        symbolic: whether the run needed no numbers.
        together: whether all uses of a tensor are to be one.
        routed: whether choices were made for the activations, so that the graph is not all that the model does.
    """

    graph: fx.Graph
    outputs: list[fx.Node]
    tensors: dict[str, tuple[int, ...]]
    ties: dict[str, str]
    buffers: frozenset[str]
    derived: frozenset[str]
    symbolic: bool
    together: bool = False
    routed: bool = False

    @property
    def reached(self) -> set[str]:
        """Names of tensors on which the outputs depend."""
        return {node.meta["parameter"] for node in self.graph.nodes if node.op == "placeholder" and node.users}

    def copy(self) -> "Capture":
        """The same in a graph of its own, to be changed."""
        graph, known = fx.Graph(), dict[fx.Node, fx.Node]()
        for node in self.graph.nodes:
            known[node] = graph.node_copy(node, known.__getitem__)
        return dataclasses.replace(self, graph=graph, outputs=[known[o] for o in self.outputs])


def named_state(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str], frozenset[str]]:
    """Parameters and persistent floating-point buffers by name, second names of tied tensors, names of buffers."""
    persistent = set(model.state_dict(keep_vars=True))
    first: dict[int, str] = {}
    tensors: dict[str, Tensor] = {}
    ties: dict[str, str] = {}
    buffers = set()
    entries = [(name, p, False) for name, p in model.named_parameters(remove_duplicate=False)]
    entries += [(name, b, True) for name, b in model.named_buffers(remove_duplicate=False)]
    for name, tensor, is_buffer in entries:
        if is_buffer and (name not in persistent or not tensor.is_floating_point()):
            continue
        if id(tensor) in first:
            ties[name] = first[id(tensor)]
            continue
        first[id(tensor)] = name
        tensors[name] = tensor
        if is_buffer:
            buffers.add(name)
    return tensors, ties, frozenset(buffers)


def capture(
    model: nn.Module,
    inputs: Inputs,
    *,
    output: OutputSelector | None = None,
    frozen: bool = False,
    routed: bool = False,
) -> Capture:
    """Record `model(*inputs.args, **inputs.kwargs)`.

    A persistent buffer that is only a table, which the model first combines with positions or other constants (rotary
    frequencies), is a constant of the structure; a buffer that meets the data like a parameter does (running statistics) is
    a tensor of the state.

    Args:
        model: any module; it runs in evaluation mode and is left as it was. Its parameters may be on meta.
        inputs: real arguments.
        output: from the model's output to the tensor or tensors that count; default: all floating-point ones.
        frozen: take every buffer for a constant.
        routed: where activations choose (experts, by the largest scores), make the choice for them, the same in every model.

    Raises:
        CaptureError: the model does not run on these inputs, or does something that a graph cannot express.
    """
    try:
        return _settled(model, inputs, output, frozen, routed, in_float64=True)
    except CaptureError:
        return _settled(model, inputs, output, frozen, routed, in_float64=False)


def _settled(
    model: nn.Module, inputs: Inputs, output: OutputSelector | None, frozen: bool, routed: bool, in_float64: bool
) -> Capture:
    """A capture in which derived buffers are constants."""
    captured = _with_or_without_numbers(model, inputs, output, frozenset(), routed, in_float64)
    buffers = dict(model.named_buffers())
    found = captured.buffers if frozen else _derived_buffers(captured)
    derived = frozenset(n for n in found if not buffers[n].is_meta)
    if not derived:
        return captured
    if captured.symbolic:  # no number was looked at, so that it would run the same with those of the buffers
        values = {name: buffers[name].detach() for name in derived}
        if in_float64:
            values = {name: buffer.to(torch.float64) for name, buffer in values.items()}
        folded = _folded(captured, values, in_float64)
        if folded is not None:
            return folded
    return _with_or_without_numbers(model, inputs, output, derived, routed, in_float64)


def _folded(captured: Capture, values: Mapping[str, Tensor], in_float64: bool) -> Capture | None:
    """The capture, changed in place, with some buffers as constants: what depends on nothing else is a constant too.

    None, and nothing changed, if an output depends on nothing else.
    """
    graph = captured.graph
    tables = [n for n in graph.nodes if n.op == "placeholder" and n.meta["parameter"] in values]
    fixed = {n for n in graph.nodes if n.op == "get_attr"}.union(tables)
    for node in graph.nodes:
        if node.op == "call_function" and node.all_input_nodes and fixed.issuperset(node.all_input_nodes):
            fixed.add(node)
    if not fixed.isdisjoint(captured.outputs):
        return None
    recorder = _Recorder(graph, torch.device("cpu"), True, captured.routed, in_float64)
    known: dict[fx.Node, Any] = {}
    with recorder:
        for node in list(graph.nodes):
            recorder.scope[:] = [node.meta.get("scope", "")]
            if node.op == "get_attr":
                known[node] = node.meta["constant"]
                if node.meta["data"]:
                    recorder.mark_data(known[node])
            elif node.op == "placeholder" and node in fixed:
                known[node] = values[node.meta["parameter"]]
            elif node in fixed:
                args, kwargs = map_leaves(
                    lambda a: known[a] if isinstance(a, fx.Node) else a, (list(args_of(node)), dict(node.kwargs))
                )
                known[node] = target_of(node)(*args, **kwargs)
            elif node.op == "call_function":
                for argument in node.all_input_nodes:
                    if argument in fixed and argument.op != "get_attr":
                        with graph.inserting_before(node):
                            node.replace_input_with(argument, recorder.constant(known[argument]))
    outputs = with_outputs(graph, captured.outputs)
    for table in tables:
        graph.erase_node(table)
    return dataclasses.replace(captured, outputs=outputs, derived=frozenset(values))


def _with_or_without_numbers(
    model: nn.Module,
    inputs: Inputs,
    output: OutputSelector | None,
    derived: frozenset[str],
    routed: bool,
    in_float64: bool,
) -> Capture:
    on_meta = any(p.is_meta for p in model.parameters())
    try:
        return _capture(model, inputs, output, derived, symbolic=True, routed=routed, in_float64=in_float64)
    except _NeedsNumbers as error:
        if on_meta:
            raise CaptureError(
                "The model's control flow looks at the values of activations, so it cannot be recorded while its parameters "
                "are on meta. Load or initialise its weights first."
            ) from error
    except CaptureError:
        if on_meta:
            raise
    return _capture(model, inputs, output, derived, symbolic=False, routed=routed, in_float64=in_float64)


def _derived_buffers(captured: Capture) -> frozenset[str]:
    """Buffers of one number, and those that meet a constant tensor, or a wave function, before they meet the data."""
    waves = {aten.cos.default, aten.sin.default, aten.exp.default}
    origin: dict[fx.Node, set[str]] = {}
    derived = {name for name in captured.buffers if torch.Size(captured.tensors[name]).numel() == 1}
    for node in captured.graph.nodes:
        if node.op == "placeholder":
            origin[node] = {node.meta["parameter"]}
        elif node.op == "call_function":
            inputs = node.all_input_nodes
            if not all(a in origin or (a.op == "get_attr" and not a.meta["data"]) for a in inputs):
                continue
            names = {name for a in inputs for name in origin.get(a, ())}
            if not names <= captured.buffers:
                continue
            origin[node] = names
            constant = any(a.op == "get_attr" and a.meta["constant"].is_floating_point() for a in inputs)
            if node.target in waves or constant:
                derived |= names
    return frozenset(derived)


def _capture(
    model: nn.Module,
    inputs: Inputs,
    select: OutputSelector | None,
    derived: frozenset[str],
    *,
    symbolic: bool,
    routed: bool,
    in_float64: bool,
) -> Capture:
    model = shadow(model)
    tensors, ties, buffers = named_state(model)
    graph = fx.Graph()
    device = next((t.device for t in inputs.tensors()), torch.device("cpu"))
    recorder = _Recorder(graph, device, symbolic, routed, in_float64)
    swapped: dict[str, Tensor] = {
        name: recorder.parameter(name, t) for name, t in tensors.items() if name not in derived
    }
    for alias, name in ties.items():
        if name in swapped:
            swapped[alias] = swapped[name]
    for name, buffer in model.named_buffers():
        if buffer.is_meta and name not in swapped:  # a table without values: only its shape takes part
            swapped[name] = recorder.parameter(name, buffer)
    if in_float64:
        swapped |= {
            name: buffer.detach().to(torch.float64)
            for name, buffer in model.named_buffers()
            if name not in swapped and buffer.is_floating_point() and not buffer.is_meta
        }
    copies = inputs.map(
        lambda t: t.detach().to(torch.float64) if in_float64 and t.is_floating_point() else t.detach().clone()
    )
    for tensor in copies.tensors():
        recorder.mark_data(tensor)
    dtype = torch.float64 if in_float64 else torch.get_default_dtype()
    with (
        evaluation_mode(model),
        quiet_kernels(),
        default_dtype(dtype),
        _scopes(model, recorder),
        recorder,
        torch.random.fork_rng(devices=[]),
    ):
        torch.manual_seed(0)
        try:
            result = torch.func.functional_call(model, swapped, copies.args, copies.kwargs, tie_weights=False)
            chosen = output_tensors(result, select)
        except (_NeedsNumbers, PyrosysError):
            raise
        except Exception as error:
            if symbolic and _is_missing_numbers(error):
                raise _NeedsNumbers from error
            where = recorder.where or "the model"
            raise CaptureError(
                f"{type(model).__name__} did not run on {inputs!r}: {type(error).__name__} in {where}: {error}. "
                "Pass inputs that the model's forward accepts."
            ) from error
        outputs = [recorder.node_of(t) for t in chosen if recorder.is_traced(t)]
    if not outputs:
        raise CaptureError(
            f"Expected an output of {type(model).__name__} that depends on its parameters, found none. "
            "Name the tensors that count with source_output / target_output."
        )
    outputs = with_outputs(graph, outputs)
    shapes = {name: tuple(t.shape) for name, t in tensors.items()}
    return Capture(graph, outputs, shapes, ties, buffers, derived, symbolic, routed=routed)


def with_outputs(graph: fx.Graph, outputs: list[fx.Node]) -> list[fx.Node]:
    """Give a graph these outputs, instead of any that it has, with nothing that they do not need; gives what computes them now."""
    for node in [n for n in graph.nodes if n.op == "output"]:
        graph.erase_node(node)
    outputs = drop_products_of_zero(graph, _share_equal_nodes(graph, outputs))
    graph.output(tuple(outputs))
    drop_unused(graph)
    return outputs


def _share_equal_nodes(graph: fx.Graph, outputs: list[fx.Node]) -> list[fx.Node]:
    """Compute once what is computed twice: models that run their trunk again for a second output."""
    known: dict[Any, fx.Node] = {}
    instead: dict[fx.Node, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op == "get_attr":
            value = node.meta["constant"]
            if value.is_meta:
                continue
            raw = value.contiguous().reshape(-1)
            content = raw.view(torch.uint8).numpy().tobytes() if raw.numel() else b""
            key = ("constant", str(value.dtype), tuple(value.shape), node.meta["data"], hash(content), len(content))
        elif node.op == "call_function":
            for argument in node.all_input_nodes:
                if argument in instead:
                    node.replace_input_with(argument, instead[argument])
            key = ("call", node.target, repr(node.args), repr(node.kwargs))
        else:
            continue
        first = known.setdefault(key, node)
        if first is not node:
            instead[node] = first
            if (
                node.op == "get_attr"
                and node.meta["data"]
                and not _is_same(node.meta["constant"], first.meta["constant"])
            ):
                first.meta[EQUAL_HERE] = True
    return [instead.get(o, o) for o in outputs]


def _is_same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are one in memory."""
    return one.data_ptr() == other.data_ptr() and one.stride() == other.stride()


def _is_missing_numbers(error: BaseException) -> bool:
    """Whether an operation failed only because the symbolic run has no values to give it."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, (_NeedsNumbers, NotImplementedError)) or "meta" in str(seen):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def shadow(model: nn.Module) -> nn.Module:
    """A copy of the module tree that shares every tensor, so that what a forward pass caches stays out of the original."""
    memo: dict[int, Any] = {}
    plain: list[tuple[nn.Module, nn.Module]] = []
    for module in model.modules():
        for value in [*module._parameters.values(), *module._buffers.values(), *vars(module).values()]:
            if isinstance(value, Tensor):
                memo[id(value)] = value
        kind = type(module)
        if (
            not hasattr(kind, "__deepcopy__")
            and kind.__reduce_ex__ is object.__reduce_ex__
            and not _has_own_state(kind)
        ):
            memo[id(module)] = twin = kind.__new__(kind)
            plain.append((module, twin))
    try:
        # As `copy.deepcopy` does, which spends most of its time on the empty dictionaries of hooks.
        for module, twin in plain:
            vars(twin).update({name: _copied(value, memo) for name, value in vars(module).items()})
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise CaptureError(
            f"{type(model).__name__} cannot be copied ({type(error).__name__}: {error}), and recording must not change it. "
            "Remove what cannot be copied (open files, locks, results of earlier passes) from its attributes."
        ) from error


def _has_own_state(kind: type) -> bool:
    """Whether a class of modules says itself how it is copied."""
    own = {name for parent in kind.__mro__ if parent not in (nn.Module, object) for name in vars(parent)}
    return bool(own & {"__getstate__", "__setstate__", "__reduce__", "__getnewargs__", "__getnewargs_ex__", "__new__"})


_ATOMS = frozenset({type(None), bool, int, float, str})


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    kind = type(value)
    if kind in _ATOMS:
        return value
    if id(value) in memo:
        return memo[id(value)]
    if kind in (dict, OrderedDict):
        memo[id(value)] = found = kind()
        for key, item in value.items():
            found[_copied(key, memo)] = _copied(item, memo)
        return found
    if kind is set and _ATOMS.issuperset(map(type, value)):
        memo[id(value)] = found = set(value)
        return found
    return copy.deepcopy(value, memo)


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Run in evaluation mode; afterwards every submodule is in the mode it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextlib.contextmanager
def _scopes(model: nn.Module, recorder: _Recorder) -> Iterator[None]:
    """Keep the recorder told which submodule is running."""
    names = {module: name for name, module in model.named_modules()}

    def enter(module: nn.Module, args: Any) -> None:
        if module in names:
            recorder.scope.append(names[module])

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        if module in names and recorder.scope:
            recorder.scope.pop()

    handles = [hooks.register_module_forward_pre_hook(enter), hooks.register_module_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
