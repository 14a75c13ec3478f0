"""Language models of text."""

from typing import Any

import torch
from torch import Tensor, nn

from tests.adapters.pairs import by_name, hidden, logits, tokens
from tests.portbench.pair import Make, Pair, Probe, built, drawn, hugging_face, noise, resolve

LITTLE: dict[str, Any] = {"vocab_size": 29, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
NO_TOKENS: dict[str, Any] = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
UNTIED: dict[str, Any] = NO_TOKENS | {"tie_word_embeddings": False}
PLAIN: dict[str, Any] = LITTLE | UNTIED | {"intermediate_size": 40, "max_position_embeddings": 32}
LLAMA: dict[str, Any] = PLAIN | {"num_key_value_heads": 2, "rms_norm_eps": 1e-6}
GPT2: dict[str, Any] = NO_TOKENS | {
    "vocab_size": 29,
    "n_embd": 24,
    "n_layer": 2,
    "n_head": 4,
    "n_inner": 40,
    "n_positions": 12,
}
BERT: dict[str, Any] = LITTLE | {"intermediate_size": 40, "max_position_embeddings": 12, "type_vocab_size": 2}
MOE: dict[str, Any] = LLAMA | {"num_local_experts": 3, "num_experts_per_tok": 2, "experts_implementation": "eager"}
ROTARY: dict[str, Any] = {
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0}
}
T5: dict[str, Any] = {
    "vocab_size": 29,
    "d_model": 24,
    "d_kv": 6,
    "d_ff": 40,
    "num_layers": 2,
    "num_heads": 4,
    "feed_forward_proj": "gated-gelu",
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
}


def torchtune(path: str, *args: Any, **kwargs: Any) -> Make:
    return built(f"torchtune.models.{path}", *args, **kwargs)


def transformer_lens(zero: tuple[str, ...], **changes: Any) -> Make:
    """A model of transformer-lens: GPT-2, with changes. It has biases everywhere; `zero` are those that others lack."""
    settings: dict[str, Any] = {
        "n_layers": 2,
        "d_model": 24,
        "n_ctx": 12,
        "d_head": 6,
        "n_heads": 4,
        "d_mlp": 40,
        "d_vocab": 29,
        "act_fn": "gelu_new",
        "normalization_type": "LN",
        "default_prepend_bos": False,
        "device": "cpu",
        "seed": None,
    }

    def make() -> nn.Module:
        config = resolve("transformer_lens.HookedTransformerConfig")(**settings | changes)
        return resolve("transformer_lens.HookedTransformer")(config)

    return drawn(make, zero=zero)


def x_transformers() -> nn.Module:
    layers = resolve("x_transformers.Decoder")(
        dim=24,
        depth=2,
        heads=4,
        attn_dim_head=6,
        attn_kv_heads=2,
        rotary_pos_emb=True,
        rotary_emb_dim=6,
        use_rmsnorm=True,
        ff_glu=True,
        ff_swish=True,
        ff_no_bias=True,
        ff_mult=2,
    )
    return resolve("x_transformers.TransformerWrapper")(
        num_tokens=29, max_seq_len=32, use_abs_pos_emb=False, attn_layers=layers
    )


def curated(name: str, model: str, *, swish: bool = False, **changes: Any) -> Make:
    """A model of curated-transformers."""
    settings: dict[str, Any] = {
        "n_pieces": 29,
        "hidden_width": 24,
        "n_hidden_layers": 2,
        "attention_probs_dropout_prob": 0.0,
        "hidden_dropout_prob": 0.0,
    } | changes

    def make() -> nn.Module:
        if swish:
            settings["activation"] = resolve("curated_transformers.layers.activations.Activation").SiLU
        config = resolve(f"curated_transformers.models.{name}Config")(**settings)
        return resolve(f"curated_transformers.models.{model}")(config)

    return drawn(make)


def tokens_and_mask(seed: int) -> dict[str, Tensor]:
    (words,) = tokens(seed)
    return {"input_ids": words, "attention_mask": torch.ones_like(words)}


def tokens_and_curated_mask(seed: int) -> Probe:
    (words,) = tokens(seed)
    mask = torch.ones_like(words, dtype=torch.bool)
    return words, resolve("curated_transformers.layers.AttentionMask")(mask)


def last_layer(output: Any) -> Tensor:
    return output.all_outputs[-1]


def mamba_layers(model: Any, x: Tensor) -> Tensor:
    for layer in model.layers:
        x = layer(x)
    return x


def mambapy(*, parallel: bool) -> Make:
    def make() -> nn.Module:
        settings: dict[str, Any] = {
            "d_model": 12,
            "n_layers": 2,
            "dt_rank": 3,
            "d_state": 5,
            "expand_factor": 2,
            "d_conv": 4,
        }
        return resolve("mambapy.mamba.Mamba")(resolve("mambapy.mamba.MambaConfig")(**settings, pscan=parallel))

    return drawn(make)


def to_plain(name: str, source: Make, target: Make, *tags: str, **more: Any) -> Pair:
    """A model of transformers, and one that takes tokens and returns scores."""
    forms: dict[str, Any] = {"inputs": by_name, "target_inputs": tokens, "source_output": logits}
    return Pair(name=name, source=source, target=target, tags=tags, **forms | more)


def within(name: str, source: Make, target: Make, *tags: str, **more: Any) -> Pair:
    """Two models of transformers that return scores."""
    forms: dict[str, Any] = {"inputs": by_name, "source_output": logits, "target_output": logits}
    return Pair(name=name, source=source, target=target, tags=tags, **forms | more)


def to_curated(name: str, source: Make, target: Make, *tags: str, encoder: bool = False, **more: Any) -> Pair:
    """A model of transformers, and one of curated-transformers."""
    forms: dict[str, Any] = {
        "inputs": tokens_and_mask,
        "target_inputs": tokens_and_curated_mask,
        "source_output": hidden if encoder else logits,
        "target_output": last_layer if encoder else logits,
    }
    return Pair(name=name, source=source, target=target, tags=tags, **forms | more)


def encoders(name: str, source: Make, target: Make, *tags: str, **more: Any) -> Pair:
    """Two encoders of transformers."""
    forms: dict[str, Any] = {"inputs": tokens_and_mask, "source_output": hidden, "target_output": hidden}
    return Pair(name=name, source=source, target=target, tags=tags, **forms | more)


llama = hugging_face("Llama", **LLAMA)
phi3 = hugging_face("Phi3", **LLAMA)
gpt2 = hugging_face("GPT2", "LMHeadModel", **GPT2)
neox = hugging_face("GPTNeoX", **PLAIN, **ROTARY, hidden_act="gelu")
biogpt: dict[str, Any] = {
    "intermediate_size": 40,
    "max_position_embeddings": 12,
    "scale_embedding": False,
    "pad_token_id": 1,
    "bos_token_id": None,
    "eos_token_id": None,
    "layer_norm_eps": 1e-5,
}
bert = hugging_face("Bert", "Model", **BERT)
t5 = hugging_face("T5", "EncoderModel", **T5)

SMALL = (29, 2, 4, 2, 24)  # vocabulary, layers, heads, heads of keys and values, width
lens_rotary: dict[str, Any] = {"positional_embedding_type": "rotary", "rotary_dim": 6, "rotary_adjacent_pairs": False}
curated_bert: dict[str, Any] = {
    "embedding_width": 24,
    "intermediate_width": 40,
    "n_attention_heads": 4,
    "n_positions": 12,
    "model_max_length": 12,
}
curated_rotary: dict[str, Any] = {"rotary_embedding_base": 10000, "rotary_embedding_fraction": 1.0}
curated_llama: dict[str, Any] = curated_rotary | {
    "intermediate_width": 40,
    "n_query_heads": 4,
    "n_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
}
mamba = drawn(
    lambda: resolve("transformers.MambaModel")(
        resolve("transformers.MambaConfig")(
            vocab_size=29,
            hidden_size=12,
            state_size=5,
            num_hidden_layers=2,
            conv_kernel=4,
            expand=2,
            time_step_rank=3,
            layer_norm_epsilon=1e-5,
        )
    ),
    call=mamba_layers,
)

LLAMAS = [
    to_plain(
        "llama: transformers | torchtune",
        llama,
        torchtune("llama3.llama3", *SMALL, 32, rope_base=10000, intermediate_dim=40, norm_eps=1e-6),
        "rotary",
    ),
    to_curated(
        "llama: transformers | curated-transformers",
        llama,
        curated("Llama", "LlamaCausalLM", swish=True, **curated_llama),
        "nesting",
    ),
    to_curated(
        "llama: transformers | curated-transformers, other activation",
        llama,
        curated("Llama", "LlamaCausalLM", **curated_llama),
        "constant",
        same=False,
        note="SiLU against GELU in the gate",
    ),
    to_plain(
        "llama: transformers | x-transformers",
        hugging_face("Llama", **dict(LLAMA, intermediate_size=48, rms_norm_eps=1e-24)),
        drawn(x_transformers, zero=("bias",)),
        *("rotary", "gate/up"),
    ),
    to_plain(
        "llama: transformers | transformer-lens",
        llama,
        transformer_lens(
            ("b_U", "b_Q", "b_K", "b_V", "b_O", "b_in", "b_out"),
            **lens_rotary,
            act_fn="silu",
            normalization_type="RMS",
            eps=1e-6,
            gated_mlp=True,
            n_key_value_heads=2,
            final_rms=True,
        ),
        *("grouped", "einsum", "bias"),
        note="the target keeps rotary angles in float32",
    ),
    within("llama | mistral", llama, hugging_face("Mistral", **LLAMA, sliding_window=None), "nesting"),
    within(
        "llama | granite",
        llama,
        hugging_face(
            "Granite",
            **LLAMA,
            embedding_multiplier=1.0,
            logits_scaling=1.0,
            residual_multiplier=1.0,
            attention_multiplier=6**-0.5,
        ),
        "constant",
    ),
    within("llama | phi-3", llama, phi3, "split/fuse", "gate/up"),
    to_plain(
        "mistral: transformers | torchtune",
        hugging_face("Mistral", **LLAMA, sliding_window=None),
        torchtune("mistral.mistral", *SMALL, 40, 32, norm_eps=1e-6),
        "rotary",
    ),
    to_plain(
        "qwen 2: transformers | torchtune",
        hugging_face("Qwen2", **LLAMA, **ROTARY),
        torchtune("qwen2.qwen2", *SMALL, 40, 32, norm_eps=1e-6, rope_base=10000.0),
        "rotary",
    ),
    to_plain(
        "phi-3: transformers | torchtune",
        phi3,
        torchtune("phi3.phi3", *SMALL, 40, 32, norm_eps=1e-6),
        *("split/fuse", "gate/up"),
    ),
    to_plain(
        "gemma: transformers | torchtune",
        hugging_face(
            "Gemma", **dict(LLAMA, tie_word_embeddings=True), head_dim=6, hidden_activation="gelu_pytorch_tanh"
        ),
        torchtune("gemma.gemma", 29, 2, 4, 6, 2, 24, 40, 32, norm_eps=1e-6),
        *("rotary", "tied", "offset norm"),
    ),
    within(
        "mixtral, all experts at once | mixtral, one by one",
        hugging_face("Mixtral", **dict(MOE, experts_implementation="batched_mm")),
        hugging_face("Mixtral", **MOE),
        "experts",
    ),
]

GPTS = [
    to_plain(
        "gpt-2: transformers | transformer-lens",
        hugging_face("GPT2", "LMHeadModel", **GPT2, tie_word_embeddings=False),
        transformer_lens(("b_U",)),
        *("transpose", "einsum", "bias"),
    ),
    within(
        "gpt-2 | gpt-bigcode",
        gpt2,
        hugging_face("GPTBigCode", **GPT2, multi_query=False, activation_function="gelu_pytorch_tanh"),
        *("transpose", "per head", "tied"),
    ),
    within(
        "gpt-2 | biogpt",
        gpt2,
        hugging_face("BioGpt", **LITTLE, **biogpt, hidden_act="gelu_new"),
        *("transpose", "split/fuse", "position offset", "tied"),
    ),
    within(
        "opt | biogpt",
        hugging_face(
            "OPT",
            **LITTLE,
            **NO_TOKENS,
            ffn_dim=40,
            max_position_embeddings=12,
            word_embed_proj_dim=24,
            activation_function="gelu",
        ),
        hugging_face("BioGpt", **LITTLE, **biogpt, hidden_act="gelu"),
        *("nesting", "tied"),
    ),
    to_curated(
        "gpt-neox: transformers | curated-transformers",
        neox,
        curated(
            "GPTNeoX",
            "GPTNeoXCausalLM",
            **curated_rotary,
            intermediate_width=40,
            n_attention_heads=4,
            layer_norm_eps=1e-5,
            n_positions=32,
        ),
        "per head",
    ),
    to_plain(
        "gpt-neox: transformers | transformer-lens",
        neox,
        transformer_lens(("b_U",), **lens_rotary, act_fn="gelu", parallel_attn_mlp=True),
        *("per head", "einsum", "bias"),
        note="the target keeps rotary angles in float32",
    ),
    to_curated(
        "falcon: transformers | curated-transformers",
        hugging_face(
            "Falcon",
            **LITTLE,
            **UNTIED,
            ffn_hidden_size=96,
            multi_query=True,
            parallel_attn=True,
            bias=False,
            new_decoder_architecture=False,
            alibi=False,
        ),
        curated(
            "Falcon",
            "FalconCausalLM",
            **curated_rotary,
            n_query_heads=4,
            n_key_value_heads=1,
            layer_norm_eps=1e-5,
            use_bias=False,
            use_parallel_attention=True,
            use_alibi=False,
            new_decoder_architecture=False,
        ),
        *("grouped", "shared"),
    ),
]

ENCODERS = [
    to_curated(
        "bert: transformers | curated-transformers",
        bert,
        curated("BERT", "BERTEncoder", **curated_bert),
        *("split/fuse", "unused head"),
        encoder=True,
    ),
    to_curated(
        "albert: transformers | curated-transformers",
        hugging_face(
            "Albert",
            "Model",
            **BERT,
            embedding_size=10,
            inner_group_num=1,
            num_hidden_groups=1,
            hidden_act="gelu_new",
        ),
        curated(
            "ALBERT",
            "ALBERTEncoder",
            **dict(curated_bert, embedding_width=10),
            n_layers_per_group=1,
            n_hidden_groups=1,
        ),
        *("loop", "split/fuse"),
        encoder=True,
    ),
    encoders("bert | electra", bert, hugging_face("Electra", "Model", **BERT, embedding_size=24), "unused head"),
    encoders(
        "bert | roberta",
        bert,
        hugging_face("Roberta", "Model", **dict(BERT, max_position_embeddings=14), pad_token_id=1),
        "position offset",
        inputs=lambda seed: tokens_and_mask(seed) | {"input_ids": tokens(seed)[0].clamp(min=2)},
    ),
    encoders(
        "bert | roberta, norm first",
        bert,
        hugging_face("RobertaPreLayerNorm", "Model", **dict(BERT, max_position_embeddings=14), pad_token_id=1),
        "dialect",
        inputs=lambda seed: {"input_ids": tokens(seed)[0].clamp(min=2)},
        same=False,
        note="norms before or after the residual sum",
    ),
    encoders(
        "t5 encoder | umt5 encoder",
        t5,
        hugging_face("UMT5", "EncoderModel", **T5),
        "copies",
        inputs=by_name,
        one_way=True,
        note="one table of relative positions, or one a layer",
    ),
    Pair(
        name="t5 encoder: transformers | torchtune",
        source=t5,
        target=torchtune("t5.t5_encoder", 24, 40, 4, 6, 2, 8, 20, 29, 1e-6, 7),
        inputs=by_name,
        target_inputs=tokens,
        source_output=hidden,
        tags=("constant",),
        same=False,
        note="two forms of GELU",
    ),
    *(
        Pair(
            name=f"mamba: transformers | mambapy, {kind}",
            source=mamba,
            target=mambapy(parallel=kind == "parallel"),
            inputs=noise((2, 7, 12)),
            tags=("nesting", "scan"),
        )
        for kind in ("sequential", "parallel")
    ),
]

PAIRS = [*LLAMAS, *GPTS, *ENCODERS]
