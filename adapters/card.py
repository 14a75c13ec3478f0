"""A structure card: the recorded graph of a model as plain data, so that its weights can be ported without its code.

A card holds the ATen graph, the constants and inputs of the probe, names and shapes of the tensors, and the fingerprint. It
holds operations by name from a fixed namespace (`aten`), never code; running it means calling those operations.
"""

import dataclasses
import gzip
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from pyrosys.adapters.capture import Capture, Inputs, OutputSelector, as_inputs, capture
from pyrosys.adapters.execute import execute
from pyrosys.adapters.fingerprint import of_structure
from pyrosys.adapters.part import Part, Value
from pyrosys.adapters.records import MALFORMED, check_sizes, decode, encode, node_from_json, node_to_json
from pyrosys.errors import InputError, WeightsError

__all__ = ["FORMAT", "CardSide", "StructureCard"]

FORMAT = "pyrosys-structure/1"


@dataclasses.dataclass
class StructureCard:
    """A model's structure without its code and weights.

    Attributes:
        name: what it is the structure of.
        captured: the recorded forward pass on the probe.
        inputs: the probe, in the form that the model takes.
        fingerprint: of the whole.
        dtypes: names and types of the tensors of the state.
        fingerprints: of every submodule that the probe runs, by name.
    """

    name: str
    captured: Capture
    inputs: Inputs
    fingerprint: str
    dtypes: dict[str, str]
    fingerprints: dict[str, str] = dataclasses.field(default_factory=dict)

    @staticmethod
    def of(
        model: nn.Module, inputs: Any = None, *, name: str | None = None, output: OutputSelector | None = None
    ) -> "StructureCard":
        """Record a model on a probe.

        Args:
            model: any module; weights are not kept.
            inputs: example arguments; default: its `example_input_array`.
            name: what to call it; default: the class name.
            output: from the model's output to the tensors that count.
        """
        from pyrosys.adapters.structure import Structure

        probe = as_inputs(inputs if inputs is not None else model.example_input_array)[0]
        captured = capture(model, probe, output=output)
        dtypes = {
            n: str(t.dtype).removeprefix("torch.") for n, t in model.state_dict().items() if isinstance(t, Tensor)
        }
        found = of_structure(Structure(captured))
        return StructureCard(name or type(model).__name__, captured, probe, found.whole, dtypes, found.parts)

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor of the state."""
        return self.captured.tensors

    @property
    def order(self) -> list[str]:
        """Names of all tensors, those that the model uses first, in the order in which it uses them."""
        used = [a for node in self.captured.graph.nodes for a in node.all_input_nodes if a.op == "placeholder"]
        return list(dict.fromkeys([*(a.meta["parameter"] for a in used), *sorted(self.tensors)]))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write JSON, compressed when the name ends in `.gz`; the bytes depend on the content only."""
        text = json.dumps(self.to_json(), separators=(",", ":"), sort_keys=True).encode()
        data = gzip.compress(text, mtime=0) if str(path).endswith(".gz") else text
        destination = pathlib.Path(path)
        temporary = destination.with_name(f".{destination.name}.{os.getpid()}")
        try:
            temporary.write_bytes(data)
            os.replace(temporary, destination)
        finally:
            temporary.unlink(missing_ok=True)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "StructureCard":
        """Read a card.

        Raises:
            WeightsError: the file is missing, damaged, of a later version, or names an operation outside `aten`.
        """
        try:
            data = pathlib.Path(path).read_bytes()
            text = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
            return StructureCard.from_json(json.loads(text))
        except OSError as error:
            raise WeightsError(f"Cannot read the structure card {path}: {error}.") from error
        except MALFORMED as error:
            raise WeightsError(f"The structure card {path} is damaged: {type(error).__name__}: {error}.") from error

    def to_json(self) -> dict[str, Any]:
        numbers = {node: i for i, node in enumerate(self.captured.graph.nodes)}
        nodes = [node_to_json(node, numbers) for node in self.captured.graph.nodes if node.op != "output"]
        return {
            "format": FORMAT,
            "name": self.name,
            "fingerprint": self.fingerprint,
            "fingerprints": self.fingerprints,
            "tensors": {n: [list(s), self.dtypes[n]] for n, s in self.captured.tensors.items()},
            "ties": self.captured.ties,
            "buffers": sorted(self.captured.buffers),
            "derived": sorted(self.captured.derived),
            "inputs": {"args": encode(list(self.inputs.args)), "kwargs": encode(dict(self.inputs.kwargs))},
            "nodes": nodes,
            "outputs": [numbers[o] for o in self.captured.outputs],
        }

    @staticmethod
    def from_json(data: Any) -> "StructureCard":
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            found = data.get("format") if isinstance(data, dict) else type(data).__name__
            raise WeightsError(f"Expected a structure card of format {FORMAT!r}, found {found!r}.")
        graph = fx.Graph()
        nodes: list[fx.Node] = []
        for entry in data["nodes"]:
            nodes.append(node_from_json(entry, graph, nodes))
        check_sizes(nodes)
        outputs = [nodes[i] for i in data["outputs"]]
        graph.output(tuple(outputs))
        captured = Capture(
            graph,
            outputs,
            {n: tuple(shape) for n, (shape, _) in data["tensors"].items()},
            dict(data["ties"]),
            frozenset(data["buffers"]),
            frozenset(data["derived"]),
            True,
        )
        inputs = Inputs(*decode(data["inputs"]["args"]), **decode(data["inputs"]["kwargs"]))
        dtypes = {n: dtype for n, (_, dtype) in data["tensors"].items()}
        parts = {str(part): str(value) for part, value in data.get("fingerprints", {}).items()}
        return StructureCard(str(data["name"]), captured, inputs, str(data["fingerprint"]), dtypes, parts)


class CardSide:
    """A structure card as the source of a match: it runs by calling the recorded operations.

    Args:
        card: the structure.
        weights: tensors by the card's names, to verify with; without them only random parameters are compared.
    """

    def __init__(self, card: StructureCard, weights: Mapping[str, Tensor] | None = None):
        self.card = card
        self.name = card.name
        self.probes = [card.inputs]
        self.weights = weights
        self.chosen: list[int] | None = None

    def capture(self, probe: int = 0) -> Capture:
        """The recorded forward pass."""
        del probe
        return self.card.captured

    def values(self) -> list[tuple[fx.Node, list[Value]]]:
        """What each submodule hands on to the rest of the model, and the outputs, as the graph tells."""
        inside: dict[str, set[fx.Node]] = {}
        for node in self.card.captured.graph.nodes:
            scope = node.meta.get("scope", "") if node.op == "call_function" else ""
            while scope:
                inside.setdefault(scope, set()).add(node)
                scope = scope.rpartition(".")[0]
        outputs = self.card.captured.outputs
        found: dict[fx.Node, list[Value]] = {}
        for number, node in enumerate(outputs):
            found.setdefault(node, []).append(Value("", 0, number))
        for path, nodes in inside.items():
            ends = [n for n in nodes if n in outputs or any(user not in nodes for user in n.users)]
            for number, node in enumerate(sorted(ends)):
                found.setdefault(node, []).append(Value(path, 0, number))
        return list(found.items())

    def part(self, part: Part) -> "CardSide":
        """The side with other outputs.

        Raises:
            InputError: the card has no such values, or the part would run on its own.
        """
        if part.alone is not None:
            raise InputError("A structure card cannot run a submodule on its own. Name a value that it computes.")
        if not part.values:
            return self
        outputs: list[fx.Node] = []
        known = self.values()
        for value in part.values:
            nodes = [n for n, labels in known for v in labels if (v.path, v.call) == (value.path, value.call)]
            if not nodes:
                paths = sorted({v.path for _, labels in known for v in labels})
                raise InputError(
                    f"Expected a submodule of {self.name}, found {value.path!r}. It has {', '.join(paths)}."
                )
            outputs += nodes if value.number is None else [nodes[value.number]]
        captured = dataclasses.replace(self.card.captured, outputs=outputs)
        side = CardSide(dataclasses.replace(self.card, captured=captured), self.weights)
        side.name = f"{self.card.name} ({part})"
        return side

    def choose(self, outputs: list[int]) -> None:
        """Keep only some of the outputs, by number."""
        self.chosen = outputs

    def possible(self) -> frozenset[str]:
        """A card's constants are fixed, and its graph stays as it is."""
        return frozenset()

    def read(self, readings: frozenset[str]) -> None:
        """Nothing to do: there is one reading."""

    def state(self) -> Mapping[str, Tensor]:
        if self.weights is not None:
            return self.weights
        return {
            n: torch.empty(shape, dtype=getattr(torch, self.card.dtypes[n]), device="meta")
            for n, shape in self.card.captured.tensors.items()
        }

    def is_meta(self) -> bool:
        return self.weights is None

    def run(self, state: Mapping[str, Tensor], probe: int, dtype: torch.dtype) -> list[Tensor]:
        """Outputs under a state, in float64 whatever the precision asked for."""
        del probe
        captured = self.card.captured
        chosen = captured.outputs if self.chosen is None else [captured.outputs[i] for i in self.chosen]
        found = {node: value for node, value in execute(captured, state) if node in chosen}
        return [found[o].to(dtype) for o in chosen]
