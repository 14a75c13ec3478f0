"""ESM: the official numbers, padding, precision and contacts."""

import dataclasses
import functools

import pytest
import torch
from torch import nn

from pyrosys.errors import InputError
from pyrosys.zoo.esm import ESM, SIZES, ESMConfig

ROTARY = ESMConfig(layers=3, width=20, heads=2)
LEARNED = ESMConfig(layers=3, width=20, heads=2, positions=30, embedding_norm=True)
CONFIGS = [ROTARY, LEARNED, dataclasses.replace(LEARNED, embedding_norm=False, contacts=False)]
TOKENS = ESM.alphabet.encode(["MK<mask>AYIA", "GSWV"])


def sharp(config: ESMConfig) -> ESM:
    """A model with weights so large that every residue matters to every other."""
    model = ESM(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


@functools.cache
def on_meta(config: ESMConfig) -> ESM:
    with torch.device("meta"):
        return ESM(config)


@pytest.mark.parametrize(
    ("name", "layers", "width", "heads"),
    [
        ("esm2-8m", 6, 320, 20),
        ("esm2-35m", 12, 480, 20),
        ("esm2-150m", 30, 640, 20),
        ("esm2-650m", 33, 1280, 20),
        ("esm2-3b", 36, 2560, 40),
        ("esm2-15b", 48, 5120, 40),
        ("esm1b-650m", 33, 1280, 20),
        *((f"esm1v-650m-{n}", 33, 1280, 20) for n in (1, 2, 3, 4, 5)),
    ],
)
def test_sizes_are_the_official_ones(name: str, layers: int, width: int, heads: int) -> None:
    model = on_meta(SIZES[name])
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    assert len(model.layers) == layers
    assert shapes["embedding.weight"] == (33, width)
    assert shapes["layers.0.feed_forward.up.weight"] == (4 * width, width)
    assert {attention.heads for attention in model.modules() if hasattr(attention, "heads")} == {heads}
    assert {norm.eps for norm in model.modules() if isinstance(norm, nn.LayerNorm)} == {1e-5}
    rotary = name.startswith("esm2")
    assert ("layers.0.attention.position.frequencies" in shapes) == rotary
    assert shapes.get("position.weight") == (None if rotary else (1024 + 2, width))
    assert ("embedding_norm.weight" in shapes) == (name == "esm1b-650m")
    assert shapes.get("contact_head.regression.weight") == (None if "esm1v" in name else (1, layers * heads))
    assert model.longest == (None if rotary else 1022)
    assert model(torch.zeros(2, 9, dtype=torch.long, device="meta")).shape == (2, 9, 33)


def test_the_decoder_is_the_embedding() -> None:
    model = ESM(ROTARY)
    assert [key for key, tensor in model.state_dict().items() if tensor.shape == (33, 20)] == ["embedding.weight"]


@pytest.mark.parametrize("config", CONFIGS)
def test_padding_changes_nothing(config: ESMConfig) -> None:
    model = sharp(config)
    assert TOKENS.tolist()[1][5:] == [2, 1, 1, 1]
    torch.testing.assert_close(model(TOKENS)[1, :6], model(TOKENS[1:, :6])[0])


@pytest.mark.parametrize("config", CONFIGS)
def test_order_matters(config: ESMConfig) -> None:
    model = sharp(config)
    forward, backward = (model(model.alphabet.encode([sequence]))[0, 1:-1] for sequence in ("MKTAYI", "IYATKM"))
    assert (forward - backward.flip(0)).abs().max() > 1e-3


def test_distant_residues_are_seen() -> None:
    model = sharp(ROTARY)
    one, other = (model(model.alphabet.encode([sequence]))[0] for sequence in ("MKTAYI", "MKTAYW"))
    assert ((one - other).abs().amax(-1) > 1e-6).all()


@pytest.mark.parametrize("config", CONFIGS)
def test_bfloat16_is_close(config: ESMConfig) -> None:
    model = ESM(config).eval()
    expected = model(TOKENS)
    result = model.bfloat16()(TOKENS)
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result.float(), expected, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("config", CONFIGS[:2])
def test_contacts_are_those_of_each_alone(config: ESMConfig) -> None:
    model = sharp(config)
    sequences = ["MKTAYIAKQR", "GSW", "MKTAY"]
    for sequence, contacts in zip(sequences, model.contacts(sequences), strict=True):
        assert contacts.shape == (len(sequence), len(sequence))
        torch.testing.assert_close(contacts, contacts.mT)
        assert ((contacts > 0) & (contacts < 1)).all()
        assert contacts.std() > 1e-4
        alone = model.contact_probabilities(model.alphabet.encode([sequence]))[0]
        torch.testing.assert_close(contacts, alone)


def test_contacts_are_read_off_all_attention_maps() -> None:
    model = sharp(ROTARY)
    assert model.contact_head is not None
    seen = []
    model.contact_head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model.contact_probabilities(TOKENS)
    (maps,) = seen
    assert maps.shape == (2, 6, 7, 7)
    assert (maps[1, :, :4, :4] > 0).all()
    assert maps[1, :, 4:].abs().sum() == maps[1, :, :, 4:].abs().sum() == 0  # the end token and padding


def test_a_model_released_without_a_contact_head_says_so() -> None:
    model = sharp(CONFIGS[2])
    with pytest.raises(InputError, match=r"released without\. Use ESM-2 or ESM-1b"):
        model.contacts(["MKTAY"])


def test_too_many_tokens_are_refused() -> None:
    model = sharp(LEARNED)
    with pytest.raises(InputError, match="at most 30 tokens"):
        model(torch.full((1, 31), 5))
