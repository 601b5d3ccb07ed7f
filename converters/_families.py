"""The model families that can be converted, as data.

The conventions (key and tensor names, which rows are permuted, what is folded into weights) are
those that existing GGUF readers expect of each architecture. Defaults are those that transformers
takes for what config.json leaves out.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from converters._families_delta import DELTA
from converters._families_dense import DENSE
from converters._families_experts import EXPERTS
from converters._families_latent import LATENT
from converters._families_layered import LAYERED
from converters._families_recurrent import RECURRENT
from converters._family import Family

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {**DENSE, **EXPERTS, **LAYERED, **LATENT, **RECURRENT, **DELTA}
)

# Checkpoints that also see, named by what they wrap: the text model's settings lie in
# text_config, its tensors behind a prefix, and the rest is left out. So are layers that guess
# further tokens ("mtp.").
WRAPPERS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "Gemma3ForConditionalGeneration": ("Gemma3ForCausalLM",),
        "Mistral3ForConditionalGeneration": ("Ministral3ForCausalLM", "MistralForCausalLM"),
        "Gemma4ForConditionalGeneration": ("Gemma4ForCausalLM",),
        "Gemma4UnifiedForConditionalGeneration": ("Gemma4UnifiedForCausalLM",),
        "Qwen3_5ForConditionalGeneration": ("Qwen3_5ForCausalLM",),
        "Qwen3_5MoeForConditionalGeneration": ("Qwen3_5MoeForCausalLM",),
    }
)
TEXT_PREFIXES = ("model.language_model.", "language_model.model.", "language_model.")
LEFT_OUT_PREFIXES = (
    "vision_tower.",
    "multi_modal_projector.",
    "model.vision_tower.",
    "model.multi_modal_projector.",
    "model.embed_vision.",
    "model.audio_tower.",
    "model.embed_audio.",
    "model.visual.",
    "mtp.",
)
