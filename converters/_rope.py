"""Rotary embeddings: config.json's settings, in the old spelling or the new, as GGUF has them."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from converters._config import Config
from converters._family import Family
from converters._gguf_writer import Field, Kind, Scalar
from converters._source import Floats

FACTORS = "rope_freqs.weight"
LONG_FACTORS = "rope_factors_long.weight"
SHORT_FACTORS = "rope_factors_short.weight"

# What readers expect frequencies to be divided by where nothing turns.
_NEVER = 1e30

_GLOBAL, _LOCAL = "full_attention", "sliding_attention"
# Other names of a kind.
_SPELLINGS = {"su": "longrope"}
# Architectures in which a part of a head may be rotated.
_PARTIAL = ("phi3", "qwen35", "qwen35moe", "qwen3next")


class Rope:
    """The checked settings.

    Attributes:
        dims: Dimensions of a head that are rotated.
        local_dims: Those of windowed layers, 0 where they are the same.
        tensors: What belongs beside the weights, by GGUF's name.
    """

    def __init__(
        self, config: Config, family: Family, head_width: int, local_head_width: int = 0
    ) -> None:
        """Reads them.

        Args:
            config: config.json.
            family: The model's.
            head_width: Dimensions of a head.
            local_head_width: Those of windowed layers where they may differ.

        Raises:
            ConversionError: A value is missing or out of range, or a kind is unsupported.
        """
        self._family = family
        self._context = config.integer("max_position_embeddings")
        self.tensors: dict[str, Floats] = {}
        self.local_dims = local_head_width
        self._scaling: list[Field] = []
        both = config.section("rope_parameters") or config.section("rope_scaling")
        rope, local = self._split(both)
        self._nested = rope is not both
        self.base = config.number("rope_theta", 10000.0)
        self.local_base = 0.0
        if family.local_rope:
            self.local_base = config.number("rope_local_base_freq", self.base)
        if local is not None:
            self.local_base = local.number("rope_theta", self.local_base)
            if local.text("rope_type", "default") != "default":
                raise local.fail("rope_type", "'default' in windowed layers")
        factor = config.number("partial_rotary_factor", 1.0)
        if rope is None and "proportional" in family.rope_kinds:
            raise config.fail("rope_parameters", f"settings of {_GLOBAL} and {_LOCAL}")
        if rope is not None:
            self.base = rope.number("rope_theta", self.base)
            factor = rope.number("partial_rotary_factor", factor)
        # Then all are, some of them by nothing.
        proportional = rope is not None and rope.values.get("rope_type") == "proportional"
        self._proportion = factor
        self.dims = head_width if proportional else int(head_width * factor)
        if (
            factor != 1.0
            and not proportional
            and (family.architecture not in _PARTIAL or factor > 1.0 or self.dims % 2)
        ):
            raise (rope or config).fail("partial_rotary_factor", "1.0")
        self._sections = self._read_sections(rope)
        if rope is not None:
            self._original = self._original_context(config, rope)
            self._read_kind(rope)
            self._read_temperature(rope)

    def fields(self) -> Iterator[Field]:
        """The metadata but for the base, without the architecture's name."""
        yield Field("rope.dimension_count", "u32", self.dims)
        if self.local_dims:
            yield Field("rope.dimension_count_swa", "u32", self.local_dims)
        if self.local_base:
            yield Field("rope.freq_base_swa", "f32", self.local_base)
        if self._sections:
            yield Field("rope.dimension_sections", "i32", self._sections)
        yield from self._scaling

    def _read_sections(self, rope: Config | None) -> list[int]:
        """How many pairs belong to time, height and width, which are equal in a text; then 0.

        Readers deal pair i, counted within the sum, to section i % 3 and leave pairs that a
        section has no room for unrotated, which transformers does not.
        """
        if not self._family.rope_sections:
            return []
        sections: object = list(self._family.rope_sections)
        if rope is not None and rope.values.get("mrope_section") is not None:
            sections = rope.values["mrope_section"]
        if (
            not isinstance(sections, list)
            or len(sections) != 3
            or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in sections)
            or any(i // 3 >= sections[i % 3] for i in range(min(self.dims // 2, sum(sections))))
        ):
            raise (rope or Config({}, "rope_parameters")).fail(
                "mrope_section", f"three numbers that share out {self.dims // 2} pairs in turn"
            )
        # Of a narrow head, those that are left.
        return [*(min(n, (self.dims // 2 + 2 - k) // 3) for k, n in enumerate(sections)), 0]

    def _split(self, both: Config | None) -> tuple[Config | None, Config | None]:
        """The settings of layers without a window, and of those with one."""
        if both is None:
            return None, None
        nested = next((k for k, v in both.values.items() if isinstance(v, dict)), None)
        if nested is None:
            return both, None
        if not self._family.local_rope:
            raise both.fail(nested, "one setting for all layers")
        strange = sorted(both.values.keys() - {_GLOBAL, _LOCAL})
        if strange:
            raise both.fail(strange[0], f"settings of {_GLOBAL} and {_LOCAL} only")
        return both.section(_GLOBAL), both.section(_LOCAL)

    def _original_context(self, config: Config, rope: Config) -> int:
        """Positions before any stretching; a value outside the settings goes first."""
        stated = config.values.get("original_max_position_embeddings")
        source = rope if stated is None else config
        return source.integer("original_max_position_embeddings", self._context)

    def _read_kind(self, rope: Config) -> None:
        key = "rope_type" if rope.values.get("rope_type") is not None else "type"
        kind = rope.text(key, "default")
        kind = _SPELLINGS.get(kind, kind)
        # Phi 3's older files call LongRoPE by YaRN's name.
        if kind == "yarn" and "yarn" not in self._family.rope_kinds:
            kind = "longrope"
        known = self._family.rope_kinds
        if kind not in known:
            raise rope.fail(key, f"{', '.join(map(repr, known[:-1]))} or {known[-1]!r}")
        if kind == "linear":
            self._put("type", "str", "linear")
            self._put("factor", "f32", rope.number("factor"))
        elif kind == "llama3":
            self.tensors[FACTORS] = self._llama3_factors(rope)
        elif "proportional" in known:
            self.tensors[FACTORS] = self._proportional_factors(rope, kind == "proportional")
        elif kind == "yarn":
            self._read_yarn(rope)
        elif kind == "longrope":
            self._read_longrope(rope)

    def _put(self, key: str, kind: Kind, value: Scalar) -> None:
        self._scaling.append(Field(f"rope.scaling.{key}", kind, value))

    def _read_temperature(self, rope: Config) -> None:
        """How queries grow with their position, counted in original contexts."""
        if rope.values.get("llama_4_scaling_beta") is None:
            return
        if self._family.architecture != "mistral3":
            raise rope.fail("llama_4_scaling_beta", "no growth of queries with their position")
        beta = rope.number("llama_4_scaling_beta")
        if not any(field.key.endswith(".original_context_length") for field in self._scaling):
            self._put("original_context_length", "u32", self._original)
        self._scaling.append(Field("attention.temperature_scale", "f32", beta))

    def _read_yarn(self, rope: Config) -> None:
        factor = rope.number("factor")
        # What a reader multiplies cosines and sines by when nothing else is said.
        implied = _yarn_gain(factor, 1.0)
        one, all_dims = (rope.values.get(k) for k in ("mscale", "mscale_all_dim"))
        gain = implied
        if one and all_dims:
            gain = _yarn_gain(factor, rope.number("mscale"))
            gain /= _yarn_gain(factor, rope.number("mscale_all_dim"))
        gain = rope.number("attention_factor", gain)
        if self._family.latent and all_dims and factor > 1.0:
            implied = 1.0
            self._put_score_gain(rope, factor, gain)
        self._put("type", "str", "yarn")
        self._put("factor", "f32", factor)
        self._put("original_context_length", "u32", self._original)
        self._put("yarn_beta_fast", "f32", rope.number("beta_fast", 32.0))
        self._put("yarn_beta_slow", "f32", rope.number("beta_slow", 1.0))
        if self._family.architecture == "mistral3" and all_dims:
            multiplier = rope.number("mscale_all_dim")
            implied /= _yarn_gain(factor, multiplier)
            self._put("yarn_log_multiplier", "f32", multiplier)
        if not math.isclose(gain, implied, rel_tol=1e-9):
            self._put("attn_factor", "f32", gain / implied)
        # transformers looks for it beside the settings of both kinds of layers, not inside.
        truncates = rope.flag("truncate", True) or self._nested
        if truncates != (self._family.architecture != "gpt-oss"):
            self._put("yarn_truncate", "bool", truncates)

    def _put_score_gain(self, rope: Config, factor: float, gain: float) -> None:
        """What scores of latent attention are multiplied by: the square of a gain of their own.

        Readers take (gain (1 + multiplier ln(factor)))^2, where gain is that of cosines.
        """
        wanted = _yarn_gain(factor, rope.number("mscale_all_dim"))
        multiplier = (wanted / gain - 1) / math.log(factor)
        if multiplier <= 0:
            raise rope.fail("mscale_all_dim", f"more than what multiplies cosines, {gain:g}")
        self._put("yarn_log_multiplier", "f32", multiplier)

    def _read_longrope(self, rope: Config) -> None:
        factor = rope.number("factor", self._context / self._original)
        gain = 1.0
        if factor > 1.0:
            gain = math.sqrt(1 + math.log(factor) / math.log(self._original))
        for key, name in (("long_factor", LONG_FACTORS), ("short_factor", SHORT_FACTORS)):
            values = rope.values.get(key)
            if (
                not isinstance(values, list)
                or len(values) != self.dims // 2
                or not all(
                    isinstance(v, int | float) and not isinstance(v, bool) and v > 0 for v in values
                )
            ):
                raise rope.fail(key, f"{self.dims // 2} positive numbers")
            self.tensors[name] = np.array(values, dtype=np.float32)
        self._put("type", "str", "longrope")
        self._put("attn_factor", "f32", rope.number("attention_factor", gain))
        self._put("original_context_length", "u32", self._original)

    def _proportional_factors(self, rope: Config, some: bool) -> Floats:
        """Pairs that are rotated, then those that turn by nothing in any context."""
        if not some:
            return np.ones(self.dims // 2, dtype=np.float32)
        rotated = int(self._proportion * self.dims // 2)
        if not 0 < rotated <= self.dims // 2:
            raise rope.fail("partial_rotary_factor", "a part of the head, one pair or more")
        factors = np.full(self.dims // 2, _NEVER, dtype=np.float32)
        factors[:rotated] = rope.number("factor", 1.0)
        return factors

    def _llama3_factors(self, rope: Config) -> Floats:
        """What each rotation frequency is divided by under Llama 3's long-context scaling.

        Wavelengths (tokens per turn) above one bound are stretched by `factor`, those below
        another are kept, and between the two the frequency is interpolated.
        """
        factor, low, high = (
            rope.number(key) for key in ("factor", "low_freq_factor", "high_freq_factor")
        )
        trained = rope.integer("original_max_position_embeddings")
        if low >= high:
            raise rope.fail("low_freq_factor", f"less than high_freq_factor {high:g}")
        wavelength = 2 * np.pi * self.base ** (np.arange(0, self.dims, 2) / self.dims)
        kept = (trained / wavelength - low) / (high - low)
        between = 1 / ((1 - kept) / factor + kept)
        factors = np.where(
            wavelength < trained / high,
            1.0,
            np.where(wavelength > trained / low, factor, between),
        )
        return factors.astype(np.float32)


def _yarn_gain(factor: float, multiplier: float) -> float:
    return 1.0 if factor <= 1.0 else 0.1 * multiplier * math.log(factor) + 1.0
