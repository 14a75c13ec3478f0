"""Which outputs of two models correspond."""

from pyrosys.adapters.sides import Side
from pyrosys.adapters.structure import Structure
from pyrosys.errors import StructureMismatch

__all__ = ["align_outputs"]


def align_outputs(source: Side, target: Side, structures: tuple[Structure, Structure]) -> list[tuple[int, int]]:
    """Pair the outputs of both sides by shape, in order; drop those that only one side returns. Gives their numbers."""
    left, right = (list(s.capture.outputs) for s in structures)
    shapes_left, shapes_right = [tuple(o.meta["shape"]) for o in left], [tuple(o.meta["shape"]) for o in right]
    pairs: list[tuple[int, int]] = []
    taken: set[int] = set()
    for i, shape in enumerate(shapes_left):
        candidates = [j for j, other in enumerate(shapes_right) if other == shape and j not in taken]
        if candidates:
            pairs.append((i, candidates[0]))
            taken.add(candidates[0])
    if not pairs:
        raise StructureMismatch(
            f"Expected outputs of the same shape, found {_shapes(shapes_left)} from {source.name} and {_shapes(shapes_right)} "
            f"from {target.name}. Name the tensors that count with source_output and target_output."
        )
    for side, structure, position in ((source, structures[0], 0), (target, structures[1], 1)):
        chosen = [pair[position] for pair in pairs]
        all_outputs = structure.capture.outputs
        structure.restrict([all_outputs[i] for i in chosen])
        if len(chosen) != len(all_outputs):
            side.choose(chosen)
    return pairs


def _shapes(shapes: list[tuple[int, ...]]) -> str:
    return ", ".join(str(s) for s in shapes) or "none"
