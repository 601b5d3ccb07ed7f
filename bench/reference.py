"""How far logits are from transformers' in float32, for each tensor type, and why.

    python bench/reference.py CHECKPOINT_DIR TEXT_FILE

Needs torch and transformers beside pyengine (`make test-reference` sets up such a
place). Converts the checkpoint to each type and compares 512 positions: with the float
model, and with the same model holding the rounded weights. The latter leaves what the
engine adds: activations in 8 bits beside quantized weights, keys and values in F16.
"""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from transformers import AutoModelForCausalLM

import converters
import pyengine

N_POSITIONS = 512


def rounded(model: Any, dtype: str) -> Any:
    """A copy of the model whose matrices went through a tensor type and back."""
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for name, weight in copied.named_parameters():
            if weight.ndim == 2:
                # The converter keeps the embedding, here also the head, at 8 bits.
                kept = "embed" in name or "lm_head" in name
                kind = "q8_0" if kept and dtype.startswith("q4") else dtype
                packed = pyengine.quantize(weight.numpy(), kind)
                weight.copy_(torch.from_numpy(pyengine.dequantize(packed, kind)))
    return copied


def logits_of(model: Any, ids: list[int]) -> np.ndarray:
    """The reference's logits, [len(ids), n_vocab]."""
    with torch.no_grad():
        return np.asarray(model(torch.tensor([ids])).logits[0])


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("text", type=click.Path(path_type=Path))
def main(checkpoint: Path, text: Path) -> None:
    """Prints the largest and the mean difference, and how often the first token agrees."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    with tempfile.TemporaryDirectory() as folder:
        for dtype in ("f32", "f16", "bf16", "q8_0", "q4_1", "q4_0"):
            path = Path(folder) / f"{dtype}.gguf"
            converters.convert(checkpoint, path, dtype=dtype)
            with pyengine.Engine(path) as engine:
                ids = engine.tokenize(text.read_text("utf-8"))[:N_POSITIONS]
                found = engine.logits(ids)
            float_model = logits_of(model, ids)
            rounded_model = logits_of(rounded(model, dtype), ids)
            for name, expected in (("float", float_model), ("rounded", rounded_model)):
                error = np.abs(found - expected)
                same = (found.argmax(1) == expected.argmax(1)).mean()
                click.echo(
                    f"{dtype:<5} from the {name:<7} model: largest {error.max():9.2e}   "
                    f"mean {error.mean():9.2e}   first token the same {same:6.1%}"
                )


if __name__ == "__main__":
    main()
