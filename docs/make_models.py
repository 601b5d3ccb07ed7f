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

from converters._encoders import ENCODERS  # noqa: E402
from converters._families import FAMILIES, WRAPPERS  # noqa: E402

ALL = {**FAMILIES, **ENCODERS}

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
every token; sigmoids with a bias that chooses but does not weigh, and only the best groups to
choose from, behind leading dense layers (DeepSeek). In a decode step only the chosen experts'
bytes are read.

Latent attention: a token's keys and values are stored as one latent and one rotated key for all
heads, and once: values are the last numbers of keys. With 512 + 64 numbers a layer a token costs
1152 bytes a layer in F16, 612 in Q8_0, 324 in Q4_0: DeepSeek V2 Lite (27 layers) 31 KB, 17 KB or
9 KB, where keys and values of its 16 heads would be 276 KB; GLM 4.7 Flash (47 layers) 54, 29 or
15 KB. Files whose projection out of the latent lies in one tensor (`attn_kv_b`) cost the same, but
its keys' half is unpacked for every batch. Layers that predict further tokens are left out.

Recurrent layers: a session holds a state beside its pages, and checkpoints of it; going back may
cost computing tokens again (docs/adr/0007). Linear attention by the gated delta rule goes token by
token in one order, never in chunks, so that a prompt has the bits of its tokens one by one.

Layers that predict further tokens (MTP) are left out, of checkpoints and of files.

Encoders (`bert`, `gemma-embedding`, `nomic-bert`) give vectors, not logits, as any decoder does on
request:
[EMBEDDINGS.md](EMBEDDINGS.md), `tests/reference/test_embed.py`, `tests/python/test_embed.py`.

What is not supported is refused, at convert or at open, with a message that names it: dense layers
between ones with experts, vectors of recurrent models, images.
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
        (name,) = json.loads(path.read_text("utf-8")).get("architectures", [None])
        if name is None:
            continue  # of a module beside the model
        if name not in ALL:  # without its head
            name = name.removesuffix("Model") + "ForCausalLM"
        out.setdefault(ALL[name].architecture, []).append(path.parent.name)
    return out


def text() -> str:
    """The whole file."""
    goldens = _goldens()
    lines = []
    for architecture in _architectures():
        names = [name for name, f in ALL.items() if f.architecture == architecture]
        wrappers = [name for name, inner in WRAPPERS.items() if inner[0] in names]
        converts = ", ".join(f"`{name}`" for name in names + wrappers)
        checked = ", ".join(goldens.get(architecture, ["none"]))
        lines.append(f"| `{architecture}` | {_models(architecture)} | {converts} | {checked} |")
    return _HEAD + "\n".join(lines) + "\n" + _TAIL


if __name__ == "__main__":
    (ROOT / "docs/MODELS.md").write_text(text(), "utf-8")
