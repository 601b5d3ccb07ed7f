"""Writes the checkpoints and logits that tests/python/test_goldens.py compares with.

Run it in the environment of tests/reference/requirements.txt, from the repository's root:

    python tests/golden/make_goldens.py

Everything is seeded: with the same versions of torch and transformers the same files result.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "reference"))

import checkpoints  # noqa: E402

N_POSITIONS = 40
N_GREEDY = 24
GOLDENS: dict[str, tuple[dict[str, Any], torch.dtype]] = {
    "llama-grouped-tied": (checkpoints.VARIANTS["grouped"], torch.bfloat16),
    "llama3-rope-biases": (
        {
            **checkpoints.VARIANTS["llama3 rope"],
            **checkpoints.VARIANTS["biases"],
            **checkpoints.VARIANTS["wider heads"],
            "tie_word_embeddings": False,
            "hidden_size": 48,
        },
        torch.float32,
    ),
    "mistral-linear-rope": (
        {**checkpoints.VARIANTS["mistral"], **checkpoints.VARIANTS["linear rope"]},
        torch.bfloat16,
    ),
}


def main() -> None:
    """Replaces all goldens."""
    for seed, (name, (variant, dtype)) in enumerate(GOLDENS.items()):
        folder = HERE / name
        shutil.rmtree(folder, ignore_errors=True)
        checkpoints.save_checkpoint(folder, variant, seed=seed, dtype=dtype)
        (folder / "generation_config.json").unlink(missing_ok=True)
        words = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokens = words.encode(checkpoints.TEXT).ids[:N_POSITIONS]
        model = checkpoints.load(folder)
        logits = checkpoints.reference_logits(model, tokens)
        np.save(folder / "logits.npy", logits.numpy())
        greedy: list[int] = []
        smallest_lead = float("inf")
        while len(greedy) < N_GREEDY:
            row = checkpoints.reference_logits(model, tokens + greedy)[-1]
            first, second = row.topk(2).values.tolist()
            smallest_lead = min(smallest_lead, first - second)
            greedy.append(int(row.argmax()))
        expected = {"text": words.decode(tokens), "tokens": tokens, "greedy": greedy}
        (folder / "expected.json").write_text(json.dumps(expected, ensure_ascii=True) + "\n")
        size = sum(path.stat().st_size for path in folder.iterdir())
        print(f"{name}: {size} bytes, smallest lead of a greedy token {smallest_lead:.4f}")


if __name__ == "__main__":
    main()
