"""Names in checkpoints that wrappers wrote, or that hold more than the model."""

import re
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import pyrosys
from pyrosys.errors import WeightsError
from pyrosys.porting import state_for

X = torch.randn(4, 3)


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))


class Flat(nn.Module):
    """The same function in one module of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(3, 5)), nn.Parameter(torch.randn(5, 2))
        self.c, self.d = nn.Parameter(torch.zeros(5)), nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.a + self.c) @ self.b + self.d


def under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.model.", "net/", "ema_"])
def test_prefixed_names(prefix: str) -> None:
    trained, target = small(), Flat()
    pyrosys.port(under(prefix, trained.state_dict()), target, source=small(), inputs=(X,))
    torch.testing.assert_close(target(X), trained(X))


def compiled(model: nn.Module) -> Any:
    return torch.compile(model, backend="eager")


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # in torch, by torch
@pytest.mark.parametrize("wrap", [AveragedModel, nn.DataParallel, compiled])
def test_wrapped_sources_and_targets(wrap: Callable[[nn.Module], nn.Module]) -> None:
    trained = small()
    wrapped, bare, target = wrap(small()), small(), Flat()
    pyrosys.port(trained.state_dict(), target, source=wrapped, inputs=(X,))
    torch.testing.assert_close(target(X), trained(X))
    pyrosys.port(wrap(trained).state_dict(), bare, source=wrap(small()), inputs=(X,))
    torch.testing.assert_close(bare(X), trained(X))
    into = wrap(small())
    pyrosys.port(wrap(trained).state_dict(), into, source=small(), inputs=(X,))
    torch.testing.assert_close(into(X), trained(X))


@pytest.fixture
def process_group() -> Iterator[None]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_a_module_in_data_parallel() -> None:
    trained, target = nn.parallel.DistributedDataParallel(small()), Flat()
    plan = pyrosys.match(trained, target, (X,))
    target.load_state_dict(plan.apply(trained.state_dict()))
    torch.testing.assert_close(target(X), trained(X))


def checkpoint_of_lightning(state: dict[str, Tensor]) -> dict[str, Any]:
    moments = {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(5, 3)}}
    return {
        "epoch": 3,
        "state_dict": {**under("model.", state), "loss.weight": torch.ones(2)},
        "optimizer_states": [{"state": moments, "param_groups": []}],
    }


def test_a_checkpoint_with_an_optimiser(tmp_path: Any) -> None:
    trained = small()
    checkpoint = checkpoint_of_lightning(trained.state_dict())
    torch.save(checkpoint, tmp_path / "last.ckpt")
    for given in (checkpoint, tmp_path / "last.ckpt"):
        target = Flat()
        ported = pyrosys.port(given, target, source=small(), inputs=(X,), allow_pickle=True)
        torch.testing.assert_close(target(X), trained(X))
        assert any("'loss.weight'" in note for note in ported.plan.notes)


def test_averaged_weights_beside_plain_ones_have_to_be_chosen() -> None:
    plain, averaged = small(), small()
    state = {**plain.state_dict(), **under("ema.", averaged.state_dict())}
    with pytest.raises(WeightsError, match=re.escape("2 times, with different values: no prefix, 'ema.'")):
        pyrosys.port(state, Flat(), source=small(), inputs=(X,))
    for prefix, expected in (("", plain), ("ema.", averaged)):
        target = Flat()
        pyrosys.port(state, target, source=small(), inputs=(X,), prefix=prefix)
        torch.testing.assert_close(target(X), expected(X))


def test_two_mappings_have_to_be_chosen() -> None:
    plain, averaged = small(), small()
    checkpoint = {"state_dict": plain.state_dict(), "ema": {"weights": averaged.state_dict()}}
    with pytest.raises(WeightsError, match=re.escape("'state_dict', 'ema.weights'")):
        pyrosys.port(checkpoint, Flat(), source=small(), inputs=(X,))
    target = Flat()
    pyrosys.port(checkpoint, target, source=small(), inputs=(X,), within="ema.weights")
    torch.testing.assert_close(target(X), averaged(X))


def test_equal_copies_are_one() -> None:
    state = small().state_dict()
    both = {**under("online.", state), **under("target.", state)}
    assert set(state_for(small(), both)) == set(state)


def test_a_copy_of_another_size_is_no_reading() -> None:
    state = small().state_dict()
    teacher = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).state_dict()
    found = state_for(small(), {**under("teacher.", teacher), **under("student.", state)})
    assert torch.equal(found["0.weight"], state["0.weight"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("module.0.weight"), "missing '0.weight'"),
        (lambda s: s.pop("module.2.bias"), "missing '2.bias'"),
        (lambda s: s.update({"module.4.bias": X}), "unexpected 'module.4.bias'"),
        (lambda s: s.update({"module.2.bias": X}), "Expected 'module.2.bias' of shape"),
    ],
)
def test_what_is_wrong_under_a_prefix_is_said(change: Callable[[dict[str, Tensor]], None], message: str) -> None:
    state = under("module.", small().state_dict())
    change(state)
    with pytest.raises(WeightsError, match=message):
        state_for(small(), state)


def test_a_prefix_that_is_not_there_is_refused() -> None:
    with pytest.raises(WeightsError, match="missing"):
        state_for(small(), small().state_dict(), prefix="module.")
