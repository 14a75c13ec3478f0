"""Modules of torch itself, against others."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from tests.portbench.pair import Make, Pair, built, drawn, noise, resolve


def in_turn(layers: Iterable[nn.Module], x: Tensor, **given: Tensor) -> Tensor:
    """Run layers one after the other."""
    for layer in layers:
        output = layer(x, **given)
        x = output[0] if isinstance(output, tuple) else output
    return x


def torch_encoder(inner: int) -> Make:
    def make() -> nn.Module:
        layer = nn.TransformerEncoderLayer(24, 4, inner, 0.0, "gelu", batch_first=True, norm_first=True)
        return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    return drawn(make)


def torch_decoder() -> nn.Module:
    return nn.TransformerDecoder(nn.TransformerDecoderLayer(24, 4, 40, 0.0, "gelu", batch_first=True), 2)


def bart_layers() -> nn.Module:
    config = resolve("transformers.BartConfig")(
        d_model=24,
        decoder_attention_heads=4,
        decoder_ffn_dim=40,
        activation_function="gelu",
        attn_implementation="eager",
    )
    layer = resolve("transformers.models.bart.modeling_bart.BartDecoderLayer")
    return nn.ModuleList(layer(config, layer_idx=index) for index in range(2))


def vit_layers() -> nn.Module:
    config = resolve("transformers.ViTConfig")(
        hidden_size=24,
        num_attention_heads=4,
        intermediate_size=40,
        layer_norm_eps=1e-5,
        attn_implementation="eager",
    )
    layer = resolve("transformers.models.vit.modeling_vit.ViTLayer")
    return nn.ModuleList(layer(config) for _ in range(2))


def lstm_steps(cell: nn.Module, x: Tensor) -> Tensor:
    state = (x.new_zeros(len(x), 5), x.new_zeros(len(x), 5))
    outputs = []
    for step in x.unbind(1):
        state = cell(step, state)
        outputs.append(state[0])
    return torch.stack(outputs, 1)


def gru_steps(cell: nn.Module, x: Tensor) -> Tensor:
    state, outputs = x.new_zeros(len(x), 5), []
    for step in x.unbind(1):
        state = cell(step, state)
        outputs.append(state)
    return torch.stack(outputs, 1)


def first(output: Any) -> Tensor:
    return output[0]


features = noise((3, 7, 6))

PAIRS = [
    Pair(
        name="bart decoder layers | torch decoder",
        source=drawn(bart_layers, call=lambda model, x, memory: in_turn(model, x, encoder_hidden_states=memory)),
        target=drawn(torch_decoder),
        inputs=noise((2, 7, 24), (2, 9, 24)),
        tags=("split/fuse",),
    ),
    Pair(
        name="vit layers | torch encoder",
        source=drawn(vit_layers, call=in_turn),
        target=torch_encoder(40),
        inputs=noise((2, 7, 24)),
        tags=("split/fuse",),
    ),
    Pair(
        name="timm attention | torch attention",
        source=built("timm.layers.Attention", 24, num_heads=4, qkv_bias=True),
        target=built(
            "torch.nn.MultiheadAttention", 24, 4, batch_first=True, call=lambda model, x: first(model(x, x, x))
        ),
        inputs=noise((2, 7, 24)),
        tags=("split/fuse",),
    ),
    Pair(
        name="lstm | lstm, time first",
        source=built("torch.nn.LSTM", 6, 5, 2, batch_first=True, bidirectional=True),
        target=built(
            "torch.nn.LSTM",
            6,
            5,
            2,
            bidirectional=True,
            call=lambda model, x: first(model(x.transpose(0, 1))).transpose(0, 1),
        ),
        inputs=features,
        source_output=first,
        tags=("nesting",),
    ),
    Pair(
        name="lstm | lstm cell",
        source=built("torch.nn.LSTM", 6, 5, batch_first=True),
        target=built("torch.nn.LSTMCell", 6, 5, call=lstm_steps),
        inputs=features,
        source_output=first,
        tags=("loop",),
    ),
    Pair(
        name="gru | gru cell",
        source=built("torch.nn.GRU", 6, 5, batch_first=True),
        target=built("torch.nn.GRUCell", 6, 5, call=gru_steps),
        inputs=features,
        source_output=first,
        tags=("loop",),
    ),
]
