"""What a generated model computes: plain data, drawn at random."""

from dataclasses import dataclass, field

from tests.adapters.generated.spelling import Choices

__all__ = [
    "Attention",
    "Branch",
    "Convolution",
    "FeedForward",
    "Messages",
    "Norm",
    "Spec",
    "Step",
    "TriangleAttention",
    "TriangleProduct",
    "draw",
]


@dataclass(frozen=True)
class Norm:
    """Args: kind: `"layer"` or `"rms"`."""

    kind: str = "layer"
    eps: float = 1e-5


@dataclass(frozen=True)
class Branch:
    """Something that is added to the features: each has a width of its own inside."""


@dataclass(frozen=True)
class Attention(Branch):
    """Args:
    groups: Heads of keys and values.
    size: Features of a head.
    bias: Which maps have one: `"all"`, `"none"` or `"no key"`.
    positions: `"none"`, `"rotary"`, `"relative"` (a table of distances), `"linear"` (a slope of each head).
    pairs: Whether features of pairs are added to the scores.
    mask: `"none"`, `"causal"` or `"window"` (the nearest two on either side).
    weights: `"softmax"` or `"sigmoid"`.
    cap: Where scores are bent to.
    query_norm: Whether queries and keys are normalised in each head.
    gate: Whether the result is multiplied by a sigmoid of another map.
    """

    heads: int = 2
    groups: int = 2
    size: int = 4
    bias: str = "all"
    positions: str = "none"
    base: float = 10000.0
    pairs: bool = False
    mask: str = "none"
    weights: str = "softmax"
    scale: float = 0.5
    cap: float | None = None
    query_norm: bool = False
    gate: bool = False


@dataclass(frozen=True)
class FeedForward(Branch):
    hidden: int = 18
    activation: str = "gelu"
    gated: bool = False
    bias: bool = True


@dataclass(frozen=True)
class Convolution(Branch):
    """Along the positions. Args: padding: `"zeros"`, `"past"` or `"copies"`; batch_norm: before the activation."""

    hidden: int = 10
    kernel: int = 3
    dilation: int = 1
    padding: str = "zeros"
    batch_norm: bool = False
    activation: str = "relu"


@dataclass(frozen=True)
class Messages(Branch):
    """From the nearest neighbours in space. Args: reduce: `"mean"` or `"max"`."""

    hidden: int = 10
    neighbours: int = 3
    reduce: str = "mean"
    activation: str = "gelu"


@dataclass(frozen=True)
class TriangleProduct(Branch):
    hidden: int = 5
    incoming: bool = False


@dataclass(frozen=True)
class TriangleAttention(Branch):
    """Args: ending: Around the ending node; late: whether the bias is read after the axes are swapped."""

    attention: Attention = field(default_factory=lambda: Attention(pairs=True, bias="none"))
    ending: bool = False
    late: bool = True


@dataclass(frozen=True)
class Step:
    """Branches side by side, and where the norm is.

    Args:
        branches: What is added.
        placement: `"pre"`, `"post"`, `"both"` (before each branch and after it).
        skip: Whether the features that came in are added.
        factor: What the sum is multiplied by.
        gain: Whether each branch ends in gains.
    """

    branches: tuple[Branch, ...]
    placement: str = "pre"
    skip: bool = True
    factor: float = 1.0
    gain: bool = False


@dataclass(frozen=True)
class Spec:
    """A model.

    Args:
        stem: What it takes: `"tokens"`, `"features"`, `"places"` (features and coordinates) or `"rows"` (an alignment, of
            which pairs are made).
        positions: Of tokens: `"none"`, `"learned"` or `"waves"`.
        steps: One layer.
        looped: Whether one layer is used at every depth.
        pooling: Over positions: `"none"`, `"mean"`, `"max"`, `"first"` or `"attention"`.
        outputs: Widths of the heads.
        tied: Whether the first head is the table of tokens.
    """

    stem: str
    steps: tuple[Step, ...]
    depth: int = 1
    width: int = 12
    norm: Norm = field(default_factory=Norm)
    positions: str = "none"
    embedding_scale: float = 1.0
    stem_norm: bool = False
    looped: bool = False
    final_norm: bool = True
    pooling: str = "none"
    head_hidden: bool = False
    head_bias: bool = True
    outputs: tuple[int, ...] = (7,)
    tied: bool = False

    @property
    def takes_pairs(self) -> bool:
        """Whether features of pairs are an input."""
        return self.stem != "rows" and any(
            isinstance(branch, Attention) and branch.pairs for step in self.steps for branch in step.branches
        )


VOCABULARY, FEATURES, PAIR_FEATURES = 11, 9, 5
HIDDEN_ACTIVATIONS = ("gelu", "gelu-tanh", "relu", "silu", "tanh", "relu squared", "leaky relu")


def draw(choices: Choices) -> Spec:
    """A random model; the first options give the simplest."""
    stem = choices("stem", "features", "tokens", "features", "tokens", "places", "rows")
    steps = tuple(_step(choices, stem, f"step {number}") for number in range(choices("steps", 1, 2)))
    depth = choices("depth", 1, 1, 1, 2)
    pooling = choices("pooling", "none", "none", "mean", "max", "first", "attention")
    language = stem == "tokens" and pooling == "none"
    tied = language and choices("tied", False, True)
    return Spec(
        stem=stem,
        steps=steps,
        depth=depth,
        norm=Norm(choices("norm", "layer", "rms"), choices("eps", 1e-5, 1e-6, 1e-12)),
        positions=choices("positions", "none", "learned", "waves") if stem == "tokens" else "none",
        embedding_scale=choices("embedding scale", 1.0, 1.0, 12**0.5),
        stem_norm=choices("stem norm", False, True),
        looped=depth > 1 and choices("looped", False, False, False, True),
        final_norm=choices("final norm", True, False),
        pooling=pooling,
        head_hidden=choices("head hidden", False, True),
        head_bias=choices("head bias", True, False),
        outputs=(VOCABULARY,) if tied else choices("outputs", (7,), (7,), (7, 3)),
        tied=tied,
    )


def _step(choices: Choices, stem: str, path: str) -> Step:
    count = choices(f"{path} branches", 1, 1, 1, 2)
    return Step(
        tuple(_branch(choices, stem, f"{path} branch {number}") for number in range(count)),
        placement=choices(f"{path} placement", "pre", "pre", "post", "both"),
        factor=choices(f"{path} factor", 1.0, 1.0, 1.0, 0.7),
        gain=choices(f"{path} gain", False, False, True),
    )


def _branch(choices: Choices, stem: str, path: str) -> Branch:
    kinds = {
        "features": ("feed forward", "attention", "convolution"),
        "tokens": ("feed forward", "attention", "attention", "convolution"),
        "places": ("messages", "feed forward", "attention"),
        "rows": ("triangle product", "triangle attention", "feed forward"),
    }
    match choices(f"{path} kind", *kinds[stem]):
        case "attention":
            return _attention(choices, path, pairs=choices(f"{path} pairs", False, False, True))
        case "convolution":
            return Convolution(
                kernel=choices(f"{path} kernel", 3, 2, 1),
                dilation=choices(f"{path} dilation", 1, 2),
                padding=choices(f"{path} padding", "zeros", "past", "copies"),
                batch_norm=choices(f"{path} batch norm", False, True),
                activation=choices(f"{path} activation", *HIDDEN_ACTIVATIONS),
            )
        case "messages":
            return Messages(
                neighbours=choices(f"{path} neighbours", 3, 4),
                reduce=choices(f"{path} reduce", "mean", "max"),
                activation=choices(f"{path} activation", *HIDDEN_ACTIVATIONS),
            )
        case "triangle product":
            return TriangleProduct(incoming=choices(f"{path} incoming", False, True))
        case "triangle attention":
            attention = _attention(choices, path, pairs=True)
            return TriangleAttention(
                attention, choices(f"{path} ending", False, True), choices(f"{path} late", True, False)
            )
        case _:
            return FeedForward(
                activation=choices(f"{path} activation", *HIDDEN_ACTIVATIONS),
                gated=choices(f"{path} gated", False, True),
                bias=choices(f"{path} bias", True, False),
            )


def _attention(choices: Choices, path: str, pairs: bool) -> Attention:
    heads = choices(f"{path} heads", 2, 1, 4)
    weights = choices(f"{path} weights", "softmax", "softmax", "softmax", "sigmoid")
    return Attention(
        heads=heads,
        groups=choices(f"{path} groups", heads, heads, max(1, heads // 2), 1),
        bias=choices(f"{path} bias", "all", "none", "no key"),
        positions=choices(f"{path} positions", "none", "rotary", "rotary", "relative", "linear"),
        pairs=pairs,
        mask=choices(f"{path} mask", "none", "causal", "window"),
        weights=weights,
        cap=choices(f"{path} cap", None, None, None, 3.0),
        query_norm=choices(f"{path} query norm", False, False, True),
        gate=choices(f"{path} gate", False, False, True),
    )
