"""Models of speech."""

from torch import Tensor, nn

from tests.adapters.pairs import logits, tokens
from tests.portbench.pair import Pair, drawn, hugging_face, noise, resolve
from tests.portbench.pairs.torch_modules import in_turn, torch_encoder


def whisper() -> nn.Module:
    dimensions = resolve("whisper.model.ModelDimensions")(8, 15, 24, 4, 2, 29, 9, 24, 4, 2)
    return resolve("whisper.model.Whisper")(dimensions)


def spectrogram(seed: int) -> Tensor:
    return noise((5, 8, 30))(seed)[0]


PAIRS = [
    Pair(
        name="whisper: transformers | openai",
        source=hugging_face(
            "Whisper",
            "ForConditionalGeneration",
            vocab_size=29,
            num_mel_bins=8,
            d_model=24,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=96,
            decoder_ffn_dim=96,
            max_source_positions=15,
            max_target_positions=9,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=1,
        ),
        target=drawn(whisper),
        inputs=lambda seed: {"input_features": spectrogram(seed), "decoder_input_ids": tokens(seed)[0]},
        target_inputs=lambda seed: (spectrogram(seed), *tokens(seed)),
        source_output=logits,
        tags=("nesting", "tied", "convolution"),
    ),
    Pair(
        name="whisper encoder openai | torch encoder",
        source=drawn(lambda: resolve("whisper.model.AudioEncoder")(8, 7, 24, 4, 2).blocks, call=in_turn),
        target=torch_encoder(96),
        inputs=noise((2, 7, 24)),
        tags=("split/fuse", "bias"),
        note="the source has no key bias, on which no output depends",
    ),
]
