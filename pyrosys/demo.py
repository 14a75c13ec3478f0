"""The demonstration: published weights, a real protein, and every number computed while you watch."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import as_file, files
from typing import Any, cast

import torch

from pyrosys.catalogue import Layout, build, info
from pyrosys.hub import fetch_first, read_weights
from pyrosys.inverse_folding import InverseFolding
from pyrosys.porting import port
from pyrosys.structure import read_structure

__all__ = ["run"]

NAME = "proteinmpnn-v48-020"
DESIGNS = 4


def run() -> None:
    """Port the published weights of ProteinMPNN into our model, then score and design ubiquitin with them.

    Raises:
        SourceError: The weights are neither in the cache nor reachable.
    """
    facts, layout = info(NAME), Layout.of(NAME)
    _section("1. The weights, as their authors published them")
    with _timed("Fetching"):
        path = fetch_first(facts["sources"])
        weights = read_weights(path, allow_pickle=True)  # its digest is on record and has been checked
    print(f"{NAME}: {facts['paper']}.")
    source = facts["sources"][0]
    print(f"{source['uri'].rpartition('/')[2]}: {len(weights)} tensors, sha256 {source['sha256'][:16]}….")
    print(f"Licence of the weights: {facts['weights_licence']}.")

    _section("2. From their implementation into ours, by structure")
    model, card = cast("InverseFolding[Any]", build(NAME).eval()), layout.card
    theirs, ours = next(iter(weights)), next(iter(model.state_dict()))
    print(f"Their first tensor is called {theirs!r},")
    print(f"ours {ours!r}, and no table says which is which.")
    print(
        f"The card of their implementation holds its computation as a graph of {len(card.captured.graph.nodes)} nodes."
    )
    side = layout.side(model)
    with _timed("Matching the two computations (less than a minute)"), _one_thread():
        ported = port(weights, side.model, source=card, target_inputs=side.probes[0])
    print("A few of the tensors that it found:")
    for target, (piece, *_) in list(ported.plan.pieces.items())[::25]:
        print(f"  {target:<44} ← {piece.source}")
    print(f"All {len(ported.plan.target)} tensors of our model are set. Both were then run on one example:")
    for line in str(ported.certificate).splitlines():
        print(f"  {line}")

    _section("3. Ubiquitin")
    with as_file(files("pyrosys") / "data" / "1ubq.cif.gz") as file:
        structure = read_structure(file)
    score = model.score(structure)
    print(f"Backbone: PDB entry 1UBQ, {len(structure)} residues. Its own sequence:")
    print(f"  {structure.sequence}")
    print(f"  perplexity {score.perplexity:.2f}: at each residue the model hesitates between about that many letters,")
    print("  where a guess among all twenty would have 20.")
    with _timed(f"Writing {DESIGNS} new sequences"):
        designs = model.design(structure, temperature=0.1, samples=DESIGNS)
    for design in designs:
        print(f"  {design.sequence}  recovery {design.recovery:.0%}, perplexity {design.perplexity:.2f}")
    mean = math.fsum(design.recovery for design in designs) / len(designs)
    print(
        f"On average {mean:.0%} of the letters are those of nature, of which the model was not told; chance gives 5%."
    )
    print("Where they differ, they are proposals for the same fold; only an experiment can tell whether they fold.")


def _section(title: str) -> None:
    print(f"\n{title}\n{'─' * len(title)}", flush=True)


@contextmanager
def _timed(what: str) -> Iterator[None]:
    """Say that something is under way, and how long it took."""
    start = time.monotonic()
    print(f"{what} …", end=" ", flush=True)
    yield
    print(f"{time.monotonic() - start:.0f} s", flush=True)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Match on one thread: the engine's many small steps are slower on several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
