"""A spec in a spelling, as a module, and examples of what it takes."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.adapters.generated.branches import branch
from tests.adapters.generated.primitives import Part, linear, maps, norm, parameter
from tests.adapters.generated.spec import FEATURES, PAIR_FEATURES, VOCABULARY, Spec, Step
from tests.adapters.generated.spelling import Spelling
from tests.adapters.twins import Renamed

__all__ = ["Model", "Sizes", "built", "example", "select"]

POSITIONS = 12


class StepLayer(nn.Module):
    def __init__(self, spelling: Spelling, path: str, spec: Spec, step: Step) -> None:
        super().__init__()
        self.step = step
        pairs = spec.width if spec.stem == "rows" else PAIR_FEATURES
        paths = [f"{path} branch {number}" for number in range(len(step.branches))]
        self.branches = nn.ModuleList(
            branch(spelling, name, one, spec.width, step.gain, pairs)
            for name, one in zip(paths, step.branches, strict=True)
        )
        self.before = self.after = None
        if step.placement in ("pre", "both"):
            self.before = norm(spelling, f"{path} norm", spec.norm, spec.width)
        if step.placement in ("post", "both"):
            self.after = norm(spelling, f"{path} norm after", spec.norm, spec.width)
        self.turned = spelling.choose(f"{path} sum", False, True)

    def forward(self, x: Tensor, given: dict[str, Tensor]) -> Tensor:
        step = self.step
        y = x if self.before is None else self.before(x)
        added = [one(y, given) for one in self.branches]
        if self.turned:
            added.reverse()
        total = added[0] if len(added) == 1 else added[0] + added[1]
        if step.placement == "both":
            assert self.after is not None
            total = self.after(total)
        if step.skip:
            total = total + x if self.turned else x + total
        if step.factor != 1.0:
            total = total * step.factor
        return self.after(total) if self.after is not None and step.placement == "post" else total


class Layer(nn.Module):
    def __init__(self, spelling: Spelling, path: str, spec: Spec) -> None:
        super().__init__()
        self.steps = nn.ModuleList(
            StepLayer(spelling, f"{path} step {number}", spec, step) for number, step in enumerate(spec.steps)
        )

    def forward(self, x: Tensor, given: dict[str, Tensor]) -> Tensor:
        for step in self.steps:
            x = step(x, given)
        return x


class Stacked(nn.Module):
    """Layers whose tensors of one role lie in one tensor, layer by layer."""

    def __init__(self, layers: list[Layer]) -> None:
        super().__init__()
        self.__dict__["layer"] = layers[0]  # past nn.Module's own registration
        self.depth = len(layers)
        self.names = {
            name: name.replace(".", "_") for name, _ in [*layers[0].named_parameters(), *layers[0].named_buffers()]
        }
        saved = set(layers[0].state_dict())
        for name, flat in self.names.items():
            stack = torch.stack(
                [
                    layer.get_parameter(name) if _is_parameter(layer, name) else layer.get_buffer(name)
                    for layer in layers
                ]
            )
            if _is_parameter(layers[0], name):
                self.register_parameter(flat, parameter(stack))
            else:
                self.register_buffer(flat, stack, persistent=name in saved)

    def forward(self, x: Tensor, given: dict[str, Tensor]) -> Tensor:
        for depth in range(self.depth):
            tensors = {name: getattr(self, flat)[depth] for name, flat in self.names.items()}
            x = torch.func.functional_call(self.__dict__["layer"], tensors, (x, given))
        return x


def _is_parameter(module: nn.Module, name: str) -> bool:
    return name in dict(module.named_parameters())


class Flat(nn.Module):
    """Any module with all its parameters in one vector."""

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.__dict__["original"] = original
        parameters = dict(original.named_parameters())
        self.shapes = {name: one.shape for name, one in parameters.items()}
        self.vector = parameter(torch.cat([one.flatten() for one in parameters.values()]))
        self.aliases = {
            name: next(first for first, mine in parameters.items() if mine is one)
            for name, one in original.named_parameters(remove_duplicate=False)
        }
        saved = set(original.state_dict())
        self.kept = {name: name.replace(".", "_") for name, _ in original.named_buffers()}
        for name, flat in self.kept.items():
            self.register_buffer(flat, original.get_buffer(name), persistent=name in saved)

    def forward(self, *inputs: Any) -> Any:
        parts = self.vector.split([shape.numel() for shape in self.shapes.values()])
        views = {name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}
        tensors = {name: views[first] for name, first in self.aliases.items()}
        tensors |= {name: getattr(self, flat) for name, flat in self.kept.items()}
        return torch.func.functional_call(self.__dict__["original"], tensors, inputs, tie_weights=False)


class Pooling(nn.Module):
    def __init__(self, spelling: Spelling, spec: Spec) -> None:
        super().__init__()
        self.kind = spec.pooling
        self.scores = linear(spelling, "pooling", spec.width, 1, bias=False) if self.kind == "attention" else None
        self.way = spelling.choose("pooled", "library", "by hand")

    def forward(self, x: Tensor) -> Tensor:
        by_hand = self.way == "by hand"
        match self.kind:
            case "mean":
                return x.sum(1) / x.shape[1] if by_hand else x.mean(1)
            case "max":
                return x.max(1).values if by_hand else x.amax(1)
            case "first":
                return x.select(1, 0) if by_hand else x[:, 0]
            case "attention":
                assert self.scores is not None
                weights = self.scores(x).softmax(1)
                return (weights.mT @ x).squeeze(1) if by_hand else (weights * x).sum(1)
        return x


class Model(nn.Module):
    """What a spec says, in a spelling.

    Attributes:
        letters: The place of each token in this model's alphabet.
        columns: Which input feature lies at each place.
    """

    def __init__(self, spec: Spec, spelling: Spelling) -> None:
        super().__init__()
        self.spec, choose, values, width = spec, spelling.choose, spelling.values, spec.width
        self.letters, self.columns = torch.arange(VOCABULARY), torch.arange(FEATURES)
        self.padded = self.offset = 0
        self.table = self.places = self.stem_norm = None
        self.stem: Any = None
        if spec.stem == "tokens":
            if choose("alphabet", "same", "same", "same", "another") == "another":
                self.letters = torch.randperm(VOCABULARY, generator=torch.Generator().manual_seed(3))
            self.looking_up = choose("embedding", "table", "index", "one hot")
            if torch.equal(self.letters, torch.arange(VOCABULARY)):  # no example would tell the order of spare rows
                self.padded = choose("padded rows", 0, 0, 3)
            self.table = parameter(self.alphabet(values.table("embedding", VOCABULARY, width)))
            if spec.positions == "learned":
                self.offset = choose("position offset", 0, 0, 2)
                self.placing = choose("positions", "table", "slice")
                places = values.table("positions", POSITIONS, width)
                self.places = parameter(F.pad(places, (0, 0, self.offset, 0)))
        elif spec.stem == "rows":
            self.stem = maps(spelling, "stem", FEATURES, [Part("left", 1, 3), Part("right", 1, 4)])
            self.product = choose("stem product", "left, right", "right, left")
            columns = torch.arange(12).view(3, 4).t().flatten() if self.product == "right, left" else None
            self.stem_outer = linear(spelling, "stem outer", 12, width, columns=columns)
        else:
            if choose("columns", "same", "same", "same", "another") == "another":
                self.columns = torch.randperm(FEATURES, generator=torch.Generator().manual_seed(4))
            self.stem = linear(spelling, "stem", FEATURES, width, columns=self.columns)
        if spec.stem_norm:
            self.stem_norm = norm(spelling, "stem norm", spec.norm, width)
        self.layers = self.layered(spelling)
        self.norm = norm(spelling, "final norm", spec.norm, width) if spec.final_norm else None
        self.pooling = Pooling(spelling, spec)
        self.inner = linear(spelling, "head inner", width, width) if spec.head_hidden else None
        self.tied = spec.tied and choose("head", "tied", "equal") == "tied"
        self.heads = nn.ModuleList()
        self.head_table = self.head_bias = None
        if spec.tied:
            table = values.table("embedding", VOCABULARY, width)
            self.head_table = self.table if self.tied else parameter(self.alphabet(table))
            if spec.head_bias:
                self.head_bias = parameter(self.alphabet(values.bias("head bias", VOCABULARY)[:, None])[:, 0])
        else:
            self.heads.extend(
                linear(spelling, f"head {number}", width, size, bias=spec.head_bias)
                for number, size in enumerate(spec.outputs)
            )
        if choose("spare head", False, False, False, True):
            self.spare = nn.Linear(width, 5, dtype=torch.float64)

    def alphabet(self, table: Tensor) -> Tensor:
        """Rows by this model's alphabet."""
        return F.pad(table[self.letters.argsort()], (0, 0, 0, self.padded))

    def layered(self, spelling: Spelling) -> nn.Module:
        spec = self.spec
        count = 1 if spec.looped else spec.depth
        layers = [Layer(spelling, f"layers.{number}", spec) for number in range(count)]
        self.rounds = range(1)
        if spec.looped:
            way = spelling.choose("loop", "loop", "one module, many names", "copies")
            if way == "copies":
                layers = [Layer(spelling, "layers.0", spec) for _ in range(spec.depth)]
            elif way == "loop":
                self.rounds = range(spec.depth)
            else:
                layers = layers * spec.depth
        elif count > 1 and spelling.storage == "stack":
            return Stacked(layers)
        return Layers(layers)

    def forward(self, x: Tensor, **given: Tensor) -> Any:
        x = self.start(x)
        if self.stem_norm is not None:
            x = self.stem_norm(x)
        for _ in self.rounds:
            x = self.layers(x, given)
        if self.norm is not None:
            x = self.norm(x)
        x = self.pooling(x.flatten(1, 2) if self.spec.stem == "rows" and self.spec.pooling != "none" else x)
        if self.inner is not None:
            x = self.inner(x).tanh()
        if self.head_table is None:
            found = [head(x) for head in self.heads]
            return found[0] if len(found) == 1 else tuple(found)
        return F.linear(x, self.head_table, self.head_bias)[..., :VOCABULARY]

    def start(self, x: Tensor) -> Tensor:
        if self.spec.stem == "rows":
            left, right = (part.squeeze(-2) for part in self.stem(x))
            if self.product == "right, left":
                product = torch.einsum("bsjd,bsic->bijdc", right, left)
            else:
                product = torch.einsum("bsic,bsjd->bijcd", left, right)
            return self.stem_outer(product.flatten(-2) / x.shape[1]) * self.spec.embedding_scale
        if self.table is None:
            return self.stem(x) * self.spec.embedding_scale
        match self.looking_up:
            case "table":
                y = F.embedding(x, self.table)
            case "index":
                y = self.table[x]
            case _:
                y = F.one_hot(x, len(self.table)).to(self.table.dtype) @ self.table
        y = y * self.spec.embedding_scale
        length = torch.arange(x.shape[1])
        if self.places is not None:
            if self.placing == "slice":
                return y + self.places[self.offset : self.offset + x.shape[1]]
            return y + F.embedding(length + self.offset, self.places)
        if self.spec.positions == "waves":
            angle = length[:, None] * 100.0 ** -(torch.arange(0, y.shape[-1], 2) / y.shape[-1])
            return y + torch.cat([angle.sin(), angle.cos()], -1).to(y.dtype)
        return y


class Layers(nn.Module):
    def __init__(self, layers: list[Layer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, given: dict[str, Tensor]) -> Tensor:
        for layer in self.layers:
            x = layer(x, given)
        return x


class Keywords(nn.Module):
    """A model that takes what it needs by place."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, x: Tensor, *given: Tensor) -> Any:
        return self.model(x, **dict(zip(self.names, given, strict=True)))


def built(spec: Spec, spelling: Spelling) -> tuple[nn.Module, Model]:
    """The model as it is kept, and the model that it was made from."""
    model = Model(spec, spelling)
    module = Keywords(model, names(spec))
    if spelling.storage == "vector":
        module = Flat(module)
    if spelling.choose("names", "plain", "shuffled") == "shuffled":
        module = Renamed(module, 5)
    return module.eval(), model


def names(spec: Spec) -> tuple[str, ...]:
    """What the model takes besides its first argument."""
    return (("places",) if spec.stem == "places" else ()) + (("pairs",) if spec.takes_pairs else ())


@dataclass(frozen=True)
class Sizes:
    batch: int
    length: int


def example(spec: Spec, model: Model, seed: int, sizes: Sizes) -> tuple[Tensor, ...]:
    """What the model takes, in float64, in its alphabet or its order of columns."""
    generator = torch.Generator().manual_seed(seed)
    batch, length = sizes.batch, sizes.length

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    if spec.stem == "tokens":
        every = (torch.randperm(batch * length, generator=generator) % VOCABULARY).view(batch, length)
        if spec.pooling == "first":
            every[:, 0] = torch.randperm(batch, generator=generator) % VOCABULARY
        first = model.letters[every]
    elif spec.stem == "rows":
        first = noise(batch, 4, length, FEATURES)
    else:
        first = noise(batch, length, FEATURES)[..., model.columns]
    given = {"places": noise(batch, length, 3), "pairs": noise(batch, length, length, PAIR_FEATURES)}
    return first, *(given[name] for name in names(spec))


def select(model: Model) -> Any:
    """From what the model returns to what counts, by the alphabet of the spec."""
    if not model.spec.tied or bool((model.letters == torch.arange(VOCABULARY)).all()):
        return None
    return lambda output: output[..., model.letters]
