"""Small models in two or more writings each, one for every way in which implementations lay out the same weights.

Classes that share a heading compute the same function under some bijection of their parameters' elements, or under the
step that the heading names. Widths are pairwise distinct within a model, so that no axis is taken for another.
"""

import math
import random
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, HIDDEN, OUT = 12, 20, 7


def exchanged(pair: Any) -> dict[str, Any]:
    """What changes about a pair of models when its target is taken for the source."""
    return {
        "name": f"{pair.name}, reversed",
        "source": pair.target,
        "target": pair.source,
        "inputs": pair.target_inputs or pair.inputs,
        "target_inputs": pair.target_inputs and pair.inputs,
        "source_output": pair.target_output,
        "target_output": pair.source_output,
    }


def randomise(model: nn.Module, seed: int) -> nn.Module:
    """Draw every parameter and running statistic at random, norms and biases included, and switch to inference."""
    generator = torch.Generator().manual_seed(seed)

    def noise(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=generator, dtype=torch.float64)

    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(noise(parameter) * 1.2 / math.sqrt(parameter.numel() / parameter.shape[0]))
            else:
                parameter.copy_(noise(parameter) * 0.3 + (parameter.detach() == 1).all())
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "weight", "bias", "offset")):
                buffer.copy_(noise(buffer) * 0.3)
            elif name.endswith("running_var"):
                buffer.copy_(noise(buffer).square() + 0.5)
    return model.eval().requires_grad_(False)


class Renamed(nn.Module):
    """Any module under random names: the module is hidden, and its tensors are registered here in a shuffled order."""

    original: nn.Module
    names: dict[str, str]

    def __init__(self, original: nn.Module, seed: int) -> None:
        super().__init__()
        names: dict[str, str] = {}
        self.__dict__.update(original=original, names=names)  # past nn.Module's own registration
        draw = random.Random(seed)
        persistent = set(original.state_dict(keep_vars=True))
        tensors = [
            *original.named_parameters(remove_duplicate=False),
            *original.named_buffers(remove_duplicate=False),
        ]
        draw.shuffle(tensors)
        for name, tensor in tensors:
            home: nn.Module = self
            path = [f"{draw.choice('abcdxyz')}{draw.randrange(10**6)}" for _ in range(draw.randint(1, 3))]
            for step in path[:-1]:
                home.add_module(step, nn.Module())
                home = home.get_submodule(step)
            if isinstance(tensor, nn.Parameter):
                home.register_parameter(path[-1], tensor)
            else:
                home.register_buffer(path[-1], tensor, persistent=name in persistent)
            names[name] = ".".join(path)
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        mine = dict([*self.named_parameters(remove_duplicate=False), *self.named_buffers(remove_duplicate=False)])
        tensors = {name: mine[new] for name, new in self.names.items()}
        return torch.func.functional_call(self.original, tensors, args, kwargs, tie_weights=False)


def rename_randomly(model: nn.Module, seed: int) -> nn.Module:
    """The same function with every parameter and submodule renamed, nested anew and registered in another order."""
    return Renamed(model, seed)


class Called(nn.Module):
    """A model whose forward pass is another function of it."""

    def __init__(self, model: nn.Module, function: Callable[..., Any]) -> None:
        super().__init__()
        self.model = model
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self.model, *args, **kwargs)


# Transposed weights, one of them square. Missing bias or zero bias. A bias that is one number.


class LinearPerceptron(nn.Module):
    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH, bias=bias)
        self.second = nn.Linear(WIDTH, HIDDEN)
        self.third = nn.Linear(HIDDEN, OUT, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(F.gelu(self.second(F.relu(self.first(x)))))


class MatrixPerceptron(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c, self.a, self.b = (
            nn.Parameter(torch.randn(s)) for s in ((HIDDEN, OUT), (WIDTH, WIDTH), (WIDTH, HIDDEN))
        )
        self.z, self.x, self.y = (nn.Parameter(torch.zeros(s)) for s in (OUT, WIDTH, HIDDEN))

    def forward(self, x: Tensor) -> Tensor:
        flat = torch.addmm(self.x, x.flatten(0, -2), self.a).relu()
        return (F.gelu(flat @ self.b + self.y) @ self.c + self.z).view(*x.shape[:-1], OUT)


class ConvolvedPerceptron(nn.Module):
    """Channels first, with kernels of one position."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(WIDTH, WIDTH, 1), nn.ReLU(), nn.Conv1d(WIDTH, HIDDEN, 1), nn.GELU(), nn.Conv1d(HIDDEN, OUT, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.transpose(1, 2)).transpose(1, 2)


class ConstantBias(nn.Module):
    """The vector of biases is one number."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, OUT, bias=False)
        self.shift = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(x).relu()) + self.shift


class VectorBias(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, OUT)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(x).relu())


# Convolution over positions or patches, as a linear map of windows. Grouped and depthwise convolutions.


class Convolved(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv1d(WIDTH, HIDDEN, 3, padding=1)
        self.outer = nn.Conv1d(HIDDEN, OUT, 5, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(F.silu(self.inner(x.transpose(1, 2)))).transpose(1, 2)


class Windowed(nn.Module):
    """Windows are flattened with the position before the channel."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(3 * WIDTH, HIDDEN), nn.Linear(5 * HIDDEN, OUT)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 1, 1)).unfold(1, 3, 1).transpose(-1, -2).flatten(-2)
        x = F.silu(self.inner(x))
        return self.outer(F.pad(x, (0, 0, 2, 2)).unfold(1, 5, 1).transpose(-1, -2).flatten(-2))


class PatchConvolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches, self.outer = nn.Conv2d(3, WIDTH, (4, 5), stride=(4, 5)), nn.Linear(WIDTH, OUT)

    def forward(self, image: Tensor) -> Tensor:
        return self.outer(self.patches(image).flatten(2).transpose(1, 2).relu())


class PatchLinear(nn.Module):
    """Patches are flattened in the order of `axes`: r for row, c for column, k for channel."""

    def __init__(self, axes: str) -> None:
        super().__init__()
        self.axes = [{"k": 1, "r": 3, "c": 5}[axis] for axis in axes]
        self.patches, self.outer = nn.Linear(60, WIDTH), nn.Linear(WIDTH, OUT)

    def forward(self, image: Tensor) -> Tensor:
        batch, channels, height, width = image.shape
        patches = image.view(batch, channels, height // 4, 4, width // 5, 5).permute(0, 2, 4, *self.axes)
        return self.outer(self.patches(patches.flatten(3).flatten(1, 2)).relu())


class GroupedConvolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Conv1d(WIDTH, 15, 3, padding=1, groups=3), nn.Conv1d(15, OUT, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(x.transpose(1, 2)).relu()).transpose(1, 2)


class ConvolutionPerGroup(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleList(nn.Conv1d(WIDTH // 3, 5, 3, padding=1) for _ in range(3))
        self.outer = nn.Linear(15, OUT)

    def forward(self, x: Tensor) -> Tensor:
        parts = x.transpose(1, 2).chunk(3, dim=1)
        x = torch.cat([layer(part) for layer, part in zip(self.inner, parts, strict=True)], 1).relu()
        return self.outer(x.transpose(1, 2))


class DepthwiseConvolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Conv1d(WIDTH, WIDTH, 4, groups=WIDTH), nn.Linear(WIDTH, OUT)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(F.silu(self.inner(F.pad(x.transpose(1, 2), (3, 0))).transpose(1, 2)))


class ShiftedSum(nn.Module):
    """A causal depthwise convolution as a sum of shifted products."""

    def __init__(self) -> None:
        super().__init__()
        self.taps, self.shift = nn.Parameter(torch.randn(4, WIDTH)), nn.Parameter(torch.zeros(WIDTH))
        self.outer = nn.Linear(WIDTH, OUT)

    def forward(self, x: Tensor) -> Tensor:
        padded, length = F.pad(x, (0, 0, 3, 0)), x.shape[1]
        x = sum((padded[:, i : i + length] * tap for i, tap in enumerate(self.taps)), self.shift)
        return self.outer(F.silu(x))


# Layers or experts as a list or as a stack. One layer used many times. One norm used in every block.


class Residual(nn.Module):
    def __init__(self, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH) if norm is None else norm
        self.up, self.down = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


class ListOfLayers(nn.Module):
    """Args: used: the place of the layer to use at each depth; one_norm: whether all layers share a norm."""

    def __init__(self, used: Sequence[int] = (0, 1, 2), one_norm: bool = False) -> None:
        super().__init__()
        norm = nn.LayerNorm(WIDTH) if one_norm else None
        self.layers = nn.ModuleList(Residual(norm) for _ in range(max(used) + 1))
        self.used = used
        self.outer = nn.Linear(WIDTH, OUT)

    def forward(self, x: Tensor) -> Tensor:
        for place in self.used:
            x = self.layers[place](x)
        return self.outer(x)


class StackOfLayers(nn.Module):
    """Parameters of all layers lie along the first axis; the maps are kept as (layer, in, out)."""

    def __init__(self) -> None:
        super().__init__()
        shapes = {"up": (WIDTH, HIDDEN), "down": (HIDDEN, WIDTH), "up_bias": (HIDDEN,), "down_bias": (WIDTH,)}
        shapes |= {"norm": (WIDTH,), "norm_bias": (WIDTH,)}
        self.layers = nn.ParameterDict({name: torch.randn(3, *shape) for name, shape in shapes.items()})
        self.outer = nn.Linear(WIDTH, OUT)

    def forward(self, x: Tensor) -> Tensor:
        for depth in range(3):
            layer = {name: stack[depth] for name, stack in self.layers.items()}
            y = F.layer_norm(x, (WIDTH,), layer["norm"], layer["norm_bias"])
            x = x + F.gelu(y @ layer["up"] + layer["up_bias"]) @ layer["down"] + layer["down_bias"]
        return self.outer(x)


class ListOfExperts(nn.Module):
    """Every expert sees every token; a gate weighs them."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, 4)
        self.experts = nn.ModuleList(
            nn.ModuleDict(
                {
                    "gate": nn.Linear(WIDTH, HIDDEN, bias=False),
                    "up": nn.Linear(WIDTH, HIDDEN, bias=False),
                    "down": nn.Linear(HIDDEN, OUT, bias=False),
                }
            )
            for _ in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        weights = self.gate(x).softmax(-1)
        y = torch.zeros(())
        for place, expert in enumerate(self.experts):
            assert isinstance(expert, nn.ModuleDict)
            hidden = F.silu(expert["gate"](x)) * expert["up"](x)
            y = y + weights[..., place, None] * expert["down"](hidden)
        return y


class StackOfExperts(nn.Module):
    """The same with (expert, in, gate | up) and (expert, hidden, out)."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Parameter(torch.randn(WIDTH, 4))
        self.router_bias = nn.Parameter(torch.zeros(4))
        self.gate_up = nn.Parameter(torch.randn(4, WIDTH, 2 * HIDDEN))
        self.down = nn.Parameter(torch.randn(4, HIDDEN, OUT))

    def forward(self, x: Tensor) -> Tensor:
        weights = (x @ self.router + self.router_bias).softmax(-1)
        gate, up = torch.einsum("bld,edh->blhe", x, self.gate_up).chunk(2, dim=2)
        return torch.einsum("blhe,eho,ble->blo", F.silu(gate) * up, self.down, weights)


def with_equal_layers(model: nn.Module) -> nn.Module:
    """Give all layers the values of the first."""
    assert isinstance(model, ListOfLayers)
    for layer in model.layers[1:]:
        layer.load_state_dict(model.layers[0].state_dict())
    return model


def with_equal_norms(model: nn.Module) -> nn.Module:
    """Give the norms of all layers the values of the first."""
    assert isinstance(model, ListOfLayers)
    for layer in model.layers[1:]:
        layer.get_submodule("norm").load_state_dict(model.layers[0].get_submodule("norm").state_dict())
    return model


# Batch normalisation: as a module, frozen in buffers, or folded into the convolution before it (one way).


class BatchNormed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, WIDTH, 3, bias=False), nn.BatchNorm2d(WIDTH)
        self.outer = nn.Conv2d(WIDTH, OUT, 2)

    def forward(self, image: Tensor) -> Tensor:
        return self.outer(self.norm(self.conv(image)).relu())


class FrozenBatchNorm(nn.Module):
    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale[:, None, None] + shift[:, None, None]


class FrozenBatchNormed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.ModuleList([nn.Conv2d(3, WIDTH, 3, bias=False), FrozenBatchNorm(WIDTH)])
        self.last = nn.Conv2d(WIDTH, OUT, 2)

    def forward(self, image: Tensor) -> Tensor:
        for layer in self.stem:
            image = layer(image)
        return self.last(image.relu())


class FoldedBatchNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.outer = nn.Conv2d(3, WIDTH, 3), nn.Conv2d(WIDTH, OUT, 2)

    def forward(self, image: Tensor) -> Tensor:
        return self.outer(self.conv(image).relu())


# A weight as direction and length: by a hook, by a parametrization, or multiplied out (one way).


class WeightNormed(nn.Module):
    """Args: kind: `"hook"`, `"parametrization"` or `"plain"`."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.conv, self.outer = nn.Conv1d(WIDTH, HIDDEN, 3), nn.Linear(HIDDEN, OUT)
        for layer in (self.conv, self.outer):
            if kind == "hook":
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", FutureWarning)  # deprecated, and in many published checkpoints
                    nn.utils.weight_norm(layer)
            elif kind == "parametrization":
                nn.utils.parametrizations.weight_norm(layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.conv(x.transpose(1, 2)).transpose(1, 2).tanh())


# Norms: by other names and by hand, with the weight stored less one, or with width and depth nested otherwise.


class HandNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.beta, self.gamma = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return self.beta + self.gamma * centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()


class OffsetNorm(nn.LayerNorm):
    def forward(self, input: Tensor) -> Tensor:
        return F.layer_norm(input, self.normalized_shape, 1 + self.weight, self.bias, self.eps)


class Normed(nn.Module):
    """Args: norm: makes the norm of a width."""

    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.first, self.second = norm(WIDTH), norm(HIDDEN)
        self.inner, self.outer = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, OUT)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.second(F.gelu(self.inner(self.first(x)))))


class FlatNormed(nn.Module):
    """The same with letters for names, on one level."""

    def __init__(self) -> None:
        super().__init__()
        shapes = ((OUT, HIDDEN), (HIDDEN,), (WIDTH,), (HIDDEN, WIDTH), (WIDTH,), (OUT,), (HIDDEN,), (HIDDEN,))
        for letter, shape in zip("qwertyui", shapes, strict=True):
            self.register_parameter(letter, nn.Parameter(torch.randn(shape)))

    def forward(self, x: Tensor) -> Tensor:
        q, w, e, r, t, y, u, i = self.parameters()
        x = F.layer_norm(x, (WIDTH,), e, t)
        return F.linear(F.layer_norm(F.gelu(F.linear(x, r, w)), (HIDDEN,), i, u), q, y)


# Scale and shift from a condition: fused in either order, or apart.


class Conditioned(nn.Module):
    """Features modulated by a condition, in every block.

    Args:
        layout: `"scale|shift"`, `"shift|scale"`, `"split"` or `"even-odd"`.
        offset: Whether the scale is added to one in `forward`; otherwise the bias of the map contains it.
    """

    def __init__(self, layout: str, offset: bool = True) -> None:
        super().__init__()
        self.layout, self.offset = layout, offset
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))
        count = 2 if layout == "split" else 1
        self.conditions = nn.ModuleList(
            nn.ModuleList(nn.Linear(5, 2 * WIDTH // count) for _ in range(count)) for _ in range(2)
        )
        self.outer = nn.Linear(WIDTH, OUT)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        for layer, maps in zip(self.layers, self.conditions, strict=True):
            assert isinstance(maps, nn.ModuleList)
            parts = [part(condition)[:, None] for part in maps]
            if self.layout == "split":
                scale, shift = parts
            elif self.layout == "even-odd":
                scale, shift = parts[0].unflatten(-1, (-1, 2)).unbind(-1)
            else:
                scale, shift = parts[0].chunk(2, dim=-1)
                if self.layout == "shift|scale":
                    scale, shift = shift, scale
            x = x + layer(F.layer_norm(x, (WIDTH,)) * (scale + self.offset) + shift).relu()
        return self.outer(x)


# Embeddings: scaled in `forward` or in the table; tied, or untied and equal; letters in another order.


class Bag(nn.Module):
    """Tokens to scores of tokens.

    Args:
        scale: What `forward` multiplies the embedding by.
        tied: Whether the head's weight is the embedding's.
        one_hot: Whether the embedding is a linear map of one-hot letters.
    """

    def __init__(self, scale: float = 1.0, tied: bool = False, one_hot: bool = False, letters: int = 29) -> None:
        super().__init__()
        self.scale, self.letters, self.one_hot = scale, letters, one_hot
        self.embedding = nn.Linear(letters, WIDTH, bias=False) if one_hot else nn.Embedding(letters, WIDTH)
        self.inner, self.mix = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)
        self.head = nn.Linear(WIDTH, letters)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x: Tensor = tokens
        if self.one_hot:
            x = F.one_hot(tokens, self.letters).to(self.head.weight.dtype)
        x = self.embedding(x) * self.scale
        return self.head(self.mix((self.inner(x) + self.inner(x.flip(1)).cumsum(1)).tanh()))


def with_equal_ends(model: nn.Module) -> nn.Module:
    """Give the head the values of the embedding."""
    assert isinstance(model, Bag)
    model.head.weight.copy_(model.embedding.weight)
    return model


# Input features in another order, with a feature that is always zero, or in an object.


class Featurised(nn.Module):
    """Distances (batch, length) and residue types (batch, length) to features, and a linear map of these."""

    def __init__(self, order: str = "distance|type", spare: int = 0) -> None:
        super().__init__()
        self.order, self.spare = order, spare
        self.inner, self.outer = nn.Linear(16 + 9 + spare, HIDDEN), nn.Linear(HIDDEN, OUT)

    def forward(self, distance: Tensor, kind: Tensor) -> Tensor:
        centre = torch.linspace(0, 4, 16, dtype=distance.dtype)
        basis = torch.exp(-((distance[..., None] - centre) ** 2))
        parts = [basis, F.one_hot(kind, 9 + self.spare).to(distance.dtype)]
        if self.order == "type|distance":
            parts = [parts[1], parts[0].flip(-1)]
        return self.outer(F.gelu(self.inner(torch.cat(parts, -1))))


@dataclass
class Example:
    """What `FeaturisedObject` takes."""

    residues: Tensor
    distances: Tensor
    name: str = "example"


class FeaturisedObject(Featurised):
    """The same from an object."""

    def forward(self, distance: Any, kind: Any = None) -> Tensor:
        return super().forward(distance.distances, distance.residues)


class Measured(nn.Module):
    """A perceptron of measured features, given with their columns in some order."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, OUT)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(F.gelu(self.inner(x)))


# Heads that the output does not depend on. Prefixes and wrappers. A trained matrix with a low-rank update (one way).


class Headed(nn.Module):
    """A trunk with a head in use and one that is not."""

    def __init__(self, unused: int | None) -> None:
        super().__init__()
        self.trunk, self.outer = Measured(), nn.Linear(OUT, 3)
        self.pooler = None if unused is None else nn.Linear(OUT, unused)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.trunk(x).relu()
        out = {"scores": self.outer(x)}
        if self.pooler is not None:
            out["pooled"] = self.pooler(x).tanh()
        return out


class Wrapped(nn.Module):
    """A module one level down, as distributed training, compilation and Lightning keep it."""

    def __init__(self, module: nn.Module, name: str = "module") -> None:
        super().__init__()
        self.add_module(name, module)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        (module,) = self.children()
        return module(*args, **kwargs)


class Averaged(nn.Module):
    """An average of a module, which answers, beside the module that is trained; both are in the state."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.online_model, self.ema_model = make(), make()
        self.register_buffer("step", torch.tensor(0))

    def forward(self, *args: Any) -> Any:
        return self.ema_model(*args)


class LowRank(nn.Module):
    """A linear map with an update of low rank."""

    def __init__(self, inputs: int, outputs: int, rank: int = 3, alpha: float = 8.0) -> None:
        super().__init__()
        self.base = nn.Linear(inputs, outputs)
        self.down = nn.Linear(inputs, rank, bias=False)
        self.up = nn.Linear(rank, outputs, bias=False)
        self.scaling = alpha / rank

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.scaling * self.up(self.down(x))


class FineTuned(nn.Module):
    def __init__(self, merged: bool) -> None:
        super().__init__()
        make = nn.Linear if merged else LowRank
        self.first, self.second, self.outer = make(WIDTH, WIDTH), make(WIDTH, HIDDEN), nn.Linear(HIDDEN, OUT)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.second(self.first(x).relu()).tanh())


# Recurrent cells: the library's against one by hand, with its gates in another order.


class Recurrent(nn.Module):
    """Args: kind: `"LSTM"` or `"GRU"`; the rest as in torch."""

    def __init__(self, kind: str, layers: int = 1, bidirectional: bool = False) -> None:
        super().__init__()
        make = nn.LSTM if kind == "LSTM" else nn.GRU
        self.cell = make(WIDTH, 9, num_layers=layers, bidirectional=bidirectional, batch_first=True)
        self.outer = nn.Linear(9 * (1 + bidirectional), OUT)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.cell(x)[0])


class HandCell(nn.Module):
    """One direction of one layer; the gates of an LSTM lie in the order i o f g, those of a GRU in z r n."""

    def __init__(self, kind: str, inputs: int) -> None:
        super().__init__()
        self.kind, count = kind, 4 if kind == "LSTM" else 3
        self.state, self.input = nn.Linear(9, count * 9), nn.Linear(inputs, count * 9)

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(len(x), 9)
        states = []
        for step in x.unbind(1):
            if self.kind == "LSTM":
                i, o, f, g = (self.input(step) + self.state(h)).chunk(4, dim=-1)
                c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                h = o.sigmoid() * c.tanh()
            else:
                (z, r, n), (hz, hr, hn) = self.input(step).chunk(3, dim=-1), self.state(h).chunk(3, dim=-1)
                z = (z + hz).sigmoid()
                h = (1 - z) * (n + (r + hr).sigmoid() * hn).tanh() + z * h
            states.append(h)
        return torch.stack(states, 1)


class HandRecurrent(nn.Module):
    def __init__(self, kind: str, layers: int = 1, bidirectional: bool = False) -> None:
        super().__init__()
        self.outer = nn.Linear(9 * (1 + bidirectional), OUT)
        widths = [WIDTH, *[9 * (1 + bidirectional)] * (layers - 1)]
        self.backward_cells = nn.ModuleList(HandCell(kind, width) for width in widths if bidirectional)
        self.cells = nn.ModuleList(HandCell(kind, width) for width in widths)

    def forward(self, x: Tensor) -> Tensor:
        for depth, cell in enumerate(self.cells):
            y = cell(x)
            if len(self.backward_cells):
                y = torch.cat([y, self.backward_cells[depth](x.flip(1)).flip(1)], -1)
            x = y
        return self.outer(x)


# Branches side by side, in another order; operands of a product swapped; pairs and points from fused maps.


class Branched(nn.Module):
    """Two branches alike in form and one that is not, joined.

    Args:
        order: Where in the concatenation each branch goes.
        summed: Whether the branches are added instead.
    """

    def __init__(self, order: Sequence[int] = (0, 1, 2), summed: bool = False) -> None:
        super().__init__()
        self.order, self.summed = order, summed
        self.branches = nn.ModuleList(nn.Linear(WIDTH, HIDDEN) for _ in range(3))
        self.outer = nn.Linear(HIDDEN if summed else 3 * HIDDEN, OUT)

    def forward(self, x: Tensor) -> Tensor:
        parts = [F.relu(self.branches[0](x)), F.relu(self.branches[1](x)), torch.tanh(self.branches[2](x))]
        parts = [parts[place] for place in self.order]
        return self.outer(sum(parts, torch.zeros(())) if self.summed else torch.cat(parts, -1))


class OuterProduct(nn.Module):
    """The mean over rows of the outer product of two projections (Jumper et al. 2021, supplement, algorithm 10).

    Args:
        layout: `"split"`, or `"right|left"` for one map of both, flattened with the right factor first.
    """

    def __init__(self, layout: str) -> None:
        super().__init__()
        self.layout = layout
        self.norm = nn.LayerNorm(WIDTH)
        maps = (3, 5) if layout == "split" else (8,)
        self.maps = nn.ModuleList(nn.Linear(WIDTH, width) for width in maps)
        self.outer = nn.Linear(15, OUT)

    def forward(self, x: Tensor) -> Tensor:
        parts = [part(self.norm(x)) for part in self.maps]
        if self.layout == "split":
            product = torch.einsum("sic,sjd->ijcd", *parts)
        else:
            right, left = parts[0].split([5, 3], dim=-1)
            product = torch.einsum("sjd,sic->ijdc", right, left)
        return self.outer(product.flatten(-2)) / len(x)


class TriangleProduct(nn.Module):
    """Triangle multiplication on outgoing edges (Jumper et al. 2021, supplement, algorithm 11).

    Args:
        fused: Whether one map holds (right gate | left gate | right | left), another the output's gate.
        incoming: Whether edges come in, which is another function.
    """

    def __init__(self, fused: bool, incoming: bool = False) -> None:
        super().__init__()
        self.incoming = incoming
        self.norm, self.product_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(5)
        self.joined = nn.Linear(WIDTH, 20) if fused else None
        self.parts = nn.ModuleList(() if fused else (nn.Linear(WIDTH, 5) for _ in range(4)))
        self.gate, self.outer = nn.Linear(WIDTH, WIDTH), nn.Linear(5, WIDTH)

    def forward(self, pair: Tensor) -> Tensor:
        x = self.norm(pair)
        if self.joined is not None:
            right_gate, left_gate, right, left = self.joined(x).chunk(4, dim=-1)
        else:
            left, left_gate, right, right_gate = (part(x) for part in self.parts)
        left, right = left * left_gate.sigmoid(), right_gate.sigmoid() * right
        product = torch.einsum("bkic,bkjc->bijc" if self.incoming else "bikc,bjkc->bijc", left, right)
        return pair + self.gate(x).sigmoid() * self.outer(self.product_norm(product))


class TriangleAttention(nn.Module):
    """Triangle attention around the ending node (Jumper et al. 2021, supplement, algorithm 14).

    Args:
        fused: Whether query, key and value come from one map, per head.
        dialect: Whether the bias is read before the transposition, which is another function of the same shapes.
    """

    def __init__(self, fused: bool, dialect: bool = False) -> None:
        super().__init__()
        self.dialect = dialect
        self.norm, self.bias = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2, bias=False)
        self.maps = nn.ModuleList(
            nn.Linear(WIDTH, 10 * (3 if fused else 1), bias=False) for _ in range(1 if fused else 3)
        )
        self.gate, self.outer = nn.Linear(WIDTH, 10), nn.Linear(10, WIDTH)

    def forward(self, pair: Tensor) -> Tensor:
        y = self.norm(pair)
        x = y.transpose(1, 2)
        bias = self.bias(y if self.dialect else x).permute(0, 3, 1, 2)[:, None]
        if len(self.maps) == 1:
            parts = self.maps[0](x).unflatten(-1, (2, 3, 5)).unbind(-2)
        else:
            parts = tuple(part(x).unflatten(-1, (2, 5)) for part in self.maps)
        q, k, v = (part.transpose(2, 3) for part in parts)
        weights = (q @ k.transpose(-1, -2) * 5**-0.5 + bias).softmax(-1)
        return pair + self.outer((weights @ v).transpose(2, 3).flatten(3) * self.gate(x).sigmoid()).transpose(1, 2)


class PointAttention(nn.Module):
    """Attention by distances between points that each residue puts in its frame (invariant point attention, reduced).

    Args:
        coordinates_first: Whether the map's outputs lie as (xyz, head, point) instead of (head, point, xyz).
    """

    def __init__(self, coordinates_first: bool) -> None:
        super().__init__()
        self.coordinates_first = coordinates_first
        self.points, self.value = nn.Linear(WIDTH, 2 * 4 * 3), nn.Linear(WIDTH, 2 * 5)
        self.sharpness, self.outer = nn.Parameter(torch.zeros(2)), nn.Linear(2 * 5, OUT)

    def forward(self, x: Tensor, rotation: Tensor, translation: Tensor) -> Tensor:
        points = self.points(x)
        points = (
            points.unflatten(-1, (3, 2, 4)).permute(0, 1, 3, 4, 2)
            if self.coordinates_first
            else points.unflatten(-1, (2, 4, 3))
        )
        points = torch.einsum("blxy,blhpy->blhpx", rotation, points) + translation[:, :, None, None]
        distance = (points[:, :, None] - points[:, None]).square().sum((-1, -2)).permute(0, 3, 1, 2)
        weights = (-0.1 * F.softplus(self.sharpness)[:, None, None] * distance).softmax(-1)
        values = self.value(x).unflatten(-1, (2, 5)).transpose(1, 2)
        return self.outer((weights @ values).transpose(1, 2).flatten(2))
