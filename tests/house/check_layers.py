"""Fails on an include or an import against the order of layers in docs/ARCHITECTURE.md."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# What a folder of native/src may include: folders, or single headers of others.
C_LAYERS: dict[str, set[str]] = {
    "base": {"base"},
    "format": {"base", "format"},
    "kernels": {"base", "kernels", "pe_dtype.h", "pe_page.h", "pe_strip.h"},
    "kv": {"base", "format", "kv"},
    "ops": {"base", "kernels", "kv", "ops", "pe_dtype.h", "pe_page.h", "pe_strip.h"},
    "model": {"base", "format", "kernels", "kv", "ops", "model"},
    "sample": {"base"},
    "quantize": {"base", "format", "kernels", "quantize"},
    "engine": {"base", "format", "kernels", "kv", "ops", "model", "engine"},
}

# Python modules of pyengine from the bottom up; one imports only from lines above it.
PY_LAYERS: list[set[str]] = [
    {
        "_errors",
        "_ffi",
        "_bundled",
        "_pretokenizers",
        "_sandbox",
        "_statistics",
        "_text",
        "_vocabulary",
    },
    {"_arguments", "_native", "_byte_bpe", "_sentencepiece", "_template", "_word_piece"},
    {"_gemma_bpe"},
    {"_file", "_info", "_messages", "_quant", "_reply", "_sampler", "_tasks", "_tokenizer"},
    {"_self_test"},
    {"_session"},
    {"_layers"},
    {"_divergence"},
    {"_generate", "_perplexity"},
    {"_answers", "_chat", "_embed"},
    {"_engine", "_inspect"},
    {"_evaluation"},
    {"__init__"},
    {"_bench", "_cli_chat", "_cli_options", "_report"},
    {"_cli_embed", "_cli_eval"},
    {"_cli"},
    {"__main__"},
]

# Modules of pyengine that the converters use.
CONVERTERS_MAY = {"", "_errors", "_pretokenizers", "_self_test", "_vocabulary"}

# Modules of pyengine and of the converters that the quantizers use.
QUANTIZERS_MAY = {
    "pyengine": {"", "_cli_options", "_errors", "_layers", "_native", "_perplexity", "_quant"},
    "converters": {"", "_encode", "_gguf_writer", "_types"},
}


def c_violations() -> list[str]:
    """Includes of native/src that point up."""
    source = ROOT / "native" / "src"
    home = {path.name: path.relative_to(source).parts[0] for path in source.rglob("*.h")}
    found = []
    for path in sorted(source.rglob("*.[ch]")):
        layer = path.relative_to(source).parts[0]
        for name in re.findall(r'^\s*#include "([^"]+)"', path.read_text(), re.MULTILINE):
            if name == "pyengine.h" or name in C_LAYERS[layer]:
                continue
            if home.get(name) not in C_LAYERS[layer]:
                found.append(f"{path.relative_to(ROOT)}: {layer} may not include {name}")
    return found


def imports(path: Path) -> set[str]:
    """Full names of the modules that a file imports, also inside functions.

    Imports that only the type checker sees do not count.
    """
    names: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return names


def python_violations() -> list[str]:
    """Imports of pyengine, converters and quantizers that point up."""
    level = {name: i for i, layer in enumerate(PY_LAYERS) for name in layer}
    found = []
    for path in sorted((ROOT / "pyengine").glob("*.py")):
        if path.stem not in level:
            found.append(f"{path.relative_to(ROOT)}: belongs to no layer")
            continue
        for name in imports(path):
            package, _, module = name.partition(".")
            if package in ("converters", "quantizers") and path.stem != "_cli":
                found.append(f"{path.relative_to(ROOT)}: pyengine may not import {package}")
            module = module.partition(".")[0]
            if package == "pyengine" and level.get(module, -1) > level[path.stem]:
                found.append(f"{path.relative_to(ROOT)}: may not import pyengine.{module}")
            if module == "_ffi" and path.stem != "_native":
                found.append(f"{path.relative_to(ROOT)}: only _native imports _ffi")
    for path in sorted((ROOT / "converters").glob("*.py")):
        for name in imports(path):
            package, _, module = name.partition(".")
            module = module.partition(".")[0]
            if package == "pyengine" and module.startswith("_") and module not in CONVERTERS_MAY:
                found.append(f"{path.relative_to(ROOT)}: may not import pyengine.{module}")
            if package == "quantizers":
                found.append(f"{path.relative_to(ROOT)}: converters may not import quantizers")
    for path in sorted((ROOT / "quantizers").glob("*.py")):
        for name in imports(path):
            package, _, module = name.partition(".")
            module = module.partition(".")[0]
            allowed = QUANTIZERS_MAY.get(package)
            if allowed is not None and module.startswith("_") and module not in allowed:
                found.append(f"{path.relative_to(ROOT)}: may not import {package}.{module}")
    return found


if __name__ == "__main__":
    violations = c_violations() + python_violations()
    print("\n".join(violations) or "layers: in order")
    sys.exit(bool(violations))
