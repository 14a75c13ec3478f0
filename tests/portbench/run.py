"""One pair in one direction, in a process of its own: ``python -m tests.portbench.run NAME forward|reverse OUTPUT``.

Writes what the engine and its peers made of the pair, as JSON, after each of them.
"""

import importlib
import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import pyrosys
from pyrosys.errors import PyrosysError
from tests.adapters.twins import Called
from tests.portbench.pair import Pair, Probe
from tests.portbench.pairs import PAIRS
from tests.portbench.peers import MODULES, PEERS, State

__all__ = ["ENGINE", "run"]

ENGINE = "pyrosys"
Port = Callable[[nn.Module, nn.Module], None]
Result = dict[str, Any]


def run(pair: Pair, output: Path) -> None:
    """Write the results of the engine and then of its peers, by tool."""
    results: dict[str, Result] = {}
    for tool, port in _ports(pair).items():
        try:
            if tool in MODULES:
                importlib.import_module(MODULES[tool])  # so that this is not timed
            results[tool] = _judge(pair, port, refusal=PyrosysError if tool == ENGINE else Exception)
        except Exception as error:
            results[tool] = {"outcome": "error", "message": _message(error)}
        output.write_text(json.dumps(results))


def _ports(pair: Pair) -> dict[str, Port]:
    def engine(source: nn.Module, target: nn.Module) -> None:
        plan = pyrosys.match(
            source,
            target,
            pair.inputs(0),
            pair.target_inputs and pair.target_inputs(0),
            source_output=pair.source_output,
            target_output=pair.target_output,
        )
        target.load_state_dict(plan.apply(source.state_dict()))

    def by(peer: Callable[[State, nn.Module], State]) -> Port:
        def port(source: nn.Module, target: nn.Module) -> None:
            source, target = _bare(source), _bare(target)
            target.load_state_dict(peer(source.state_dict(), target))

        return port

    return {ENGINE: engine} | {name: by(peer) for name, peer in PEERS.items()}


def _bare(model: nn.Module) -> nn.Module:
    """The model as its package has it; peers read names."""
    return model.model if isinstance(model, Called) else model


def _judge(pair: Pair, port: Port, refusal: type[Exception]) -> Result:
    """Port with one tool, load strictly, and compare on examples that the tool has not seen."""
    source, target = pair.source(1), pair.target(2)
    _difference(pair, source, target, seed=0)  # both run, and return the same shapes
    start = time.perf_counter()
    try:
        port(source, target)
    except refusal as error:
        return {"outcome": "refused", "message": _message(error), "seconds": time.perf_counter() - start}
    seconds = time.perf_counter() - start
    difference = max(_difference(pair, source, target, seed) for seed in (1, 2))
    outcome = "exact" if pair.same and difference <= pair.tolerance else "wrong"
    message = "" if outcome == "exact" else f"loaded; largest relative difference {difference:.1e}"
    return {"outcome": outcome, "message": message, "seconds": seconds}


def _difference(pair: Pair, source: nn.Module, target: nn.Module, seed: int) -> float:
    """Largest difference of the two on one example, relative to the largest output; infinite where one is not a number."""
    expected = _outputs(source, pair.inputs(seed), pair.source_output)
    found = _outputs(target, (pair.target_inputs or pair.inputs)(seed), pair.target_output)
    shapes = [[tuple(tensor.shape) for tensor in tensors] for tensors in (expected, found)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"The two return different shapes: {shapes[0]} and {shapes[1]}.")
    if not all(tensor.isfinite().all() for tensor in expected):
        raise ValueError("The source returns numbers that are not finite.")
    return max(
        float(((left - right).abs().max() / left.abs().max().clamp(min=1e-12)).nan_to_num(nan=float("inf")))
        for left, right in zip(expected, found, strict=True)
    )


def _outputs(model: nn.Module, probe: Probe, select: Callable[[Any], Any] | None) -> list[Tensor]:
    torch.manual_seed(0)  # some draw random numbers as they run
    with torch.no_grad():
        output = model(**probe) if isinstance(probe, dict) else model(*probe)
    tensors = tree_leaves(output if select is None else select(output))
    return [tensor for tensor in tensors if isinstance(tensor, Tensor)]


def _message(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    name, direction, path = sys.argv[1:]
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    run(PAIRS[name] if direction == "forward" else PAIRS[name].reverse, Path(path))
