"""What each way of storing keys and values costs in accuracy, against F32.

    python bench/kv_types.py [MODEL] [--stories 6]

The model writes stories of 512 tokens (fixed seeds); they are scored with each type.
"""

from __future__ import annotations

import click
import numpy as np

import pyengine

N_TOKENS = 512
TYPES = ("f32", "f16", "q8_0", "q4_0")


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Natural-log probabilities of each row, in double."""
    x = logits.astype(np.float64)
    x = x - x.max(axis=1, keepdims=True)
    return np.asarray(x - np.log(np.exp(x).sum(axis=1, keepdims=True)))


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", required=False)
@click.option("--stories", type=int, default=6, show_default=True)
def main(model: str | None, stories: int) -> None:
    """Prints logit errors, Kullback-Leibler divergence from F32 and perplexity."""
    with pyengine.Engine(model, kv_type="f32") as engine:
        start = engine.tokenize("Once upon a time")
        texts = []
        for seed in range(stories):
            sampler = pyengine.Sampler(pyengine.Sampling(temperature=1.0), seed)
            with engine.session() as session:
                ids = list(start)
                row = session.feed(ids)[-1]
                while len(ids) < min(N_TOKENS, engine.n_ctx):
                    ids.append(sampler.pick(row))
                    row = session.feed(ids[-1:])[-1]
            texts.append(ids)
        expected = [engine.logits(ids) for ids in texts]
    for kv_type in TYPES:
        errors, divergences, losses, same = [], [], [], []
        with pyengine.Engine(model, kv_type=kv_type) as engine:  # type: ignore[arg-type]
            page_bytes = engine.info.kv_page_bytes
            for ids, reference in zip(texts, expected, strict=True):
                found = engine.logits(ids)
                p, q = log_softmax(reference), log_softmax(found)
                errors.append(np.abs(found - reference))
                divergences.append((np.exp(p) * (p - q)).sum(axis=1))
                losses.append(-q[np.arange(len(ids) - 1), ids[1:]])
                same.append(found.argmax(1) == reference.argmax(1))
        click.echo(
            f"{kv_type:<5} {page_bytes / 32:7.0f} bytes per token   "
            f"logits: largest {np.max(errors):8.2e} mean {np.mean(errors):8.2e}   "
            f"KLD {np.mean(divergences):8.2e}   first token the same {np.mean(same):6.1%}   "
            f"perplexity {np.exp(np.mean(losses)):.4f}"
        )


if __name__ == "__main__":
    main()
