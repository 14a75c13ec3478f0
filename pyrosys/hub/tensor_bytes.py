"""Tensors as plain bytes, with the names that safetensors gives to their types."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from pyrosys.errors import InputError

__all__ = ["DTYPES", "DTYPE_NAMES", "byte_count", "describe", "tensor_bytes"]

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def describe(name: str, tensor: Tensor) -> str:
    """Return type and shape, as in ``F32[2,3]``.

    Raises:
        InputError: The tensor has no plain bytes: it is sparse, quantised, on the meta device, or of an unusual type.

    Example:
        >>> describe("weight", torch.zeros(2, 3))
        'F32[2,3]'
    """
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta or tensor.dtype not in DTYPE_NAMES:
        raise InputError(
            f"Expected {name!r} to be a dense tensor of one of the types {', '.join(DTYPES)}, found {tensor.dtype} "
            f"with layout {tensor.layout} on device {tensor.device}. Convert it first."
        )
    return f"{DTYPE_NAMES[tensor.dtype]}[{','.join(map(str, tensor.shape))}]"


def tensor_bytes(tensor: Tensor) -> memoryview:
    """Return the elements in row-major order, little-endian; without a copy where the tensor already lies so."""
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    return plain.reshape(-1).view(torch.uint8).numpy().data


def byte_count(dtype: torch.dtype, shape: Iterable[int]) -> int:
    """Return the size in bytes of a tensor, exactly, however large."""
    return math.prod(shape) * dtype.itemsize
