"""How byte-level BPE tokenizers cut text into words, by the name that GGUF files give the rule.

A rule is a list of regular expressions. Each one cuts every piece left by those before it: its
matches become pieces, and so does what lies between them. The expressions are those of the
published ``tokenizer.json`` files where they are known, else those that llama.cpp states
(``src/llama-vocab.cpp``, which also assigns the names); they run on Oniguruma.

Names that need more than such a list (``afmoe``, ``superbpe``, ``chameleon``) or belong to
embedding models with a separator token are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

# Cased letters as DeepSeek LLM's tokenizer.json spells them out.
_CASED = (
    "A-Za-z\xb5\xc0-\xd6\xd8-\xf6\xf8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af"
    "\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1"
    "\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5"
    "\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a"
    "\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d"
    "\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3"
    "\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115"
    "\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149"
    "\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d"
    "\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06"
    "\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3"
    "\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df"
    "\U0001e900-\U0001e943"
)
_CJK_HANGUL = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"

_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"

_DIGIT = r"\p{N}"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_SYMBOLS}|{_SPACES}"
_QWEN2 = rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_SYMBOLS}|{_SPACES}"
_QWEN35 = (
    rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
)
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTION}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTION}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
_DEEPSEEK3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
    rf"|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}"
)
_BAILING = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)
_SEED = (
    rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1}}"
    rf"| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}"
)
_EXAONE_MOE = (
    rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
)
_MINICPM5 = rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}+|{_SYMBOLS}|{_SPACES}"
_JAIS2_SPACES = "|".join(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4))
_JAIS2 = (
    rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_SYMBOLS}"
    rf"|\s*[\r\n]+|{_JAIS2_SPACES}|\s{{1,2}}(?!\S)|\s{{1}}"
)
_UFAKZEKA = rf"[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_SYMBOLS}|{_SPACES}"
_UPPER_NOT_HAN = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_LOWER_NOT_HAN = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_KIMI = (
    rf"[\p{{Han}}]+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER_NOT_HAN}*{_LOWER_NOT_HAN}+{_CONTRACTION}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER_NOT_HAN}+{_LOWER_NOT_HAN}*{_CONTRACTION}?"
    rf"|\p{{N}}{{1,3}}|{_SYMBOLS}|{_SPACES}"
)
_YOUTU_LETTERS = (
    "[\uac00-\ud7a3\u3131-\u318e]+|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c"
    "\u3001-\u303f\ufe30-\ufe4f]+|[\u3105-\u312f]+|[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
)
_YOUTU = _GPT4O.replace(r"\p{N}{1,3}", r"\p{N}")
_WORDS = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """One rule and the defaults that come with its name.

    Attributes:
        patterns: The regular expressions, in the order in which they cut.
        ignore_merges: A word that is a token as a whole is never merged from parts.
        add_bos: What ``tokenizer.ggml.add_bos_token`` means when the file lacks it.
    """

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False


# The first name of a group is the one that ``identify`` gives; the first group that fits wins.
_GROUPS: tuple[tuple[str, PreTokenizer], ...] = (
    (
        "gpt-2 phi-2 mpt olmo jais trillion granite-docling exaone4 gigachat mellum a.x-4.0"
        " modern-bert jina-es jina-de jina-v2-es jina-v2-de",
        PreTokenizer((_GPT2,)),
    ),
    (
        "starcoder refact command-r smollm codeshell exaone minerva-7b mellum2",
        PreTokenizer((_DIGIT, _GPT2)),
    ),
    (
        "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
        PreTokenizer((_LLAMA3,), ignore_merges=True, add_bos=True),
    ),
    ("dbrx smaug-bpe glm4 chatglm-bpe", PreTokenizer((_LLAMA3,))),
    (
        "qwen2 deepseek-r1-qwen megrez stablelm2 hunyuan solar-open grok-2 kormo f2llmv2",
        PreTokenizer((_QWEN2,)),
    ),
    ("glm5", PreTokenizer((_LLAMA3,), ignore_merges=True)),
    ("jais-2", PreTokenizer((_JAIS2,))),
    ("ufakzeka", PreTokenizer((_UFAKZEKA,))),
    ("kimi-k2", PreTokenizer((_KIMI,))),
    ("youtu", PreTokenizer((_YOUTU_LETTERS, _YOUTU), ignore_merges=True)),
    ("laguna", PreTokenizer((r"[^\n]+|[\n]+", _QWEN2))),
    ("qwen35", PreTokenizer((_QWEN35,))),
    ("gpt-4o llama4 kanana2 minimax-m2 talkie", PreTokenizer((_GPT4O,))),
    ("tekken", PreTokenizer((_TEKKEN,), ignore_merges=True, add_bos=True)),
    (
        "deepseek-llm",
        PreTokenizer(
            (
                r"[\r\n]",
                rf"\s?[{_CASED}]+",
                "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
                r"\s+$",
                _CJK_HANGUL,
                r"\p{N}+",
            )
        ),
    ),
    (
        "deepseek-coder",
        PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK_HANGUL, _DIGIT)),
    ),
    (
        "deepseek-v3 hunyuan-dense joyai-llm hy_v4",
        PreTokenizer((r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+", _DEEPSEEK3)),
    ),
    ("falcon", PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]"))),
    ("bailingmoe bailingmoe2 llada-moe", PreTokenizer((_BAILING,))),
    ("seed-coder", PreTokenizer((_SEED,))),
    ("exaone-moe", PreTokenizer((_EXAONE_MOE,))),
    ("minicpm5", PreTokenizer((r"\p{N}{1,3}", _MINICPM5), ignore_merges=True)),
    ("tiny_aya cohere2moe", PreTokenizer((r"\d{1,3}(?=(?:\d{3})*\b)", _GPT4O))),
    ("bloom gpt3-finnish poro-chat", PreTokenizer((_WORDS,))),
    ("viking", PreTokenizer((_WORDS, _DIGIT))),
    # What llama.cpp uses for a file without a name; no published tokenizer has this rule.
    (
        "default",
        PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
    ),
)

PRE_TOKENIZERS: Mapping[str, PreTokenizer] = MappingProxyType(
    {name: rule for names, rule in _GROUPS for name in names.split()}
)
"""Every known value of ``tokenizer.ggml.pre``."""

# Names that llama.cpp gives to vocabularies whose published tokenizers (transformers' classes
# for Qwen 2 to 3, Qwen 3.5 and Command R) compose letters and accents first. Others are left out
# where the name stands for a rule that tokenizers with and without composition share.
NFC_NAMES = frozenset({"qwen2", "qwen35", "command-r"})


def composes(tokenizer_json: Mapping[str, Any]) -> bool | None:
    """Whether a ``tokenizer.json`` brings text to Unicode's form NFC first.

    Returns:
        True or False, or None where it changes text in another way.
    """
    return _composes(tokenizer_json.get("normalizer"))


def _composes(normalizer: object) -> bool | None:
    if normalizer is None:
        return False
    if not isinstance(normalizer, Mapping):
        return None
    if normalizer.get("type") == "NFC":
        return True
    steps = normalizer.get("normalizers")
    if normalizer.get("type") != "Sequence" or not isinstance(steps, list):
        return None
    # One level deep is all that is published.
    kinds = [step.get("type") if isinstance(step, Mapping) else None for step in steps]
    return bool(kinds) if all(kind == "NFC" for kind in kinds) else None


def identify(tokenizer_json: Mapping[str, Any]) -> str | None:
    """Names the rule that a Hugging Face ``tokenizer.json`` uses.

    Two spellings of one rule are the same: ``Digits`` and the expression it stands for, or
    ``Isolated`` and an inverted ``Removed`` whose expression matches every character. Several
    GGUF names share a rule; the first of its group is given, so a Qwen file of a derived model
    is ``qwen2``.

    Whether text is composed first (``composes``) is no part of the rule; a tokenizer with any
    other normalizer is not identified.

    Args:
        tokenizer_json: The parsed file.

    Returns:
        A key of ``PRE_TOKENIZERS``, or None when no rule equals that of the file.
    """
    model = tokenizer_json.get("model")
    if not isinstance(model, Mapping) or model.get("type") != "BPE":
        return None
    if composes(tokenizer_json) is None:
        return None
    stages = _stages(tokenizer_json.get("pre_tokenizer"))
    if stages is None or sum(stage is None for stage in stages) != 1:
        return None
    found = tuple(_escaped(stage) for stage in stages if stage is not None)
    ignore_merges = bool(model.get("ignore_merges", False))
    for name, rule in PRE_TOKENIZERS.items():
        known = tuple(_escaped(pattern) for pattern in rule.patterns)
        if name != "default" and (known, rule.ignore_merges) == (found, ignore_merges):
            return name
    return None


def _stages(node: object) -> list[str | None] | None:
    """The expressions of a ``pre_tokenizer`` node, None among them where bytes are mapped.

    Returns None for a node that no list of expressions can stand for.
    """
    if not isinstance(node, Mapping):
        return None
    kind = node.get("type")
    if kind == "Sequence":
        stages: list[str | None] = []
        for child in node.get("pretokenizers", ()):
            inner = _stages(child)
            # After the byte mapping, expressions would see other characters than the text's.
            if inner is None or None in stages:
                return None
            stages += inner
        return stages
    if kind == "ByteLevel" and not node.get("add_prefix_space", True):
        return [_GPT2, None] if node.get("use_regex", True) else [None]
    if kind == "Digits":
        return [_DIGIT if node.get("individual_digits") else r"\p{N}+"]
    if kind == "Split":
        pattern = node.get("pattern")
        regex = pattern.get("Regex") if isinstance(pattern, Mapping) else None
        behavior, invert = node.get("behavior"), bool(node.get("invert"))
        isolated = behavior == "Isolated" and not invert
        if isinstance(regex, str):
            isolated |= behavior == "Removed" and invert and regex.endswith(r"|\s+")
            return [regex] if isolated else None
    return None


def _escaped(pattern: str) -> str:
    """Spells line ends alike, which some files write raw and some as escapes."""
    return pattern.replace("\r", r"\r").replace("\n", r"\n")
