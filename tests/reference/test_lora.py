"""Adapters against the model that transformers runs with W + scale B A in W's place.

The adapters are written here as PEFT saves them; the sums are torch's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints
import llama_cpp
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_llama_cpp import logits, opened

import converters
from pyengine import Engine

Tiny = Callable[[str], tuple[Path, Path]]
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
ALL = (*ATTENTION, "gate_proj", "up_proj", "down_proj")

# Variant, target modules, and what adapter_config.json says beyond the plainest.
CASES: dict[str, tuple[str, tuple[str, ...], dict[str, Any]]] = {
    "plain": ("grouped", ALL, {}),
    "rslora": ("qwen2", ALL, {"use_rslora": True, "lora_alpha": 4}),
    "biases beside": ("biases", ATTENTION, {"lora_alpha": 3}),
    "patterns": (
        "wider heads",
        ALL,
        {
            "rank_pattern": {"q_proj": 2, "layers.1.self_attn.k_proj": 7, ".*down_proj": 3},
            "alpha_pattern": {"^model.layers.0.self_attn.q_proj": 5.0, "v_proj": 40},
        },
    ),
    "patterns and rslora": (
        "mistral",
        ("k_proj", "o_proj"),
        {"use_rslora": True, "rank_pattern": {"k_proj": 9}, "alpha_pattern": {"o_proj": 2}},
    ),
    "fused": ("phi3", ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"), {}),
    "head and embedding": ("untied", ("lm_head", "embed_tokens", "q_proj"), {}),
    "normed heads": ("qwen3", ALL, {"r": 1}),
    "gemma": ("gemma3", ALL, {}),
    "parts of a tensor": ("granitemoeshared", ("q_proj", "input_linear", "output_linear"), {}),
}


def scale_and_rank(config: dict[str, Any], module: str) -> tuple[float, int]:
    """By hand: which pattern means which module is spelled out."""
    last = module.rpartition(".")[2]
    ranks = {"q_proj": 2, "down_proj": 3} if ".*down_proj" in config["rank_pattern"] else {}
    rank = ranks.get(last, config["rank_pattern"].get(last, config["r"]))
    if module == "model.layers.1.self_attn.k_proj" and config["rank_pattern"].get(module[6:]):
        rank = 7
    alpha = config["alpha_pattern"].get(last, config["lora_alpha"])
    alpha = config["alpha_pattern"].get("^" + module, alpha)
    return alpha / (math.sqrt(rank) if config["use_rslora"] else rank), rank


def make_adapter(folder: Path, model: Any, targets: tuple[str, ...], more: dict[str, Any]) -> None:
    """Writes the adapter and merges it into the model."""
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 16,
        "use_rslora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "target_modules": list(targets),
        "modules_to_save": None,
        **more,
    }
    generator = torch.Generator().manual_seed(5)
    saved: dict[str, torch.Tensor] = {}
    for module, part in model.named_modules():
        if module.rpartition(".")[2] not in targets or part.weight.ndim != 2:
            continue
        scale, rank = scale_and_rank(config, module)
        rows, columns = part.weight.shape
        embedding = isinstance(part, torch.nn.Embedding)
        if embedding:
            rows, columns = columns, rows
        a = torch.randn(rank, columns, generator=generator) / columns**0.5
        b = torch.randn(rows, rank, generator=generator) * 0.3
        names = ("lora_embedding_A", "lora_embedding_B")
        if not embedding:
            names = ("lora_A.weight", "lora_B.weight")
        for name, half in zip(names, (a, b), strict=True):
            saved[f"base_model.model.{module}.{name}"] = half.contiguous()
        delta = scale * (b @ a)
        with torch.no_grad():
            part.weight += delta.T if embedding else delta
    assert saved
    folder.mkdir()
    save_file(saved, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_there_beside_the_base_and_here_merged(
    tiny: Tiny, tmp_path: Path, case: str
) -> None:
    variant, targets, more = CASES[case]
    source, base = tiny(variant)
    model = checkpoints.load(source)
    with Engine(base) as engine:
        tokens = engine.tokenize(checkpoints.TEXT, add_special=False)[:100]
        before = engine.logits(tokens)
    adapter = tmp_path / "adapter"
    make_adapter(adapter, model, targets, more)
    expected = checkpoints.reference_logits(model, tokens).numpy()
    assert np.abs(expected - before).max() > 0.3

    merged = tmp_path / "merged.gguf"
    converters.convert(source, merged, dtype="f32", lora=adapter)
    with Engine(merged) as engine:
        np.testing.assert_allclose(engine.logits(tokens), expected, rtol=0, atol=1e-4)

    out = tmp_path / "adapter.gguf"
    converters.convert_adapter(adapter, out, base=source)
    wide = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}
    with opened(base, lora_path=str(out), **wide) as there:
        found = logits(there, tokens)
    # Its GELU is a table of 16-bit floats.
    bound = 1e-2 if variant.startswith("gemma") else 1e-3
    np.testing.assert_allclose(found, expected, rtol=0, atol=bound)


def test_whole_tensors_are_merged(tiny: Tiny, tmp_path: Path) -> None:
    source, _ = tiny("qwen2 window")
    model = checkpoints.load(source)
    adapter = tmp_path / "adapter"
    more = {"bias": "lora_only", "modules_to_save": ["lm_head", "norm"]}
    make_adapter(adapter, model, ("q_proj", "v_proj"), more)
    path = adapter / "adapter_model.safetensors"
    from safetensors.torch import load_file

    saved = load_file(path)
    generator = torch.Generator().manual_seed(6)
    whole = ["lm_head.weight", "model.norm.weight"]
    whole += [n for n, _ in model.named_parameters() if n.endswith(("q_proj.bias", "v_proj.bias"))]
    with torch.no_grad():
        for name in whole:
            weight = model.get_parameter(name)
            weight += 0.1 * torch.randn(weight.shape, generator=generator)
            saved[f"base_model.model.{name}"] = weight.detach().clone()
    save_file(saved, path)
    merged = tmp_path / "merged.gguf"
    converters.convert(source, merged, dtype="f32", lora=adapter)
    with Engine(merged) as engine:
        tokens = engine.tokenize(checkpoints.TEXT, add_special=False)[:100]
        expected = checkpoints.reference_logits(model, tokens).numpy()
        np.testing.assert_allclose(engine.logits(tokens), expected, rtol=0, atol=1e-4)
