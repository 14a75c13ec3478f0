"""The certificate of a port: what was run, what was compared, and how close it was."""

import dataclasses
import platform
from typing import Any

__all__ = ["Certificate", "Comparison", "versions"]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One comparison of the two models' outputs.

    Attributes:
        parameters: `"random"`, `"random, small"` or `"real"`; random ones also with choices made for the activations, where these
            choose (experts): so that each is chosen.
        precision: dtype of the run.
        difference: largest absolute difference over all outputs and probes.
        scale: largest absolute output.
        tolerance: what was allowed: a multiple of the source's own response to rounding, measured.
        rounding: precision whose rounding the tolerance comes from.
    """

    parameters: str
    precision: str
    difference: float
    scale: float
    tolerance: float
    rounding: str


@dataclasses.dataclass(frozen=True)
class Certificate:
    """Proof that two models compute the same function, as far as it was checked.

    Attributes:
        comparisons: every comparison, in order.
        max_difference: the largest difference with real weights if they were run, else with random ones.
        probes: the inputs, in words.
        outputs: shapes of the compared outputs.
        source_digest, target_digest: Merkle digests of both states (names sorted), where real weights were compared.
        fingerprints: structure fingerprints of source and target.
        unobservable: tensors that no probe can see.
        compared: which parts of source and target were compared; None for the models' outputs.
        versions: of this library, torch and Python.
    """

    comparisons: tuple[Comparison, ...]
    probes: tuple[str, ...]
    outputs: tuple[tuple[int, ...], ...]
    source_digest: str | None = None
    target_digest: str | None = None
    fingerprints: tuple[str, str] | None = None
    unobservable: tuple[str, ...] = ()
    compared: str | None = None
    versions: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def max_difference(self) -> float:
        real = [c.difference for c in self.comparisons if c.parameters == "real"]
        return max(real or [c.difference for c in self.comparisons], default=float("nan"))

    def to_json(self) -> dict[str, Any]:
        return {
            "comparisons": [dataclasses.asdict(c) for c in self.comparisons],
            "max_difference": self.max_difference,
            "probes": list(self.probes),
            "outputs": [list(shape) for shape in self.outputs],
            "source_digest": self.source_digest,
            "target_digest": self.target_digest,
            "fingerprints": None if self.fingerprints is None else list(self.fingerprints),
            "unobservable": list(self.unobservable),
            "compared": self.compared,
            "versions": self.versions,
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> "Certificate":
        prints = data.get("fingerprints")
        return Certificate(
            comparisons=tuple(Comparison(**c) for c in data["comparisons"]),
            probes=tuple(data["probes"]),
            outputs=tuple(tuple(shape) for shape in data["outputs"]),
            source_digest=data.get("source_digest"),
            target_digest=data.get("target_digest"),
            fingerprints=None if prints is None else (prints[0], prints[1]),
            unobservable=tuple(data.get("unobservable", ())),
            compared=data.get("compared"),
            versions=dict(data["versions"]),
        )

    def __str__(self) -> str:
        lines = [
            f"{c.parameters} parameters, {c.precision}: difference {c.difference:.1e} of outputs up to {c.scale:.1e} "
            f"(allowed {c.tolerance:.1e})"
            for c in self.comparisons
        ]
        if self.compared is not None:
            lines.insert(0, f"part of the models only: {self.compared}")
        return "\n".join(lines) or "structure only; nothing was run"


def versions() -> dict[str, str]:
    """Versions that the certificate names."""
    import importlib.metadata

    names = ("pyrosys", "torch", "numpy")
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "unknown"
    return {**found, "python": platform.python_version()}
