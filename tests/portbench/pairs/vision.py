"""Models of images, and of images with text."""

from typing import Any

import torch
from torch import Tensor, nn

from tests.adapters.pairs import hidden, logits, tokens
from tests.portbench.pair import Make, Pair, Probe, built, drawn, hugging_face, noise, resolve

VIT: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "image_size": 12,
    "patch_size": 4,
}
TIMM_VIT: dict[str, Any] = {
    "img_size": 12,
    "patch_size": 4,
    "embed_dim": 24,
    "depth": 2,
    "num_heads": 4,
    "mlp_ratio": 40 / 24,
}
SWIN: dict[str, Any] = {"image_size": 16, "patch_size": 2, "embed_dim": 12, "window_size": 4, "mlp_ratio": 2.0}
CONVNEXT: dict[str, Any] = {
    "num_stages": 4,
    "hidden_sizes": [8, 12, 20, 28],
    "depths": [1, 2, 1, 1],
    "patch_size": 4,
    "num_labels": 7,
    "layer_norm_eps": 1e-6,
}
TIMM_CONVNEXT: dict[str, Any] = {"depths": (1, 2, 1, 1), "dims": (8, 12, 20, 28), "num_classes": 7}
CLIP: dict[str, Any] = {"hidden_size": 24, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
OPEN_CLIP: dict[str, Any] = {"width": 24, "layers": 2, "heads": 4}
END = 28  # of a text


def timm(path: str, **config: Any) -> Make:
    return built(f"timm.models.{path}", **config)


def timm_features(path: str, **config: Any) -> Make:
    """What a model of timm returns before its head."""
    return built(f"timm.models.{path}", num_classes=0, call=lambda model, x: model.forward_features(x), **config)


def images(name: str, source: Make, target: Make, size: int, *tags: str, **more: Any) -> Pair:
    """A model of transformers that takes images by name, and one that takes them by place."""
    draw = noise((3, 3, size, size))
    forms: dict[str, Any] = {
        "inputs": lambda seed: {"pixel_values": draw(seed)[0]},
        "target_inputs": draw,
        "source_output": logits,
    }
    return Pair(name=name, source=source, target=target, tags=tags, **forms | more)


def resnet() -> nn.Module:
    module = "timm.models.resnet"
    return resolve(f"{module}.ResNet")(resolve(f"{module}.Bottleneck"), (1, 1, 1, 1), num_classes=7)


def open_clip(name: str, *, quick: bool, **config: Any) -> Make:
    def make() -> nn.Module:
        activation = resolve("open_clip.transformer.QuickGELU") if quick else nn.GELU
        return resolve(f"open_clip.transformer.{name}")(act_layer=activation, **OPEN_CLIP, **config)

    return drawn(make)


def torchtune_text() -> nn.Module:
    model = resolve("torchtune.models.clip.clip_text_encoder")(
        embed_dim=24, num_heads=4, num_layers=2, vocab_size=29, max_seq_len=7
    )
    model.eot_token = END
    return model


def text(seed: int) -> tuple[Tensor]:
    """Texts that end with the highest number, one of them early."""
    words = tokens(seed, count=28)[0].clone()
    words[:, -1] = words[0, 4] = END
    words[0, 5:] = 1
    return (words,)


def text_by_name(seed: int) -> Probe:
    return {"input_ids": text(seed)[0]}


def at_end(model: nn.Module, input_ids: Tensor) -> Tensor:
    """What the end of each text was turned into."""
    states = model(input_ids=input_ids).last_hidden_state
    return states[torch.arange(len(states)), input_ids.argmax(-1)]


def clip_text(**more: Any) -> Make:
    return hugging_face(
        "CLIPText",
        "ModelWithProjection",
        **CLIP,
        vocab_size=29,
        max_position_embeddings=7,
        projection_dim=10,
        hidden_act="quick_gelu",
        eos_token_id=END,
        bos_token_id=0,
        pad_token_id=1,
        **more,
    )


def clip_vision(activation: str) -> Make:
    return hugging_face(
        "CLIPVision",
        "ModelWithProjection",
        **CLIP,
        image_size=12,
        patch_size=4,
        projection_dim=10,
        hidden_act=activation,
    )


def open_clip_vision(*, quick: bool) -> Make:
    return open_clip("VisionTransformer", quick=quick, image_size=12, patch_size=4, mlp_ratio=4.0, output_dim=10)


def image_embeddings(output: Any) -> Tensor:
    return output.image_embeds


vit = hugging_face("ViT", "Model", **VIT, layer_norm_eps=1e-6)
vit_timm = "vision_transformer.VisionTransformer"
CLIP_TAGS = ("split/fuse", "transpose")
clip_torchtune = drawn(torchtune_text)

PAIRS = [
    images(
        "vit: transformers | timm",
        vit,
        timm_features(vit_timm, **TIMM_VIT),
        12,
        *("split/fuse", "unused head"),
        source_output=hidden,
    ),
    images(
        "vit: transformers | timm, other epsilon",
        hugging_face("ViT", "Model", **VIT),
        timm_features(vit_timm, **TIMM_VIT),
        12,
        "constant",
        source_output=hidden,
        same=False,
        note="1e-12 against 1e-6",
    ),
    images(
        "vit classifier: transformers | timm",
        hugging_face("ViT", "ForImageClassification", **VIT, layer_norm_eps=1e-6, num_labels=7),
        timm(vit_timm, **TIMM_VIT, num_classes=7),
        12,
        "split/fuse",
    ),
    images(
        "deit, distilled: transformers | timm",
        hugging_face("DeiT", "Model", **VIT, layer_norm_eps=1e-6),
        timm_features("deit.VisionTransformerDistilled", **TIMM_VIT),
        12,
        *("split/fuse", "unused head"),
        source_output=hidden,
    ),
    images(
        "dinov2: transformers | timm",
        hugging_face("Dinov2", "Model", **VIT, mlp_ratio=2, layer_norm_eps=1e-6),
        timm_features(vit_timm, **dict(TIMM_VIT, mlp_ratio=2), init_values=1e-5),
        12,
        *("split/fuse", "layer scale", "unused head"),
        source_output=hidden,
    ),
    images(
        "swin: transformers | timm",
        hugging_face("Swin", "Model", **SWIN, depths=[2, 2], num_heads=[2, 3], layer_norm_eps=1e-5),
        built(
            "timm.models.swin_transformer.SwinTransformer",
            img_size=16,
            patch_size=2,
            embed_dim=12,
            window_size=4,
            mlp_ratio=2.0,
            depths=(2, 2),
            num_heads=(2, 3),
            num_classes=0,
            call=lambda model, x: model.forward_features(x).flatten(1, 2),
        ),
        16,
        *("split/fuse", "relative positions"),
        source_output=hidden,
    ),
    images(
        "resnet-26: transformers | timm",
        hugging_face(
            "ResNet",
            "ForImageClassification",
            embedding_size=64,
            hidden_sizes=[256, 512, 1024, 2048],
            depths=[1, 1, 1, 1],
            layer_type="bottleneck",
            hidden_act="relu",
            num_labels=7,
        ),
        drawn(resnet),
        97,
        *("convolution", "batch norm"),
        note="wide, because timm fixes the numbers of channels",
    ),
    images(
        "convnext: transformers | timm",
        hugging_face("ConvNext", "ForImageClassification", **CONVNEXT),
        timm("convnext.ConvNeXt", **TIMM_CONVNEXT),
        32,
        *("convolution/linear", "layer scale"),
    ),
    images(
        "convnext 2: transformers | timm",
        hugging_face("ConvNextV2", "ForImageClassification", **CONVNEXT),
        timm("convnext.ConvNeXt", **TIMM_CONVNEXT, use_grn=True, ls_init_value=None),
        32,
        *("convolution/linear", "response norm"),
    ),
    *(
        images(
            f"clip vision{name}: transformers | open-clip",
            clip_vision(activation),
            open_clip_vision(quick=quick),
            12,
            *CLIP_TAGS,
            source_output=image_embeddings,
            same=same,
            note="" if same else "two activations",
        )
        for name, activation, quick, same in (
            ("", "quick_gelu", True, True),
            (", gelu", "gelu", False, True),
            (", other activation", "quick_gelu", False, False),
        )
    ),
    Pair(
        name="clip text: transformers | open-clip",
        source=clip_text(),
        target=open_clip("TextTransformer", quick=True, context_length=7, vocab_size=29, output_dim=10, eos_id=END),
        inputs=text_by_name,
        target_inputs=text,
        source_output=lambda output: output.text_embeds,
        tags=CLIP_TAGS,
    ),
    Pair(
        name="clip text: transformers | torchtune",
        source=clip_text(call=at_end),
        target=clip_torchtune,
        inputs=text_by_name,
        target_inputs=text,
        tags=("nesting", "unused head"),
    ),
    Pair(
        name="clip text: open-clip | torchtune",
        source=open_clip(
            "TextTransformer",
            quick=True,
            context_length=7,
            vocab_size=29,
            output_dim=None,
            pool_type="argmax",
            proj_type="none",
        ),
        target=clip_torchtune,
        inputs=text,
        tags=("split/fuse",),
    ),
]
