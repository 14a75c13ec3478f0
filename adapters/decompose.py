"""Fused ATen operations, rewritten so that each parameter meets the data in an operation of its own.

`layer_norm(x, weight, bias)` is a normalisation without parameters, a product and a sum; `addmm` is a product of matrices
and a sum. After this, a parameter is used in one of three ways only: contracted with the data, multiplied onto it, or added
to it.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["DECOMPOSITIONS"]

aten = torch.ops.aten
DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {}


def _register(*operations: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def keep(function: Callable[..., Any]) -> Callable[..., Any]:
        for operation in operations:
            DECOMPOSITIONS[operation] = function
        return function

    return keep


def _scaled(x: Tensor, factor: Any) -> Tensor:
    return x if factor == 1 else x * factor


@_register(aten.linear.default)
def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    flat = x.reshape(-1, x.shape[-1])
    y = torch.mm(flat, weight.t()).reshape(*x.shape[:-1], weight.shape[0])
    return y if bias is None else y + bias


@_register(aten.addmm.default)
def _addmm(bias: Tensor, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
    return _scaled(torch.mm(a, b), alpha) + _scaled(bias, beta)


@_register(aten.baddbmm.default)
def _baddbmm(bias: Tensor, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
    product = _scaled(torch.bmm(a, b), alpha)
    return product if beta == 0 else product + _scaled(bias, beta)


@_register(aten.addbmm.default)
def _addbmm(bias: Tensor, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
    return _scaled(torch.bmm(a, b).sum(0), alpha) + _scaled(bias, beta)


@_register(aten.mv.default)
def _mv(matrix: Tensor, vector: Tensor) -> Tensor:
    return torch.mm(matrix, vector.unsqueeze(1)).squeeze(1)


@_register(aten.addmv.default)
def _addmv(bias: Tensor, matrix: Tensor, vector: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
    return _scaled(_mv(matrix, vector), alpha) + _scaled(bias, beta)


@_register(aten.dot.default, aten.vdot.default)
def _dot(a: Tensor, b: Tensor) -> Tensor:
    return torch.mm(a.unsqueeze(0), b.unsqueeze(1)).reshape(())


@_register(aten.addcmul.default)
def _addcmul(x: Tensor, a: Tensor, b: Tensor, *, value: Any = 1) -> Tensor:
    return x + _scaled(a * b, value)


@_register(aten.lerp.Tensor)
def _lerp(start: Tensor, end: Tensor, weight: Tensor) -> Tensor:
    return start + weight * (end - start)


@_register(aten.addr.default)
def _addr(bias: Tensor, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
    return _scaled(torch.mm(a.unsqueeze(1), b.unsqueeze(0)), alpha) + _scaled(bias, beta)


@_register(aten.native_layer_norm.default)
def _native_layer_norm(x: Tensor, shape: list[int], weight: Tensor | None, bias: Tensor | None, eps: float) -> Any:
    if weight is None and bias is None:
        return NotImplemented
    y, mean, scale = aten.native_layer_norm.default(x, shape, None, None, eps)
    return _affine(y, weight, bias), mean, scale


@_register(aten._fused_rms_norm.default)
def _fused_rms_norm(x: Tensor, shape: list[int], weight: Tensor | None, eps: float | None) -> Any:
    dims = list(range(-len(shape), 0))
    floor = torch.finfo(x.dtype).eps if eps is None else eps
    scale = torch.rsqrt(x.pow(2).mean(dims, keepdim=True) + floor)
    return _affine(x * scale, weight, None), scale


@_register(aten.rms_norm.default)
def _rms_norm(x: Tensor, shape: list[int], weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    return _fused_rms_norm(x, shape, weight, eps)[0]


@_register(aten.native_group_norm.default)
def _native_group_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, n: int, channels: int, area: int, groups: int, eps: float
) -> Any:
    rows = x.reshape(n, groups, -1)
    y, mean, scale = aten.native_layer_norm.default(rows, [rows.shape[-1]], None, None, eps)
    return _affine(y.reshape(x.shape), _channelwise(weight, x), _channelwise(bias, x)), mean, scale


def _channelwise(parameter: Tensor | None, x: Tensor) -> Tensor | None:
    return None if parameter is None else parameter.reshape(1, -1, *([1] * (x.dim() - 2)))


def _affine(y: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    if weight is not None:
        y = y * weight
    return y if bias is None else y + bias


def _frozen_batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, variance: Tensor, eps: float
) -> Tensor:
    shape = [1, -1, *([1] * (x.dim() - 2))]
    y = (x - mean.reshape(shape)) * torch.rsqrt(variance + eps).reshape(shape)
    return _affine(y, _channelwise(weight, x), _channelwise(bias, x))


@_register(aten.native_batch_norm.default, aten.cudnn_batch_norm.default)
def _native_batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> Any:
    if training or mean is None or variance is None:
        return NotImplemented
    empty = torch.zeros(0)
    return _frozen_batch_norm(x, weight, bias, mean, variance, eps), empty, empty


@_register(aten._native_batch_norm_legit_no_training.default)
def _native_batch_norm_no_training(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, variance: Tensor, momentum: float, eps: float
) -> Any:
    empty = torch.zeros(0)
    return _frozen_batch_norm(x, weight, bias, mean, variance, eps), empty, empty


@_register(aten._batch_norm_impl_index.default)
def _batch_norm_impl(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn: bool,
) -> Any:
    result = _native_batch_norm(x, weight, bias, mean, variance, training, momentum, eps)
    return result if result is NotImplemented else (*result, torch.zeros(0), 0)


@_register(aten.convolution.default)
def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
) -> Any:
    if bias is None:
        return NotImplemented
    y = aten.convolution.default(x, weight, None, stride, padding, dilation, transposed, output_padding, groups)
    return y + bias.reshape(1, -1, *([1] * (y.dim() - 2)))


@_register(aten.index.Tensor)
def _index(x: Tensor, indices: list[Tensor | None]) -> Any:
    return _with_integer_indices(indices, lambda found: aten.index.Tensor(x, found))


@_register(aten.index_put.default)
def _index_put(x: Tensor, indices: list[Tensor | None], values: Tensor, accumulate: bool = False) -> Any:
    return _with_integer_indices(indices, lambda found: aten.index_put.default(x, found, values, accumulate))


def _with_integer_indices(indices: list[Tensor | None], apply: Callable[[list[Tensor | None]], Tensor]) -> Any:
    """Boolean masks spelled as the positions they select, so that shapes are known."""
    if not any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices):
        return NotImplemented
    found: list[Tensor | None] = []
    for index in indices:
        if index is not None and index.dtype in (torch.bool, torch.uint8):
            found.extend(index.nonzero().unbind(1))
        else:
            found.append(index)
    return apply(found)


@_register(aten.glu.default)
def _glu(x: Tensor, dim: int = -1) -> Tensor:
    value, gate = x.chunk(2, dim)
    return value * gate.sigmoid()
