"""How fast a language model is trained: batches to a token budget, against a Hugging Face Trainer with padded batches.

The same architecture, sequences, precision and number of real tokens, on one thread; the time is that of the processor in
the steps, so that other programs do not count. Lengths are distributed as in bacterial proteomes.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers
from torch import Tensor

from pyrosys.training import DataModule, MaskedLanguageTask, MaskedResidues, Trainer
from pyrosys.training.data import padding_waste
from pyrosys.zoo.esm import ALPHABET, ESM, ESMConfig

CONFIG = ESMConfig(layers=6, width=128, heads=2, contacts=False)
SEQUENCES, LONGEST, BATCH = 640, 1022, 16
STEPS = 10


def main() -> None:
    """Measure both and print."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        sequences = draw()
        path = Path(directory, "proteins.parquet")
        pq.write_table(pa.table({"sequence": sequences}), path)
        average = round(np.mean([len(sequence) + 2 for sequence in sequences]))
        data = DataModule(path, MaskedResidues(ALPHABET), tokens=average * BATCH, train=None)
        batches = data.epoch(0).batches
        theirs, ours = hugging_face(sequences, Path(directory)), pyrosys(data, Path(directory))
        waste = padding_waste(batches, data.dataset.lengths + 2)
    print(f"padding: {waste:.1%} with a token budget")
    for name, speed in {"Hugging Face Trainer": theirs, "pyrosys.training.Trainer": ours}.items():
        print(f"{name:<26} {speed:8,.0f} tokens/s")
    print(f"{ours / theirs:.2f} times as fast")


def draw() -> list[str]:
    """Random sequences whose lengths have the quartiles of bacterial proteins: about 170, 280 and 410."""
    generator = np.random.default_rng(0)
    lengths = np.clip(np.exp(generator.normal(np.log(280), 0.65, SEQUENCES)), 30, LONGEST).astype(int)
    letters = np.array(list("ACDEFGHIKLMNPQRSTVWY"))
    return ["".join(generator.choice(letters, length)) for length in lengths]


class Clock:
    """Real tokens per second of processor time, without the first two steps."""

    def __init__(self) -> None:
        self.steps = self.tokens = 0
        self.seconds = self._started = 0.0

    def start(self) -> None:
        self._started = time.process_time()

    def stop(self, tokens: int) -> None:
        self.steps += 1
        if self.steps > 2:
            self.seconds += time.process_time() - self._started
            self.tokens += tokens

    @property
    def speed(self) -> float:
        return self.tokens / self.seconds


def hugging_face(sequences: list[str], directory: Path) -> float:
    """Train with the Trainer of transformers: random batches, padded to their longest."""
    vocabulary = directory / "vocab.txt"
    vocabulary.write_text("\n".join(ALPHABET.tokens))
    tokenizer = transformers.EsmTokenizer(str(vocabulary))
    config = transformers.EsmConfig(
        vocab_size=len(ALPHABET),
        mask_token_id=ALPHABET.index["<mask>"],
        pad_token_id=ALPHABET.index["<pad>"],
        hidden_size=CONFIG.width,
        num_hidden_layers=CONFIG.layers,
        num_attention_heads=CONFIG.heads,
        intermediate_size=4 * CONFIG.width,
        position_embedding_type="rotary",
        token_dropout=True,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    clock = Clock()

    class Timed(transformers.Trainer):
        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
            tokens = int(inputs["attention_mask"].sum())
            loss = super().training_step(model, inputs, num_items_in_batch)
            clock.stop(tokens)
            clock.start()  # the optimiser and the next batch count for the next step
            return loss

    clock.start()
    Timed(
        transformers.EsmForMaskedLM(config),
        transformers.TrainingArguments(
            output_dir=str(directory / "theirs"),
            per_device_train_batch_size=BATCH,
            max_steps=STEPS,
            learning_rate=4e-4,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
        ),
        data_collator=transformers.DataCollatorForLanguageModeling(tokenizer),
        train_dataset=[tokenizer(sequence) for sequence in sequences],
    ).train()
    return clock.speed


def pyrosys(data: DataModule, directory: Path) -> float:
    """Train with ours."""
    clock = Clock()

    class Timed(MaskedLanguageTask):
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            clock.stop(int(batch["mask"].sum()))
            clock.start()

    clock.start()
    Trainer(directory / "ours", STEPS, accelerator="cpu").fit(Timed(ESM(CONFIG)), data)
    return clock.speed


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
