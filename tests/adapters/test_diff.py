"""Where two models part: what is found, and that it is told in words, as data and as a page."""

import dataclasses
import html.parser
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import pyrosys
from pyrosys.adapters.diff import Difference, Model, Row, diff
from pyrosys.adapters.names import folded
from pyrosys.adapters.page import fragment, page

WIDTH = 6


class Block(nn.Module):
    def __init__(self, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH, eps=eps)
        self.up, self.down = nn.Linear(WIDTH, 10), nn.Linear(10, WIDTH)

    def forward(self, x: Tensor, activation: nn.Module) -> Tensor:
        return x + self.down(activation(self.up(self.norm(x))))


class Net(nn.Module):
    def __init__(
        self, layers: int = 2, eps: float = 1e-5, activation: nn.Module | None = None, scale: float = 1.0, out: int = 3
    ) -> None:
        super().__init__()
        self.table = nn.Embedding(7, WIDTH)
        self.blocks = nn.ModuleList(Block(eps) for _ in range(layers))
        self.activation = activation or nn.GELU()
        self.scale = scale
        self.head = nn.Linear(WIDTH, out)
        self.unused = nn.Linear(2, 2)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens) * self.scale
        for block in self.blocks:
            x = block(x, self.activation)
        return self.head(x)


class Fused(nn.Module):
    """The two layers of the feed-forward network of a `Net` without blocks, under one name."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.randn(7, WIDTH))
        self.ends = nn.Parameter(torch.randn(WIDTH, 3))
        self.shift = nn.Parameter(torch.randn(3))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.rows[tokens] @ self.ends + self.shift


TOKENS = torch.arange(14).reshape(2, 7) % 7


def found(target: nn.Module, source: nn.Module | None = None) -> Difference:
    return diff(source or Net(), target, (TOKENS,))


def test_models_of_one_function_are_shown_by_their_plan() -> None:
    result = found(Fused(), Net(layers=0))
    assert result.equal
    assert result.plan is not None
    assert result.target.rows["ends"].kinds == ("transposed",)
    assert result.target.rows["ends"].text == "head.weight.T"
    assert result.target.rows["ends"].others == ("head.weight",)
    assert result.source.rows["head.weight"].others == ("ends",)
    assert result.source.rows["unused.weight"].kinds == ("unused",)
    assert "compute the same function" in result.report()
    assert "head.weight.T" in result.report()


@pytest.mark.parametrize(
    ("changes", "source", "target"),
    [
        ({"eps": 1e-3}, "native_layer_norm(1e-05)", "native_layer_norm(0.001)"),
        ({"activation": nn.SiLU()}, "gelu", "silu"),
        ({"activation": nn.GELU("tanh")}, "gelu", "gelu(tanh)"),
        ({"scale": 2.0}, "mul(1)", "mul(2)"),
    ],
)
def test_a_constant_that_differs_is_named_with_the_values_that_it_gives(
    changes: dict[str, object], source: str, target: str
) -> None:
    result = found(Net(**changes))  # pyright: ignore[reportArgumentType]
    assert not result.equal
    assert ((source,), (target,)) in {(c.source, c.target) for c in result.changes}
    assert result.parting is not None
    left, right = result.parting.moments
    assert left is not None
    assert right is not None
    assert (left.operation, right.operation) == (source, target)
    assert left.shape == right.shape
    assert left != dataclasses.replace(right, operation=source)
    assert not [row for model in (result.source, result.target) for row in model.rows.values() if row.lone]
    assert source in result.report()
    assert f"{left.largest:.9g}" in result.report()


def test_an_extra_layer_has_no_counterpart_and_all_else_has() -> None:
    result = found(Net(layers=3))
    lone = [row.name for row in result.target.rows.values() if row.lone]
    assert not [row for row in result.source.rows.values() if row.lone]
    assert len(lone) == len(list(Block(1e-5).parameters()))
    assert result.target.rows["table.weight"].kinds == ("corresponds",)
    assert result.target.rows["head.weight"].others == ("head.weight",)
    assert result.target.rows["unused.weight"].kinds == ("unreached",)


def test_tensors_at_one_place_of_other_size_are_told() -> None:
    result = found(Net(out=4))
    assert result.target.rows["head.weight"].kinds == ("resized",)
    assert result.source.rows["head.weight"].others == ("head.weight",)
    assert "of another size" in result.report()


def test_models_with_nothing_in_common_can_be_compared() -> None:
    image = torch.randn(2, 3, 8, 8)
    convolutions = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
    recurrent = nn.Sequential(nn.Flatten(2), nn.Linear(64, 9), nn.Tanh(), nn.Flatten(), nn.Linear(27, 5))
    result = diff(convolutions, recurrent, (image,))
    assert not result.equal
    assert result.report().startswith("Sequential and Sequential do not compute the same function.")


def test_outputs_of_other_shape_are_no_obstacle() -> None:
    result = diff(nn.Linear(3, 2), nn.Sequential(nn.Linear(3, 2), nn.Flatten()), (torch.randn(2, 4, 3),))
    assert not result.equal
    assert result.target.rows["0.weight"].kinds == ("corresponds",)


def test_a_report_is_plain_data() -> None:
    data = json.loads(json.dumps(found(Net(eps=1e-3)).to_json(), allow_nan=False))
    assert data["format"] == "pyrosys-diff/1"
    assert not data["equal"]
    assert data["plan"] is None
    assert [value["operation"] for value in data["parting"]["values"]] == [
        "native_layer_norm(1e-05)",
        "native_layer_norm(0.001)",
    ]
    assert data["target"]["tensors"]["head.bias"]["others"] == ["head.bias"]
    same = json.loads(json.dumps(found(Fused(), Net(layers=0)).to_json(), allow_nan=False))
    assert pyrosys.Plan.from_json(same["plan"]).target.keys() == {"rows", "ends", "shift"}


# The page


class Reader(html.parser.HTMLParser):
    """What elements a page has, with what attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def all(self, attribute: str) -> list[str]:
        return [value for name, value in self.attributes if name == attribute]


def test_a_page_says_what_the_report_says_and_needs_nothing_else(tmp_path: Path) -> None:
    result = found(Net(eps=1e-3))
    path = tmp_path / "page.html"
    assert result.to_html(path) == path.read_text(encoding="utf-8")
    read = Reader(path.read_text(encoding="utf-8"))
    for text in ("native_layer_norm(1e-05)", "native_layer_norm(0.001)", "first difference", result.reason):
        assert text in read.texts
    assert not {"link", "img", "iframe", "object"} & set(read.tags)
    assert not read.all("src")
    assert all(link.startswith("#") for link in read.all("href"))
    assert not [name for name, _ in read.attributes if name.startswith("on")]
    assert "default-src 'none'" in "".join(read.all("content"))


def test_every_tensor_is_in_the_tree_of_its_side_and_links_to_its_counterpart() -> None:
    result = found(Fused(), Net(layers=0))
    read = Reader(page(result))
    ids = read.all("id")
    assert len(ids) == len(set(ids)) == len(result.source.rows) + len(result.target.rows)
    links = [link.removeprefix("#") for link in read.all("href")]
    assert set(links) <= set(ids)
    assert len(links) == 2 * len(result.target.rows)


@pytest.mark.parametrize(
    "name",
    ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "</style><b>", "a\u202eb", "\x00\ud800", "&lt;"],
)
def test_names_are_text_whatever_they_hold(name: str) -> None:
    row = Row(f"{name}.{name}", (1,), ("unmatched",), name, (name,))
    model = Model(name, {row.name: row}, {name: name})
    result = Difference(model, model, None, name)
    for text in (page(result), fragment(result)):
        text.encode("utf-8")
        read = Reader(text)
        assert "img" not in read.tags
        assert name.encode("unicode_escape").decode() in read.texts or name in read.texts
        assert read.tags.count("script") == text.count("</script>") <= 1
        assert "\u202e" not in text
        assert "\x00" not in text
        assert not [n for n, _ in read.attributes if n.startswith("on")]


def test_a_notebook_shows_a_plan_without_a_script() -> None:
    result = found(Fused(), Net(layers=0))
    assert result.plan is not None
    text = result.plan._repr_html_()
    read = Reader(text)
    assert "script" not in read.tags
    assert "button" not in read.tags
    assert "head.weight" in read.texts
    assert "✓ The same function" in read.texts
    assert "script" not in Reader(result._repr_html_()).tags


def test_a_plan_that_was_not_verified_does_not_look_as_if_it_were() -> None:
    result = found(Fused(), Net(layers=0))
    assert result.plan is not None
    plan = dataclasses.replace(result.plan, checked="structure", certificate=None)
    assert "A plan, not verified" in Reader(plan._repr_html_()).texts


def test_ten_thousand_tensors_make_a_page() -> None:
    names = [f"layers.{i}.experts.{j}.{k}" for i in range(40) for j in range(125) for k in ("up", "down")]
    model = Model("many", {n: Row(n, (2, 3), ("copied",), n, (n,)) for n in names}, {})
    assert page(Difference(model, model)).count('class="row"') == 20_000


# Names


@pytest.mark.parametrize(
    ("names", "patterns"),
    [
        ([], []),
        (["a.0.w", "a.1.w"], [("a.{0,1}.w", 2)]),
        (["a.0.w", "a.1.w", "a.2.w", "a.4.w"], [("a.{0,1,2,4}.w", 4)]),
        ([f"a.{i}.b.{j}" for i in range(3) for j in range(4)], [("a.{0..2}.b.{0..3}", 12)]),
        (["a.0.b.0", "a.1.b.1"], [("a.0.b.0", 1), ("a.1.b.1", 1)]),
        (["conv2.w", "conv3.w"], [("conv2.w", 1), ("conv3.w", 1)]),
    ],
)
def test_names_that_differ_in_running_numbers_are_one(names: list[str], patterns: list[tuple[str, int]]) -> None:
    assert folded(names) == patterns
