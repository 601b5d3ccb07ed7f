"""Special token ids, what is added around a prompt, and the chat template.

Sources, first match wins: the token named in tokenizer_config.json looked up among
tokenizer.json's added tokens; config.json; generation_config.json; the named token looked up in
the whole vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import ascii_letters, digits
from typing import Any

from converters._gguf_writer import Field
from converters._json import read_object, read_optional

# GGUF's key of each token; the spelling of the separator's is GGUF's own.
_KEYS = {
    "bos": "tokenizer.ggml.bos_token_id",
    "eos": "tokenizer.ggml.eos_token_id",
    "eot": "tokenizer.ggml.eot_token_id",
    "unk": "tokenizer.ggml.unknown_token_id",
    "sep": "tokenizer.ggml.seperator_token_id",
    "pad": "tokenizer.ggml.padding_token_id",
    "mask": "tokenizer.ggml.mask_token_id",
}


@dataclass
class SpecialTokens:
    """What was found.

    Attributes:
        names: Role ("bos") to the token's text, as tokenizer_config.json has it.
        adds: Role to whether the tokenizer adds that token around every text.
        notes: What was odd enough to tell the user.
    """

    names: dict[str, str] = field(default_factory=dict)
    adds: dict[str, bool] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def token_text(entry: object) -> str | None:
    """The text of a token that is stored as a string or as an object with `content`."""
    if isinstance(entry, dict):
        entry = entry.get("content")
    return entry if isinstance(entry, str) else None


def special_fields(
    folder: Path,
    config: dict[str, Any],
    tokenizer_json: dict[str, Any],
    tokenizer_config: dict[str, Any],
    tokens: Sequence[str],
) -> tuple[list[Field], list[str]]:
    """The metadata of special tokens and the chat template.

    Args:
        folder: The checkpoint.
        config: config.json.
        tokenizer_json: tokenizer.json, or empty.
        tokenizer_config: tokenizer_config.json, or empty.
        tokens: The vocabulary; an id outside it is left out and noted.

    Returns:
        The fields, and notes for the user.

    Raises:
        ConversionError: A JSON file is broken.
    """
    found = SpecialTokens()
    for role in _KEYS:
        name = token_text(tokenizer_config.get(f"{role}_token"))
        if name is not None:
            found.names[role] = name
    # BERT's names of what begins and ends a text.
    for role, other in (("bos", "cls"), ("eos", "sep")):
        name = token_text(tokenizer_config.get(f"{other}_token"))
        if role not in found.names and name is not None:
            found.names[role] = name
    _read_post_processor(tokenizer_json.get("post_processor"), found)
    for role in ("bos", "eos"):
        stated = tokenizer_config.get(f"add_{role}_token")
        # The post-processor is what really runs, so it wins over the flag.
        if isinstance(stated, bool) and found.adds.setdefault(role, stated) != stated:
            found.notes.append(
                f"tokenizer_config.json says add_{role}_token {stated}, but the "
                f"post-processor of tokenizer.json does otherwise; the latter is written"
            )
    ids = _ids(folder, config, tokenizer_json, tokens, found)
    fields = [Field(_KEYS[role], "u32", number) for role, number in ids.items()]
    fields += [
        Field(f"tokenizer.ggml.add_{role}_token", "bool", value)
        for role, value in found.adds.items()
    ]
    fields += _chat_template(folder, tokenizer_config)
    return fields, found.notes


def _ids(
    folder: Path,
    config: dict[str, Any],
    tokenizer_json: dict[str, Any],
    tokens: Sequence[str],
    found: SpecialTokens,
) -> dict[str, int]:
    added = {
        token["content"]: token.get("id")
        for token in _objects(tokenizer_json.get("added_tokens"))
        if isinstance(token.get("content"), str)
    }
    generation = read_optional(folder / "generation_config.json")
    index = {text: i for i, text in reversed(list(enumerate(tokens)))}
    ids: dict[str, int] = {}
    for role in _KEYS:
        name = found.names.get(role)
        candidates: list[object] = [added.get(name)] if name is not None else []
        for source in (config, generation):
            stated = source.get(f"{role}_token_id")
            if isinstance(stated, list):
                # Several ends of text; GGUF has room for one, and the first is the main one.
                continue
            candidates.append(stated)
        candidates.append(index.get(name) if name is not None else None)
        for source in (config, generation):
            stated = source.get(f"{role}_token_id")
            if isinstance(stated, list) and stated:
                candidates.append(stated[0])
        for number in candidates:
            if isinstance(number, bool) or not isinstance(number, int):
                continue
            if 0 <= number < len(tokens):
                ids[role] = number
                break
            found.notes.append(
                f"{role} token: expected an id below {len(tokens)}, found {number}; left out"
            )
    return ids


def _objects(value: object) -> Iterable[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _read_post_processor(processor: object, found: SpecialTokens) -> None:
    """Derives what is added around a text from tokenizer.json's post-processor."""
    if not isinstance(processor, dict):
        return
    for step in _objects(processor.get("processors", [processor])):
        kind = step.get("type")
        if kind == "ByteLevel":
            found.adds.setdefault("bos", False)
            found.adds.setdefault("eos", False)
        elif kind in ("RobertaProcessing", "BertProcessing"):
            found.adds.update(bos=True, eos=True)
        elif kind == "TemplateProcessing":
            _read_template(list(_objects(step.get("single"))), found)


def _read_template(single: list[dict[str, Any]], found: SpecialTokens) -> None:
    if len(single) < 2:
        return
    first, last = _special(single[0]), _special(single[-1])
    if first is not None:
        found.adds["bos"] = found.names.setdefault("bos", first) == first
        if not found.adds["bos"]:
            found.notes.append(
                f"the tokenizer puts {first!r} before a text, which is not the bos token "
                f"{found.names['bos']!r}; GGUF cannot say so"
            )
    if last is not None:
        stated = found.names.get("eos")
        if stated is not None and stated != last:
            # The template's token ends a text; the configured one then ends a turn.
            found.names.setdefault("eot", stated)
        found.names["eos"] = last
        found.adds["eos"] = True


def _special(item: dict[str, Any]) -> str | None:
    token = item.get("SpecialToken")
    name = token.get("id") if isinstance(token, dict) else None
    return name if isinstance(name, str) else None


def _chat_template(folder: Path, tokenizer_config: dict[str, Any]) -> list[Field]:
    template: object = tokenizer_config.get("chat_template")
    jinja, wrapped = folder / "chat_template.jinja", folder / "chat_template.json"
    if template is None and jinja.is_file():
        template = jinja.read_text(encoding="utf-8")
    elif template is None and wrapped.is_file():
        template = read_object(wrapped).get("chat_template")
    if isinstance(template, str):
        return [Field("tokenizer.chat_template", "str", template)]
    named: dict[str, str] = {}
    for choice in _objects(template):
        name, text = choice.get("name"), choice.get("template")
        if isinstance(name, str) and name and isinstance(text, str):
            # The name becomes part of a key.
            kept = ascii_letters + digits
            named["".join(c if c in kept else "_" for c in name)] = text
    default = named.pop("default", None)
    fields = [Field(f"tokenizer.chat_template.{name}", "str", named[name]) for name in named]
    if named:
        fields.append(Field("tokenizer.chat_templates", "str", sorted(named)))
    if default is not None:
        fields.append(Field("tokenizer.chat_template", "str", default))
    return fields
