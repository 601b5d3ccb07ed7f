"""Writes docs/MODELS.md from the tables of the core and the converter.

    python docs/make_models.py

tests/python/test_house.py fails when the file is not what this would write.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from converters._families import FAMILIES, WRAPPERS  # noqa: E402

_HEAD = """# Models

Written by `docs/make_models.py` from `native/src/model/pe_arch_*.c` and
`converters/_families.py`.

Every architecture below runs from GGUF files, ours and llama.cpp's; every class of the third
column converts. Each is checked with tiny random checkpoints that transformers' own class makes,
with biases, windows, caps and scalings that matter in them: logits at every position of a text
longer than any window, as one prefill and token by token, within 1e-4
(`tests/reference/test_transformers.py`), and the same file in llama.cpp
(`tests/reference/test_llama_cpp.py`, which lists what llama.cpp does not do). The last column
names the goldens that need no torch (`tests/python/test_families.py`, `test_goldens.py`).

| architecture | models | converts | golden |
| --- | --- | --- | --- |
"""

_TAIL = """
Rotations: neighbouring pairs or halves, all of a head or part of it; unscaled, linear, llama3,
YaRN, LongRoPE. LongRoPE's factors for long contexts are taken when the engine is opened for more
positions than the model was first trained on (`n_ctx`), for all of them: transformers changes
over in the middle of a text, and its cache then holds both kinds.

Windows: any list of windowed layers. Pages before a window are skipped but kept.

Layers of different sizes: heads and feed-forward widths may differ from layer to layer, and head
widths between layers with a window and those without. Layers that attend to an earlier layer's
keys and values take no room in pages, and in them a prompt's tokens whose logits nobody wants are
not computed. Of Gemma 4's per-layer embeddings a token reads one row of the file's mapping.

Experts: softmax over the chosen ones or over all, biases, a clamped gate, an expert that sees
every token. In a decode step only the chosen experts' bytes are read.

What is not supported is refused, at convert or at open, with a message that names it: recurrent
and hybrid layers, multi-head latent attention, Gemma's bidirectional attention, dense layers
among experts, images.
"""


def _models(architecture: str) -> str:
    """The first sentence of the head comment of the architecture's file."""
    name = architecture.replace("-", "_")
    source = (ROOT / f"native/src/model/pe_arch_{name}.c").read_text("utf-8")
    comment = re.match(r"/\* (.*?)\*/", source, re.DOTALL)
    assert comment is not None, source
    words = " ".join(comment[1].replace("\n *", " ").split())
    return re.split(r"\. |\.$", words)[0]


def _architectures() -> list[str]:
    names = re.findall(r"&pe_arch_(\w+)", (ROOT / "native/src/model/pe_arch.c").read_text("utf-8"))
    files = (ROOT / f"native/src/model/pe_arch_{name}.c" for name in names)
    found = (re.search(r'\.name = "([^"]+)"', file.read_text("utf-8")) for file in files)
    return sorted(match[1] for match in found if match is not None)


def _goldens() -> dict[str, list[str]]:
    """Architecture to goldens."""
    out: dict[str, list[str]] = {}
    for path in sorted((ROOT / "tests/golden").rglob("config.json")):
        (name,) = json.loads(path.read_text("utf-8"))["architectures"]
        out.setdefault(FAMILIES[name].architecture, []).append(path.parent.name)
    return out


def text() -> str:
    """The whole file."""
    goldens = _goldens()
    lines = []
    for architecture in _architectures():
        names = [name for name, f in FAMILIES.items() if f.architecture == architecture]
        wrappers = [name for name, inner in WRAPPERS.items() if inner[0] in names]
        converts = ", ".join(f"`{name}`" for name in names + wrappers)
        checked = ", ".join(goldens.get(architecture, ["none"]))
        lines.append(f"| `{architecture}` | {_models(architecture)} | {converts} | {checked} |")
    return _HEAD + "\n".join(lines) + "\n" + _TAIL


if __name__ == "__main__":
    (ROOT / "docs/MODELS.md").write_text(text(), "utf-8")
