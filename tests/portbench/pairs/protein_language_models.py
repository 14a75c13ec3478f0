"""Language models of proteins, RNA and codons."""

from argparse import Namespace
from typing import Any

import torch
from torch import Tensor, nn

from tests.adapters.pairs import by_name, hidden, logits, tokens
from tests.portbench.pair import Make, Pair, built, drawn, hugging_face, resolve

SPECIAL: dict[str, Any] = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "mask_token_id": 32}
SIZES: dict[str, Any] = {"hidden_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 160}
POSITIONS = 50


def residues(seed: int) -> tuple[Tensor]:
    """Three sequences between a start and an end."""
    letters = torch.randint(4, 24, (3, 11), generator=torch.Generator().manual_seed(seed))
    letters[:, 0], letters[:, -1] = 0, 2
    return (letters,)


def residues_by_name(seed: int) -> dict[str, Tensor]:
    return masked(residues(seed)[0])


def masked(letters: Tensor) -> dict[str, Tensor]:
    return {"input_ids": letters, "attention_mask": torch.ones_like(letters)}


def esm(model: str = "ForMaskedLM", *, absolute: bool = False, letters: int = 33) -> Make:
    """ESM-2 of transformers, or ESM-1b, which has absolute positions."""
    return hugging_face(
        "Esm",
        model,
        **SIZES,
        vocab_size=letters,
        mask_token_id=32,
        pad_token_id=1,
        layer_norm_eps=1e-5,
        max_position_embeddings=POSITIONS + 2,
        position_embedding_type="absolute" if absolute else "rotary",
        emb_layer_norm_before=absolute,
        token_dropout=False,
        attn_implementation="eager",
    )


def fair_esm2() -> nn.Module:
    return resolve("esm.ESM2")(2, 40, 4, token_dropout=False)


def fair_esm1b() -> nn.Module:
    settings = Namespace(
        arch="roberta_large",
        layers=2,
        embed_dim=40,
        ffn_embed_dim=160,
        attention_heads=4,
        max_positions=POSITIONS,
        token_dropout=False,
        emb_layer_norm_before=True,
    )
    return resolve("esm.ProteinBertModel")(settings, resolve("esm.Alphabet").from_architecture("ESM-1b"))


def multimolecule(name: str, model: str = "ForMaskedLM", **config: Any) -> Make:
    def make() -> nn.Module:
        settings = resolve(f"multimolecule.models.{name}Config")(**config)
        settings._attn_implementation = "eager"
        return resolve(f"multimolecule.models.{name}{model}")(settings)

    return drawn(make)


def antibody(seed: int) -> tuple[Tensor]:
    return (torch.randint(1, 20, (3, 9), generator=torch.Generator().manual_seed(seed)),)


def ablang_settings() -> Namespace:
    return Namespace(
        vocab_size=24,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=40,
        hidden_act="gelu",
        layer_norm_eps=1e-12,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attention_dropout=0.0,
        max_position_embeddings=20,
        pad_token_id=21,
        initializer_range=0.02,
        type_vocab_size=2,
        chunk_size_feed_forward=0,
    )


def carp_tokens(seed: int) -> Tensor:
    return tokens(seed, count=30)[0].clamp(min=1)


def antiberty() -> nn.Module:
    return resolve("antiberty.AntiBERTy")(resolve("transformers.BertConfig")(**BERT))


def fair_logits(output: dict[str, Tensor]) -> Tensor:
    return output["logits"]


ANTIBODY: dict[str, Any] = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
ANTIBODY_SPECIAL: dict[str, Any] = {"pad_token_id": 21, "bos_token_id": 0, "eos_token_id": 22, "mask_token_id": 23}
BERT: dict[str, Any] = ANTIBODY | {"vocab_size": 25, "intermediate_size": 40, "max_position_embeddings": 20}
ESM_C: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 256,
}
PROGEN: dict[str, Any] = {"vocab_size": 29, "rotary_dim": 4}
HEAD: dict[str, Any] = {"layer_norm_eps": 1e-5}
esm2, esm2_fair = esm(), drawn(fair_esm2)
esm1b, esm1b_fair = esm(absolute=True), drawn(fair_esm1b)
rna_fm = multimolecule("RnaFm", vocab_size=33, **SIZES, **SPECIAL, max_position_embeddings=POSITIONS + 2)
utr_lm = multimolecule("UtrLm", vocab_size=33, **SIZES, **SPECIAL, token_dropout=False, lm_head=HEAD)
both: dict[str, Any] = {"source_output": logits, "target_output": logits}
against_fair: dict[str, Any] = {"source_output": logits, "target_inputs": residues, "target_output": fair_logits}

PAIRS = [
    Pair(
        name="esm-2: transformers | fair-esm",
        source=esm2,
        target=esm2_fair,
        inputs=residues_by_name,
        tags=("nesting", "tied", "unused head"),
        **against_fair,
    ),
    Pair(
        name="esm-2, no head: transformers | fair-esm",
        source=esm("Model"),
        target=esm2_fair,
        inputs=residues_by_name,
        target_inputs=lambda seed: (*residues(seed), [2]),
        source_output=hidden,
        target_output=lambda output: output["representations"][2],
        tags=("unused head",),
    ),
    Pair(
        name="esm-1b: transformers | fair-esm",
        source=esm1b,
        target=esm1b_fair,
        inputs=residues_by_name,
        tags=("nesting", "tied", "unused head"),
        **against_fair,
    ),
    Pair(
        name="esm c: transformers | multimolecule",
        source=hugging_face("Esmc", "ForMaskedLM", **ESM_C),
        target=multimolecule(
            "EsmC", **ESM_C, pad_token_id=1, bos_token_id=0, eos_token_id=2, residue_scaling_factor=(2 / 36) ** 0.5
        ),
        inputs=residues_by_name,
        tags=("split/fuse", "gate/up"),
        **both,
    ),
    Pair(
        name="rna-fm multimolecule | esm-1b transformers",
        source=rna_fm,
        target=esm1b,
        inputs=residues_by_name,
        tags=("nesting",),
        **both,
    ),
    Pair(
        name="rna-fm multimolecule | esm-1b fair-esm",
        source=rna_fm,
        target=esm1b_fair,
        inputs=residues_by_name,
        tags=("nesting",),
        **against_fair,
    ),
    Pair(
        name="utr-lm multimolecule | esm-2 transformers",
        source=utr_lm,
        target=esm2,
        inputs=residues_by_name,
        tags=("nesting",),
        **both,
    ),
    Pair(
        name="utr-lm multimolecule | esm-2 fair-esm",
        source=utr_lm,
        target=esm2_fair,
        inputs=residues_by_name,
        tags=("nesting",),
        **against_fair,
    ),
    Pair(
        name="utr-lm multimolecule | esm-2 transformers, epsilon of the head",
        source=multimolecule("UtrLm", vocab_size=33, **SIZES, **SPECIAL, token_dropout=False),
        target=esm2,
        inputs=residues_by_name,
        tags=("constant",),
        same=False,
        note="1e-12 against 1e-5 in one norm",
        **both,
    ),
    Pair(
        name="calm multimolecule | esm-2 transformers",
        source=multimolecule(
            "CaLm", vocab_size=131, **SIZES, **SPECIAL, position_embedding_type="rotary", lm_head=HEAD
        ),
        target=esm(letters=131),
        inputs=residues_by_name,
        tags=("nesting",),
        **both,
    ),
    Pair(
        name="carp: multimolecule | sequence-models",
        source=multimolecule(
            "Carp",
            vocab_size=30,
            embedding_size=8,
            hidden_size=24,
            num_hidden_layers=3,
            kernel_size=5,
            max_dilation=4,
            slim=True,
        ),
        target=built(
            "sequence_models.convolutional.ByteNetLM",
            *(30, 8, 24, 3, 5, 4),
            causal=False,
            dropout=0.0,
            final_ln=True,
            slim=True,
            activation="gelu",
            padding_idx=0,
        ),
        inputs=lambda seed: masked(carp_tokens(seed)),
        target_inputs=lambda seed: (carp_tokens(seed), torch.ones(5, 7, 1)),
        source_output=logits,
        tags=("convolution/linear",),
    ),
    Pair(
        name="ablang: multimolecule | ablang",
        source=multimolecule(
            "AbLang",
            vocab_size=24,
            intermediate_size=40,
            max_position_embeddings=20,
            **ANTIBODY,
            **ANTIBODY_SPECIAL,
        ),
        target=drawn(lambda: resolve("ablang.AbLang")(ablang_settings())),
        inputs=lambda seed: masked(antibody(seed)[0]),
        target_inputs=antibody,
        source_output=logits,
        tags=("nesting",),
    ),
    Pair(
        name="ablang-2: multimolecule | ablang2",
        source=multimolecule("AbLang2", vocab_size=26, intermediate_size=96, **ANTIBODY, **ANTIBODY_SPECIAL),
        target=built(
            "ablang2.models.ablang2.ablang.AbLang",
            *(26, 24, 4, 2),
            padding_tkn=21,
            mask_tkn=23,
            a_fn="swiglu",
            keep=("freqs",),
        ),
        inputs=lambda seed: masked(antibody(seed)[0]),
        target_inputs=antibody,
        source_output=logits,
        tags=("gate/up", "rotary", "constant"),
        note="the rotary frequencies are a parameter on one side and a buffer on the other",
    ),
    Pair(
        name="progen-2 multimolecule | gpt-j transformers",
        source=multimolecule(
            "ProGen2",
            "ForCausalLM",
            **PROGEN,
            hidden_size=48,
            num_hidden_layers=2,
            num_attention_heads=8,
            intermediate_size=80,
            max_position_embeddings=16,
            use_cache=False,
            pad_token_id=None,
        ),
        target=hugging_face(
            "GPTJ",
            **PROGEN,
            n_embd=48,
            n_layer=2,
            n_head=8,
            n_inner=80,
            n_positions=16,
            tie_word_embeddings=False,
            pad_token_id=None,
            bos_token_id=None,
            eos_token_id=None,
        ),
        inputs=by_name,
        tags=("split/fuse", "rotary"),
        **both,
    ),
    Pair(
        name="antiberty | bert transformers",
        source=drawn(antiberty),
        target=hugging_face("Bert", "ForMaskedLM", **BERT),
        inputs=lambda seed: masked(tokens(seed, count=25)[0]),
        source_output=lambda output: output.prediction_logits,
        target_output=logits,
        tags=("unused head",),
    ),
]
