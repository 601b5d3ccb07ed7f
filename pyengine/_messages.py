"""What a chat is made of: messages and tools, checked before a template sees them."""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pyengine._arguments import instance
from pyengine._errors import ArgumentError

Message = dict[str, Any]
Tool = Mapping[str, Any] | Callable[..., Any]


def checked_messages(messages: object) -> list[Message]:
    """The messages, each a dictionary with a role and something said.

    Raises:
        ArgumentError: Names the message, what was expected and what was found.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise ArgumentError(
            'messages: expected a list such as [{"role": "user", "content": "..."}], '
            f"found {type(messages).__name__}"
        )
    if not messages:
        raise ArgumentError("messages: expected 1 message or more, found none")
    return [_message(f"messages[{i}]", message) for i, message in enumerate(messages)]


def _message(where: str, message: object) -> Message:
    if not isinstance(message, Mapping):
        raise ArgumentError(
            f"{where}: expected a mapping with role and content, found {type(message).__name__}"
        )
    role, content, calls = (message.get(key) for key in ("role", "content", "tool_calls"))
    if not isinstance(role, str) or not role:
        raise ArgumentError(
            f"{where}.role: expected a name such as 'user' or 'assistant', found {role!r:.60}"
        )
    if calls is not None:
        _check_calls(f"{where}.tool_calls", calls)
    elif content is None:
        raise ArgumentError(f"{where}: expected content or tool_calls, found neither")
    if isinstance(content, list | tuple):
        for i, part in enumerate(content):
            _check_part(f"{where}.content[{i}]", part)
    elif isinstance(content, Mapping):
        if role not in ("tool", "ipython"):
            raise ArgumentError(f"{where}.content: expected text or a list, found a mapping")
    elif content is not None:
        instance(f"{where}.content", content, str, "text or a list of parts")
    return dict(message)


def _check_part(where: str, part: object) -> None:
    if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
        raise ArgumentError(
            f'{where}: expected a part such as {{"type": "text", "text": "..."}}, '
            f"found {part!r:.80}"
        )
    if part["type"] == "text" and not isinstance(part.get("text"), str):
        raise ArgumentError(f"{where}.text: expected text, found {part.get('text')!r:.60}")


def _check_calls(where: str, calls: object) -> None:
    if not isinstance(calls, list | tuple):
        raise ArgumentError(f"{where}: expected a list, found {type(calls).__name__}")
    for i, call in enumerate(calls):
        inner = call.get("function", call) if isinstance(call, Mapping) else call
        if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
            raise ArgumentError(
                f"{where}[{i}]: expected a mapping with a function's name and arguments, "
                f"found {call!r:.80}"
            )


def tool_schemas(tools: object) -> list[dict[str, Any]] | None:
    """JSON schemas of tools: mappings as they are, functions turned into one.

    Raises:
        ArgumentError: Names the tool, what was expected and what was found.
    """
    if tools is None:
        return None
    if isinstance(tools, str | bytes | Mapping) or not isinstance(tools, Sequence):
        raise ArgumentError(
            f"tools: expected a list of functions or JSON schemas, found {type(tools).__name__}"
        )
    return [_schema(f"tools[{i}]", tool) for i, tool in enumerate(tools)]


def tool_functions(schemas: Sequence[Mapping[str, Any]] | None) -> dict[str, Mapping[str, Any]]:
    """The properties of each function's parameters, by the function's name."""
    found: dict[str, Mapping[str, Any]] = {}
    for schema in schemas or ():
        function = schema.get("function", schema)
        parameters = function.get("parameters")
        properties = parameters.get("properties") if isinstance(parameters, Mapping) else None
        found[function["name"]] = properties if isinstance(properties, Mapping) else {}
    return found


def _schema(where: str, tool: object) -> dict[str, Any]:
    if isinstance(tool, Mapping):
        function = tool.get("function", tool)
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(name, str) or not name:
            raise ArgumentError(
                f"{where}: expected a JSON schema that names a function, found {dict(tool)!r:.80}"
            )
        return dict(tool)
    if not (inspect.isfunction(tool) or inspect.ismethod(tool)):
        raise ArgumentError(
            f"{where}: expected a function or a JSON schema, found {type(tool).__name__}"
        )
    return function_schema(tool, where)


def function_schema(function: Callable[..., Any], where: str = "tool") -> dict[str, Any]:
    """The JSON schema of a function with type hints and a docstring in Google's form.

    The same as ``transformers.utils.get_json_schema`` gives.

    Raises:
        ArgumentError: A parameter has no hint, one that JSON lacks, or no description.
    """
    name = getattr(function, "__name__", "operation")
    where = f"{where}, function {name}"
    summary, described, returned = _docstring(inspect.getdoc(function), where)
    try:
        hints = get_type_hints(function)
        parameters = dict(inspect.signature(function).parameters)
    except (NameError, TypeError, ValueError) as error:
        raise ArgumentError(f"{where}: expected type hints that resolve: {error}") from None
    first = next(iter(parameters), None)
    if first in ("self", "cls") and first not in hints:
        del parameters[first]
    properties: dict[str, Any] = {}
    for key in parameters:
        if key not in hints:
            raise ArgumentError(f"{where}: expected a type hint of {key}, found none")
        if key not in described:
            raise ArgumentError(
                f"{where}: expected {key} in the docstring's Args, found it missing"
            )
        properties[key] = _type_schema(hints[key], f"{where}, parameter {key}")
        properties[key]["description"] = described[key]
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    required = [k for k, p in parameters.items() if p.default is inspect.Parameter.empty]
    if required:
        schema["required"] = required
    result: dict[str, Any] = {"name": name, "description": summary, "parameters": schema}
    if "return" in hints:
        try:
            result["return"] = _type_schema(hints["return"], where)
        except ArgumentError:
            pass  # the model never writes it
        else:
            if returned is not None:
                result["return"]["description"] = returned
    return {"type": "function", "function": result}


def _docstring(text: str | None, where: str) -> tuple[str, dict[str, str], str | None]:
    """What a function does, its parameters by name, and what it returns."""
    if not text or not text.strip():
        raise ArgumentError(f"{where}: expected a docstring, found none")
    parts = re.split(r"\n\s*(Args|Returns|Raises):\s*\n", "\n" + text.strip() + "\n")
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    described: dict[str, str] = {}
    name, indent = "", -1
    for line in sections.get("Args", "").splitlines():
        match = re.match(r"([ \t]*)(\w+)(?:[ \t]*\([^()]*\))?:\s*(.*)", line)
        if match and (indent < 0 or len(match[1]) <= indent):
            name, indent = match[2], len(match[1])
            described[name] = match[3].strip()
        elif name and line.strip():
            described[name] = f"{described[name]} {line.strip()}".strip()
    returned = sections.get("Returns")
    return parts[0].strip(), described, returned.strip() if returned is not None else None


_TYPES: dict[Any, str] = {
    int: "integer",
    float: "number",
    str: "string",
    bool: "boolean",
    type(None): "null",
    list: "array",
    tuple: "array",
    dict: "object",
}


def _type_schema(hint: Any, where: str) -> dict[str, Any]:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return {}
    if origin is None and isinstance(hint, type) and hint in _TYPES:
        return {"type": _TYPES[hint]}
    if origin in (Union, types.UnionType):
        inner = [_type_schema(a, where) for a in arguments if a is not type(None)]
        if len(inner) == 1:
            schema = inner[0]
        elif all(s.keys() == {"type"} for s in inner):
            names = sorted({s["type"] for s in inner})
            schema = {"type": names[0] if len(names) == 1 else names}
        else:
            schema = {"anyOf": inner}
        return schema | ({"nullable": True} if type(None) in arguments else {})
    if origin is Literal and all(type(a) in _TYPES for a in arguments):
        kinds = list(dict.fromkeys(_TYPES[type(a)] for a in arguments))
        return {"type": kinds[0] if len(kinds) == 1 else kinds, "enum": list(arguments)}
    if origin is list:
        return {"type": "array", "items": _type_schema(arguments[0], where)}
    if origin is tuple and len(arguments) > 1 and ... not in arguments:
        return {"type": "array", "prefixItems": [_type_schema(a, where) for a in arguments]}
    if origin is dict:
        return {"type": "object", "additionalProperties": _type_schema(arguments[1], where)}
    raise ArgumentError(f"{where}: expected a type that JSON knows, found {hint!r:.80}")
