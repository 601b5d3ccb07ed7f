"""The Jinja environment of chat templates: that of transformers, within bounds.

A template is a program out of a file that somebody else wrote. jinja2's immutable sandbox keeps
it from everything but its own variables; what is added here keeps it from taking all time and
memory: loop turns, calls and filters are counted, and operations whose result could be far
larger than what went in are refused beforehand. A template within the bounds renders as it would
without them.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.filters import do_round, do_sum
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

# A chat of a thousand messages takes some hundred thousand steps; two million last a second or two.
_MAX_STEPS = 2_000_000
_CALL_STEPS = 10  # a macro's call takes as long as so many turns of a loop
_MAX_SECONDS = 30.0
# Characters of a string, items of a list: several times the longest context that models have.
_MAX_LENGTH = 64_000_000
_MAX_NUMBER_BITS = 65_536

# Methods and filters that can give more than they were given.
_GROWING = frozenset(
    {
        *("batch", "center", "expandtabs", "format", "format_map", "indent", "join", "ljust"),
        *("replace", "rjust", "slice", "translate", "urlize", "wordwrap", "xmlattr", "zfill"),
    }
)


class _Meter:
    """Steps and seconds of one rendering."""

    def __init__(self) -> None:
        self._left = _MAX_STEPS
        self._deadline = time.monotonic() + _MAX_SECONDS

    def step(self, weight: int = 1) -> None:
        self._left -= weight
        if self._left < 0:
            _refuse(f"expected an end within {_MAX_STEPS} steps, found none")
        if time.monotonic() > self._deadline:
            _refuse(f"expected an end within {_MAX_SECONDS:.0f} seconds, found none")


_meter: ContextVar[_Meter] = ContextVar("meter")


@contextmanager
def metered() -> Iterator[None]:
    """Gives a rendering its own count of steps."""
    token = _meter.set(_Meter())
    try:
        yield
    finally:
        _meter.reset(token)


def _refuse(message: str) -> NoReturn:
    raise jinja2.exceptions.SecurityError(message)


def _length(value: object) -> int:
    # What has no length is lazy, and counted where it is used up.
    return len(value) if isinstance(value, Sized) else 1


def _check_length(length: int) -> None:
    if length > _MAX_LENGTH:
        _refuse(f"expected results of at most {_MAX_LENGTH} characters or items, found {length}")


def _check_growth(name: str, value: object, arguments: Iterable[object]) -> None:
    """Refuses a call whose result can be longer than the bound."""
    if name not in _GROWING:
        return
    arguments = list(arguments)
    _check_filled(name, value, arguments)
    factor = 1
    for argument in arguments:
        factor = max(factor, argument if isinstance(argument, int) else _length(argument))
    if isinstance(value, str) and name.startswith("format"):
        _check_format(value)
        factor = 1 if ":{" not in value.replace(" ", "") else factor
    _check_length(_length(value) * factor)


def _check_filled(name: str, value: object, arguments: list[object]) -> None:
    """Refuses what puts long texts side by side: the method or filter join, and formats."""
    if name == "join":
        for items in (value, *arguments):
            if isinstance(items, list | tuple):
                _check_length(sum(map(_length, items)))
    elif name.startswith("format") and isinstance(value, str):
        _check_fields(value, arguments)


def _check_fields(text: str, arguments: Iterable[object]) -> None:
    """Each field of a format may take the longest argument."""
    longest = max((_length(argument) for argument in arguments), default=0)
    _check_length(max(text.count("{"), text.count("%")) * longest)


def _check_format(text: str) -> None:
    """A width in a format string makes any length; %-formats can take it from a value."""
    widths = re.findall(r"\d{5,}", text)
    if widths or re.search(r"%[-+ #0]*\*", text):
        _refuse(f"expected format widths below 10000, found {text[:60]!r}")


class Environment(ImmutableSandboxedEnvironment):
    """Compiles templates as transformers does, and renders them within bounds."""

    # Intercepted operators are not computed while compiling, either.
    intercepted_binops = frozenset({"*", "**", "+", "%"})

    @staticmethod
    def concat(pieces: Iterable[str]) -> str:
        """Puts together what a template, a macro or a block writes."""
        parts: list[str] = []
        length = 0
        for piece in pieces:
            parts.append(piece)
            length += len(piece)
            _check_length(length)
        return "".join(parts)

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, "jinja2.ext.loopcontrols"],
        )
        self.filters["tojson"] = _tojson
        self.filters["round"] = _round
        self.filters["sum"] = _sum
        self.filters = {name: _bounded(name, body) for name, body in self.filters.items()}
        self.filters["pyengine_counted"] = _counted
        self.filters["pyengine_joined"] = _joined
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now
        self.globals["dict"] = _Dict()
        self.globals["namespace"] = _Namespace

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in list(tree.find_all(nodes.For)):
            loop.iter = _filtered(loop.iter, "pyengine_counted", self)
        for concat in list(tree.find_all(nodes.Concat)):
            parts = nodes.Tuple(concat.nodes, "load", lineno=concat.lineno)
            concat.nodes = [_filtered(parts, "pyengine_joined", self)]
        return tree

    def call(self, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Every call in a template comes through here."""
        _meter.get().step(_CALL_STEPS)
        # The sandbox wraps str.format in a function of its own.
        method = getattr(obj, "__wrapped__", obj)
        name, value = getattr(method, "__name__", ""), getattr(method, "__self__", "")
        if not isinstance(obj, Macro) and isinstance(value, str | bytes):
            _check_growth(name if isinstance(name, str) else "", value, [*args, *kwargs.values()])
        if isinstance(value, int) and name == "to_bytes":
            _refuse("expected no bytes of a number, found a call of to_bytes")
        if name == "generate_lorem_ipsum":
            _refuse("expected no filler text, found a call of lipsum")
        return super().call(context, obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Operators whose result can be far longer than their operands."""
        numbers = isinstance(left, int) and isinstance(right, int)
        if operator == "+" and not numbers:
            _check_length(_length(left) + _length(right))
        elif operator == "%" and isinstance(left, str):
            _check_format(left)
            _check_fields(left, right if isinstance(right, tuple) else (right,))
        elif operator == "*" and not numbers:
            for one, other in ((left, right), (right, left)):
                if isinstance(one, int):
                    _check_length(max(one, 0) * _length(other))
        elif numbers and operator in ("*", "**"):
            bits = left.bit_length() * max(right, 0) if operator == "**" else left.bit_length()
            if max(bits, right.bit_length()) > _MAX_NUMBER_BITS:
                _refuse(f"expected numbers of at most {_MAX_NUMBER_BITS} bits, found {bits}")
        return super().call_binop(context, operator, left, right)


def _filtered(node: nodes.Node, name: str, environment: Environment) -> nodes.Filter:
    assert isinstance(node, nodes.Expr)  # what a loop runs over
    made = nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)
    made.set_environment(environment)
    return made


@jinja2.pass_context
def _counted(_context: Context, values: Iterable[Any]) -> Iterator[Any]:
    """The items of a loop, each of them a step."""
    iterator = iter(values)
    step = _meter.get().step

    def items() -> Iterator[Any]:
        for item in iterator:
            step()
            yield item

    return items()


@jinja2.pass_context
def _joined(_context: Context, parts: tuple[Any, ...]) -> str:
    """What ``~`` gives."""
    _meter.get().step()
    texts = [str(part) for part in parts]
    _check_length(sum(map(len, texts)))
    return "".join(texts)


def _bounded(name: str, body: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that counts; since it takes the context it is not computed while compiling."""
    takes = getattr(getattr(body, "jinja_pass_arg", None), "name", None)

    @jinja2.pass_context
    def counted(context: Context, *args: Any, **kwargs: Any) -> Any:
        _meter.get().step()
        _check_growth(name, args[0] if args else "", [*args[1:], *kwargs.values()])
        if takes == "context":
            return body(context, *args, **kwargs)
        if takes == "eval_context":
            return body(context.eval_ctx, *args, **kwargs)
        if takes == "environment":
            return body(context.environment, *args, **kwargs)
        return body(*args, **kwargs)

    return counted


class _Generation(Extension):
    """``{% generation %}`` marks what the assistant says; only training reads the mark."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it so)

    def parse(self, parser: Parser) -> nodes.Node:
        """The body between the tags, in a scope of its own."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as Python writes it; Jinja's own filter would escape HTML."""
    if (indent if isinstance(indent, int) else _length(indent or "")) > 1000:
        _refuse(f"tojson: expected an indent up to 1000, found {indent!r:.40}")
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _round(value: Any, precision: int = 0, method: str = "common") -> Any:
    """Rounds; Jinja's own filter computes any power of ten."""
    if not -1000 <= precision <= 1000:
        _refuse(f"round: expected a precision from -1000 to 1000, found {precision!r:.40}")
    return do_round(value, precision, method)  # type: ignore[arg-type]


@jinja2.pass_environment
def _sum(
    environment: jinja2.Environment, values: Any, attribute: Any = None, start: Any = 0
) -> Any:
    """Adds up; with lists each addition copies all before it, and takes as long."""
    if not isinstance(start, int | float):
        values = _copied(values)
    return do_sum(environment, values, attribute, start)


def _copied(values: Iterable[Any]) -> Iterator[Any]:
    length = 0
    for value in values:
        length += _length(value)
        _check_length(length)
        _meter.get().step(1 + length // 1000)
        yield value


def _raise_exception(message: Any) -> NoReturn:
    raise jinja2.exceptions.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


class _Dict:
    """``dict`` without the attributes of the type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """``namespace`` without names that begin with an underscore."""

    # No named parameter, so that namespace(self=...) works.
    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args
        values = dict(*rest, **kwargs)
        for name in values:
            _check_attribute(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_attribute(name)
        super().__setitem__(name, value)


def _check_attribute(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        _refuse(f"namespace: expected names that begin with no underscore, found {name!r}")
