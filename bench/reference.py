"""How far logits are from transformers' in float32, for each tensor type.

    python bench/reference.py CHECKPOINT_DIR TEXT_FILE

Needs torch and transformers beside pyengine (`make test-reference` sets up such a
place). Converts the checkpoint to each type and compares 512 positions.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import click
import numpy as np
import torch
from transformers import AutoModelForCausalLM

import converters
import pyengine

N_POSITIONS = 512


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("text", type=click.Path(path_type=Path))
def main(checkpoint: Path, text: Path) -> None:
    """Prints the largest and the mean difference, and how often the first token agrees."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    expected: np.ndarray | None = None
    with tempfile.TemporaryDirectory() as folder:
        for dtype in ("f32", "f16", "bf16", "q8_0", "q4_1", "q4_0"):
            path = Path(folder) / f"{dtype}.gguf"
            converters.convert(checkpoint, path, dtype=dtype)
            with pyengine.Engine(path) as engine:
                ids = engine.tokenize(text.read_text("utf-8"))[:N_POSITIONS]
                found = engine.logits(ids)
            if expected is None:
                with torch.no_grad():
                    expected = model(torch.tensor([ids])).logits[0].numpy()
            error = np.abs(found - expected)
            same = (found.argmax(1) == expected.argmax(1)).mean()
            click.echo(
                f"{dtype:<5} largest {error.max():9.2e}   mean {error.mean():9.2e}   "
                f"first token the same {same:6.1%}"
            )


if __name__ == "__main__":
    main()
