"""Blocks of structure prediction: triangles, outer products, transitions, attention with a bias, Pairformer, frames."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from tests.portbench.pair import Make, Pair, built, noise, resolve

SINGLE, PAIR, MSA, PAIR_BIAS, HIDDEN = 12, 20, 14, 10, 12
BOLTZ = "boltz.model.layers"
ESMFOLD = "transformers.models.esm.modeling_esmfold"
FRAME2SEQ = "frame2seq.openfold.model"
IGFOLD = "igfold.model.components"
OPENFOLD3 = "openfold3.core.model"
PROTENIX = "protenix.model"
RF3 = "rf3.model.layers"


def esmfold(name: str, *args: Any, **settings: Any) -> Make:
    """A block of ESMFold that is built from settings."""
    return built(f"{ESMFOLD}.EsmFold{name}", SimpleNamespace(**settings), *args)


def full(*shape: int) -> Tensor:
    """A mask that hides nothing."""
    return torch.ones(shape)


def masked_last(seed: int) -> tuple[Tensor, ...]:
    """Pairs of six residues, the last of which is hidden in the first example."""
    mask = full(2, 6, 6)
    mask[0, -1] = mask[0, :, -1] = 0
    return (*pairwise(seed), mask)


pairwise = noise((2, 6, 6, PAIR))
alignment = noise((2, 3, 7, MSA))
alignment_and_pairs = noise((2, 3, 6, MSA), (2, 6, 6, PAIR))
single_and_pairs = noise((2, 6, SINGLE), (2, 6, 6, PAIR))
single_and_bias = noise((2, 7, SINGLE), (2, 7, 7, PAIR_BIAS))
conditioned = noise((2, 7, SINGLE), (2, 7, MSA))
conditioned_and_bias = noise((2, 7, SINGLE), (2, 7, MSA), (2, 7, 7, PAIR_BIAS))
wide = noise((2, 7, MSA))


def boltz_triangle(model: nn.Module, x: Tensor) -> Tensor:
    return model(x, full(*x.shape[:-1]))


def triangle_products(way: str) -> list[Pair]:
    """Triangle multiplication along "outgoing" or "incoming" edges."""
    outgoing = way == "outgoing"
    mix = "outgoing" if outgoing else "ingoing"
    update = f"{OPENFOLD3}.layers.triangular_multiplicative_update"
    protenix = built(f"{PROTENIX}.triangular.triangular.TriangleMultiplication{way.capitalize()}", PAIR, PAIR)
    esmfold_product = esmfold("TriangleMultiplicativeUpdate", outgoing, pairwise_state_dim=PAIR)
    igfold = partial(built, f"{IGFOLD}.TriangleMultiplicativeModule.TriangleMultiplicativeModule", dim=PAIR, mix=mix)
    return [
        Pair(
            name=f"triangle product, {way}: protenix | boltz",
            source=protenix,
            target=built(f"{BOLTZ}.triangular_mult.TriangleMultiplication{way.capitalize()}", PAIR),
            inputs=masked_last,
            tags=("split/fuse", "operands"),
        ),
        Pair(
            name=f"triangle product, {way}: openfold3 | openfold3, fused",
            source=built(f"{update}.TriangleMultiplicativeUpdate", PAIR, HIDDEN, outgoing),
            target=built(f"{update}.FusedTriangleMultiplicativeUpdate", PAIR, HIDDEN, outgoing),
            inputs=masked_last,
            tags=("split/fuse", "operands"),
        ),
        Pair(
            name=f"triangle product, {way}: openfold3 | protenix",
            source=built(f"{update}.TriangleMultiplicativeUpdate", PAIR, PAIR, outgoing),
            target=protenix,
            inputs=masked_last,
            tags=("nesting",),
        ),
        Pair(
            name=f"triangle product, {way}: igfold | esmfold",
            source=igfold(hidden_dim=PAIR),
            target=esmfold_product,
            inputs=pairwise,
            tags=("nesting",),
        ),
        Pair(
            name=f"triangle product, {way}: esmfold | frame2seq",
            source=esmfold_product,
            target=built(
                f"{FRAME2SEQ}.triangular_multiplicative_update.TriangleMultiplicativeUpdate", PAIR, PAIR, outgoing
            ),
            inputs=masked_last,
            tags=("constant",),
            same=False,
            note="frame2seq divides both operands by their standard deviation, so that epsilon differs in effect",
        ),
        Pair(
            name=f"triangle product, {way}: triangle-multiplicative-module | igfold",
            source=built(
                "triangle_multiplicative_module.TriangleMultiplicativeModule", dim=PAIR, hidden_dim=HIDDEN, mix=mix
            ),
            target=igfold(hidden_dim=HIDDEN),
            inputs=pairwise,
            tags=("dialect",),
            same=False,
            note="the output gate is before the projection, or after it",
        ),
    ]


def triangle_attention(package: str, *, starting: bool = True) -> Make:
    if package == "rf3":
        settings: dict[str, Any] = {"n_head": 3, "d_hidden": 5, "use_cuequivariance": False}
        return built(f"{RF3}.attention.TriangleAttention", PAIR, start_node=starting, **settings)
    path = {
        "boltz": f"{BOLTZ}.triangular_attention.attention.TriangleAttention",
        "esmfold": f"{ESMFOLD}.EsmFoldTriangleAttention",
        "frame2seq": f"{FRAME2SEQ}.triangular_attention.TriangleAttention",
        "openfold3": f"{OPENFOLD3}.layers.triangular_attention.TriangleAttention",
        "protenix": f"{PROTENIX}.triangular.triangular.TriangleAttention",
    }[package]
    return built(path, PAIR, 5, 3, starting)


TRIANGLES = [
    *triangle_products("outgoing"),
    *triangle_products("incoming"),
    Pair(
        name="triangle product, outgoing: rf3 | boltz",
        source=built(
            f"{RF3}.attention.TriangleMultiplication", PAIR, direction="outgoing", bias=True, use_cuequivariance=False
        ),
        target=built(f"{BOLTZ}.triangular_mult.TriangleMultiplicationOutgoing", PAIR, call=boltz_triangle),
        inputs=pairwise,
        tags=("constant",),
        same=False,
        note="one operand is divided by the length before a norm, so that epsilon differs in effect",
    ),
    *(
        Pair(
            name=f"triangle attention, start: {left} | {right}",
            source=triangle_attention(left),
            target=triangle_attention(right),
            inputs=pairwise if left == "rf3" else masked_last,
            tags=("nesting",),
        )
        for left, right in (
            ("openfold3", "protenix"),
            ("boltz", "openfold3"),
            ("esmfold", "frame2seq"),
            ("rf3", "esmfold"),
        )
    ),
    Pair(
        name="triangle attention, end: boltz | openfold3",
        source=triangle_attention("boltz", starting=False),
        target=triangle_attention("openfold3", starting=False),
        inputs=pairwise,
        tags=("nesting",),
    ),
    Pair(
        name="triangle attention, end: rf3 | esmfold",
        source=triangle_attention("rf3", starting=False),
        target=triangle_attention("esmfold", starting=False),
        inputs=pairwise,
        tags=("dialect",),
        same=False,
        note="one transposes the bias",
    ),
]


def boltz_outer_product(model: nn.Module, x: Tensor) -> Tensor:
    return model(x, full(*x.shape[:3]))


boltz_outer = built(f"{BOLTZ}.outer_product_mean.OuterProductMean", MSA, 5, 11, call=boltz_outer_product)
openfold3_outer = f"{OPENFOLD3}.layers.outer_product_mean.OuterProductMean"
rf3_outer = f"{RF3}.outer_product.OuterProductMean_AF3"
OUTER_PRODUCTS = [
    Pair(
        name=f"outer product: {name}",
        source=source,
        target=target,
        inputs=alignment,
        tags=tags,
        same=same,
        note="" if same else "one divides the output bias by the depth as well",
    )
    for name, source, target, tags, same in (
        (
            "openfold3 | protenix",
            built(openfold3_outer, MSA, 11, 5),
            built(f"{PROTENIX}.triangular.layers.OuterProductMean", MSA, 11, 5),
            ("nesting",),
            True,
        ),
        (
            "boltz | rf3",
            boltz_outer,
            built(rf3_outer, MSA, 5, 11, zero=("proj_left.bias", "proj_right.bias")),
            ("bias",),
            True,
        ),
        ("openfold3 | boltz", built(openfold3_outer, MSA, 11, 5, 0.0), boltz_outer, ("dialect",), False),
        (
            "frame2seq | rf3",
            built(f"{FRAME2SEQ}.outer_product_mean.OuterProductMean", MSA, 11, 5, 0.0),
            built(rf3_outer, MSA, 5, 11),
            ("dialect",),
            False,
        ),
    )
]

protenix_transition = built(f"{PROTENIX}.modules.primitives.Transition", MSA, 2)
TRANSITIONS = [
    Pair(
        name="transition: boltz | protenix",
        source=built(f"{BOLTZ}.transition.Transition", MSA, 28),
        target=protenix_transition,
        inputs=wide,
        tags=("gate/up",),
    ),
    Pair(
        name="transition: openfold3 | protenix",
        source=built(f"{OPENFOLD3}.layers.transition.SwiGLUTransition", MSA, 2),
        target=protenix_transition,
        inputs=wide,
        tags=("nesting",),
    ),
    Pair(
        name="conditioned transition: boltz | protenix",
        source=built("boltz.model.modules.transformers.ConditionedTransitionBlock", SINGLE, MSA),
        target=built(f"{PROTENIX}.modules.transformer.ConditionedTransitionBlock", SINGLE, MSA),
        inputs=conditioned,
        tags=("dialect",),
        same=False,
        note="boltz multiplies a third factor",
    ),
    Pair(
        name="adaptive norm: boltz | protenix",
        source=built("boltz.model.modules.transformers.AdaLN", SINGLE, MSA),
        target=built(f"{PROTENIX}.modules.primitives.AdaptiveLayerNorm", SINGLE, MSA),
        inputs=conditioned,
        tags=("nesting",),
    ),
]

boltz_attention = built(
    f"{BOLTZ}.attention.AttentionPairBias",
    *(SINGLE, PAIR_BIAS, 3),
    call=lambda model, single, pairs: model(single, pairs, full(*single.shape[:2])),
)
ATTENTION = [
    Pair(
        name="attention with pair bias: openfold3 | boltz",
        source=built(
            f"{OPENFOLD3}.layers.attention_pair_bias.AttentionPairBias",
            *(SINGLE, SINGLE, SINGLE, SINGLE, PAIR_BIAS, 4, 3),
        ),
        target=boltz_attention,
        inputs=single_and_bias,
        tags=("nesting", "bias"),
    ),
    Pair(
        name="attention with pair bias: protenix | boltz",
        source=built(
            f"{PROTENIX}.modules.transformer.AttentionPairBias",
            has_s=False,
            create_offset_ln_z=True,
            n_heads=3,
            c_a=SINGLE,
            c_s=SINGLE,
            c_z=PAIR_BIAS,
            call=lambda model, single, pairs: model(single, None, pairs),
        ),
        target=boltz_attention,
        inputs=single_and_bias,
        tags=("nesting", "bias"),
    ),
    Pair(
        name="averaging by pairs: boltz | protenix",
        source=built(
            f"{BOLTZ}.pair_averaging.PairWeightedAveraging",
            *(MSA, PAIR, 5, 4),
            call=lambda model, rows, pairs: model(rows, pairs, full(*pairs.shape[:3]), False),
        ),
        target=built(f"{PROTENIX}.modules.pairformer.MSAPairWeightedAveraging", MSA, 5, PAIR, 4),
        inputs=alignment_and_pairs,
        tags=("nesting",),
    ),
    Pair(
        name="attention along rows: openfold3 | frame2seq",
        source=built(f"{OPENFOLD3}.layers.msa.MSARowAttentionWithPairBias", MSA, PAIR, 5, 3),
        target=built(f"{FRAME2SEQ}.msa.MSARowAttentionWithPairBias", MSA, PAIR, 5, 3),
        inputs=alignment_and_pairs,
        tags=("bias",),
        one_way=True,
        note="the target has biases in the gate and the output",
    ),
    Pair(
        name="graph transformer: graph-transformer-pytorch | igfold",
        source=built(
            "graph_transformer_pytorch.GraphTransformer",
            dim=SINGLE,
            depth=2,
            edge_dim=PAIR_BIAS,
            with_feedforwards=True,
            gated_residual=True,
            dim_head=4,
            heads=3,
            call=lambda model, nodes, edges: model(nodes, edges)[0],
        ),
        target=built(
            f"{IGFOLD}.GraphTransformer.GraphTransformer",
            dim=SINGLE,
            depth=2,
            edge_dim=PAIR_BIAS,
            with_feedforwards=True,
            dim_head=4,
            heads=3,
            call=lambda model, nodes, edges: model(nodes, edges)[0],
        ),
        inputs=single_and_bias,
        tags=("nesting",),
    ),
]


def with_both_masks(model: nn.Module, single: Tensor, pairs: Tensor) -> Any:
    return model(single, pairs, full(*single.shape[:2]), full(*pairs.shape[:3]))


boltz_pairformer = built(
    f"{BOLTZ}.pairformer.PairformerLayer",
    *(SINGLE, PAIR),
    num_heads=3,
    dropout=0.0,
    v2=True,
    pairwise_head_width=5,
    pairwise_num_heads=4,
    call=with_both_masks,
)
openfold3_pairformer = built(
    f"{OPENFOLD3}.latent.pairformer.PairFormerBlock",
    c_s=SINGLE,
    c_z=PAIR,
    c_hidden_pair_bias=4,
    no_heads_pair_bias=3,
    c_hidden_mul=PAIR,
    c_hidden_pair_att=5,
    no_heads_pair=4,
    transition_type="swiglu",
    transition_n=4,
    pair_dropout=0.0,
    fuse_projection_weights=False,
    inf=1e9,
    call=with_both_masks,
)
protenix_pairformer = built(
    f"{PROTENIX}.modules.pairformer.PairformerBlock",
    n_heads=3,
    c_z=PAIR,
    c_s=SINGLE,
    c_hidden_mul=PAIR,
    c_hidden_pair_att=5,
    no_heads_pair=4,
    dropout=0.0,
    call=lambda model, single, pairs: model(single, pairs, full(*pairs.shape[:3])),
)
TRANSPOSED_BIAS = "openfold3 transposes the bias of the attention to the ending node"
TRUNKS = [
    Pair(
        name="pairformer block: boltz | protenix",
        source=boltz_pairformer,
        target=protenix_pairformer,
        inputs=single_and_pairs,
        tags=("split/fuse", "operands", "nesting"),
    ),
    Pair(
        name="pairformer block: boltz | openfold3",
        source=boltz_pairformer,
        target=openfold3_pairformer,
        inputs=single_and_pairs,
        tags=("dialect",),
        same=False,
        note=TRANSPOSED_BIAS,
    ),
    Pair(
        name="pairformer block: openfold3 | protenix",
        source=openfold3_pairformer,
        target=protenix_pairformer,
        inputs=single_and_pairs,
        tags=("dialect",),
        same=False,
        note=TRANSPOSED_BIAS,
    ),
    Pair(
        name="diffusion transformer: openfold3 | protenix",
        source=built(
            f"{OPENFOLD3}.layers.diffusion_transformer.DiffusionTransformer",
            c_a=SINGLE,
            c_s=MSA,
            c_z=PAIR_BIAS,
            c_hidden=4,
            no_heads=3,
            no_blocks=2,
            n_transition=2,
            n_query=None,
            n_key=None,
            inf=1e9,
            call=lambda model, x, single, pairs: model(x, single, pairs, full(*x.shape[:2])),
        ),
        target=built(f"{PROTENIX}.modules.transformer.DiffusionTransformer", SINGLE, MSA, PAIR_BIAS, 2, 3),
        inputs=conditioned_and_bias,
        tags=("nesting", "gate/up", "copies"),
        one_way=True,
        note="the source shares one norm of the pairs over all blocks",
    ),
]


def frames(seed: int) -> tuple[Tensor, ...]:
    """Single and pair features, rotations and translations."""
    single, pairs, matrices, translations = noise((2, 7, SINGLE), (2, 7, 7, PAIR_BIAS), (2, 7, 3, 3), (2, 7, 3))(seed)
    rotations = torch.linalg.qr(matrices)[0]
    return single, pairs, rotations * torch.linalg.det(rotations)[..., None, None], translations


def rigid_points(module: str) -> Any:
    """A forward pass of invariant point attention on the rigid transforms that are defined in this module."""

    def call(model: nn.Module, single: Tensor, pairs: Tensor, rotations: Tensor, translations: Tensor) -> Tensor:
        rotation = resolve(f"{module}.Rotation")(rot_mats=rotations)
        rigid = resolve(f"{module}.Rigid")(rotation, translations)
        return model(single, pairs, rigid, full(*single.shape[:2]).to(single))

    return call


def frame2seq_points(zero: tuple[str, ...] = ()) -> Make:
    return built(
        f"{FRAME2SEQ}.structure_module.InvariantPointAttention",
        *(SINGLE, PAIR_BIAS, 5, 3, 2, 4),
        eps=1e-8,
        call=rigid_points("frame2seq.openfold.utils.rigid_utils"),
        zero=zero,
    )


def esmfold_points(zero: tuple[str, ...] = ()) -> Make:
    settings: dict[str, Any] = {
        "ipa_dim": 5,
        "num_heads_ipa": 3,
        "num_qk_points": 2,
        "num_v_points": 4,
        "inf": 1e5,
        "epsilon": 1e-8,
    }
    return built(
        f"{ESMFOLD}.EsmFoldInvariantPointAttention",
        SimpleNamespace(sequence_dim=SINGLE, pairwise_dim=PAIR_BIAS, **settings),
        call=rigid_points("transformers.models.esm.openfold_utils"),
        zero=zero,
    )


POINTS: dict[str, Any] = {
    "heads": 3,
    "scalar_key_dim": 5,
    "scalar_value_dim": 5,
    "point_key_dim": 2,
    "point_value_dim": 4,
}


def row_points(path: str) -> Make:
    """Invariant point attention on row vectors, whose rotations are transposed."""
    return built(
        path,
        dim=SINGLE,
        pairwise_repr_dim=PAIR_BIAS,
        eps=1e-8,
        call=lambda model, single, pairs, rotations, translations: model(
            single, pairs, rotations=rotations.mT, translations=translations
        ),
        **POINTS,
    )


def row_block(path: str) -> Make:
    return built(
        path,
        dim=SINGLE,
        require_pairwise_repr=False,
        call=lambda model, single, pairs, rotations, translations: model(
            single, rotations=rotations.mT, translations=translations
        ),
        **POINTS,
    )


STRUCTURE: dict[str, Any] = {
    "sequence_dim": SINGLE,
    "pairwise_dim": PAIR_BIAS,
    "ipa_dim": 5,
    "resnet_dim": 9,
    "num_heads_ipa": 3,
    "num_qk_points": 2,
    "num_v_points": 4,
    "dropout_rate": 0.0,
    "num_blocks": 2,
    "num_transition_layers": 1,
    "num_resnet_blocks": 2,
    "num_angles": 7,
    "trans_scale_factor": 10,
    "epsilon": 1e-8,
    "inf": 1e5,
}


def structure_inputs(seed: int) -> tuple[dict[str, Tensor], Tensor]:
    single, pairs = single_and_bias(seed)
    letters = torch.randint(20, (2, 7), generator=torch.Generator().manual_seed(seed))
    return {"single": single, "pair": pairs}, letters


def structure_outputs(output: dict[str, Tensor]) -> tuple[Tensor, ...]:
    return output["frames"], output["positions"], output["angles"]


igfold_points = row_points(f"{IGFOLD}.IPABlock.InvariantPointAttention")
lucidrains_points = row_points("invariant_point_attention.InvariantPointAttention")
NO_BIASES = ("linear_q.bias", "linear_kv.bias", "linear_q_points.bias", "linear_kv_points.bias")
POINT_TAGS = ("per head", "bias", "permuted features")
FRAMES = [
    *(
        Pair(name=f"invariant point attention: {name}", source=source, target=target, inputs=frames, tags=tags)
        for name, source, target, tags in (
            ("esmfold | frame2seq", esmfold_points(), frame2seq_points(), ("nesting",)),
            ("invariant-point-attention | igfold", lucidrains_points, igfold_points, ("nesting",)),
            ("igfold | frame2seq", igfold_points, frame2seq_points(NO_BIASES), POINT_TAGS),
            ("invariant-point-attention | esmfold", lucidrains_points, esmfold_points(NO_BIASES), POINT_TAGS),
        )
    ),
    Pair(
        name="block of invariant point attention: invariant-point-attention | igfold",
        source=row_block("invariant_point_attention.IPABlock"),
        target=row_block(f"{IGFOLD}.IPABlock.IPABlock"),
        inputs=frames,
        tags=("nesting",),
    ),
    Pair(
        name="angles: esmfold | frame2seq",
        source=esmfold(
            "AngleResnet", sequence_dim=SINGLE, resnet_dim=10, num_resnet_blocks=2, num_angles=7, epsilon=1e-8
        ),
        target=built(f"{FRAME2SEQ}.structure_module.AngleResnet", SINGLE, 10, 2, 7, 1e-8),
        inputs=noise((2, 7, SINGLE), (2, 7, SINGLE)),
        tags=("nesting",),
    ),
    Pair(
        name="structure module: esmfold | frame2seq",
        source=esmfold("StructureModule", **STRUCTURE),
        target=built(f"{FRAME2SEQ}.structure_module.StructureModule", *STRUCTURE.values()),
        inputs=structure_inputs,
        source_output=structure_outputs,
        target_output=structure_outputs,
        tags=("nesting", "loop"),
        tolerance=1e-3,
    ),
]

PAIRS = [*TRIANGLES, *OUTER_PRODUCTS, *TRANSITIONS, *ATTENTION, *TRUNKS, *FRAMES]
