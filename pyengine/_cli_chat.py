"""The conversation of `pyengine chat`: lines in, answers out, on a terminal or in a pipe."""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from pyengine._chat import ChatReply, ChatStream
from pyengine._engine import Engine
from pyengine._errors import ContextFullError, PyengineError
from pyengine._messages import checked_messages

try:
    import readline
except ImportError:  # a Python without line editing
    readline = None  # type: ignore[assignment]

_HELP = """\
/reset        begin a new conversation
/save FILE    write the messages as JSON
/load FILE    go on with messages from JSON
/help         this list
/exit         end; so do Ctrl-D, and Ctrl-C on an empty line
A line that ends in \\ goes on in the next one. Ctrl-C stops an answer."""

_COMMAND = re.compile(r"/(\w+)(?:\s+(.*?))?\s*", re.DOTALL)


class ChatLoop:
    """Reads turns until the input ends.

    Args:
        engine: Answers.
        system: What the conversation begins with, or None.
        reasoning: Whether to show it; None: on a terminal.
        options: Arguments of :meth:`Engine.chat` for every turn.
        report: Called with each reply, where that is wanted.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        system: str | None,
        reasoning: bool | None,
        options: dict[str, Any],
        report: Callable[[ChatReply], None] | None = None,
    ) -> None:
        self._engine = engine
        self._begin = [] if system is None else [{"role": "system", "content": system}]
        self._messages: list[dict[str, Any]] = list(self._begin)
        self._options = options
        self._report = report
        self._session = engine.session()
        self._terminal = sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()
        self._reasoning = self._terminal if reasoning is None else reasoning
        self._typed = ""
        self._failed = False

    def run(self) -> int:
        """The exit code: in a pipe 1 if any turn failed, else 0."""
        if self._terminal:
            if readline is not None:
                # A paste of several lines is one message.
                readline.parse_and_bind("set enable-bracketed-paste on")
            click.echo("/help lists commands; Ctrl-D ends", err=True)
        with self._session:
            for text in self._turns():
                command = _COMMAND.fullmatch(text)
                if command is None:
                    self._try(lambda text=text: self._answer(text))  # type: ignore[misc]
                elif command[1] in ("exit", "quit"):
                    break
                else:
                    self._try(lambda match=command: self._command(match[1], match[2] or ""))  # type: ignore[misc]
        return 1 if self._failed and not self._terminal else 0

    # ---- input ----

    def _turns(self) -> Iterator[str]:
        """Messages and commands; lines that end in a backslash joined with the next one."""
        lines: list[str] = []
        while True:
            try:
                line = self._line("... " if lines else "> ")
            except EOFError:
                break
            except KeyboardInterrupt:
                if not self._terminal:
                    raise
                if not self._typed and not lines:
                    break
                lines.clear()
                continue
            if line.endswith("\\"):
                lines.append(line[:-1])
                continue
            text = "\n".join([*lines, line])
            lines.clear()
            if text.strip():
                yield text
        if lines:
            yield "\n".join(lines)
        if self._terminal:
            click.echo()

    def _line(self, prompt: str) -> str:
        if self._terminal:
            with self._noting_what_was_typed():
                return input(prompt)
        line = sys.stdin.buffer.readline() if sys.stdin is not None else b""
        if not line:
            raise EOFError
        try:
            return line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise click.ClickException(
                f"standard input: expected UTF-8 text, found byte 0x{line[error.start]:02x}"
            ) from None

    @contextmanager
    def _noting_what_was_typed(self) -> Iterator[None]:
        def interrupt(*_: object) -> None:
            self._typed = readline.get_line_buffer() if readline is not None else ""
            click.echo()
            raise KeyboardInterrupt

        before = signal.signal(signal.SIGINT, interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    # ---- turns ----

    def _try(self, body: Callable[[], None]) -> None:
        """Runs a turn; what goes wrong is a line and not the end."""
        try:
            body()
        except ContextFullError as error:
            self._complain(f"context full: {error}; /reset begins a new conversation")
        except (PyengineError, MemoryError) as error:
            self._complain(str(error) or "out of memory")
        except KeyboardInterrupt:  # before the answer began
            if not self._terminal:
                raise
            click.echo()

    def _complain(self, message: str) -> None:
        self._failed = True
        click.echo(f"error: {' '.join(message.split())}", err=True)

    def _answer(self, text: str) -> None:
        asked = [*self._messages, {"role": "user", "content": text}]
        stream = self._engine.chat(asked, stream=True, session=self._session, **self._options)
        with self._stopping(stream):
            self._print(stream)
        reply = stream.result
        if self._report is not None:
            self._report(reply)
        if reply.finish_reason == "cancelled" and not (reply.text or reply.tool_calls):
            return  # as if it had not been asked
        self._messages = [*asked, reply.message]
        if reply.usage.total_tokens >= self._engine.n_ctx and reply.finish_reason == "length":
            self._complain("context full: the answer is cut short; /reset begins anew")

    @contextmanager
    def _stopping(self, stream: ChatStream) -> Iterator[None]:
        """On a terminal Ctrl-C stops the answer, at a moment when all is in order."""
        if not self._terminal:
            yield
            return
        before = signal.signal(signal.SIGINT, lambda *_: stream.cancel())
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _print(self, stream: ChatStream) -> None:
        last = ""
        try:
            for kind, piece in stream.events():
                if kind == "reasoning" and not self._reasoning:
                    continue
                if last and kind != last:
                    sys.stdout.write("\n\n")
                last = kind
                shown = click.style(piece, dim=True) if kind == "reasoning" else piece
                sys.stdout.write(shown if self._terminal else piece)
                sys.stdout.flush()
        finally:
            for call in stream.result.tool_calls:
                arguments = json.dumps(call.arguments, ensure_ascii=False)
                sys.stdout.write(f"{chr(10) if last else ''}[{call.name} {arguments}]")
                last = "call"
            sys.stdout.write("\n")
            sys.stdout.flush()

    # ---- commands ----

    def _command(self, name: str, argument: str) -> None:
        if name == "help":
            click.echo(_HELP, err=True)
        elif name == "reset":
            self._messages = list(self._begin)
        elif name in ("save", "load"):
            if not argument:
                self._complain(f"/{name}: expected a file, found none")
            else:
                (self._save if name == "save" else self._load)(Path(argument).expanduser())
        else:
            self._complain(f"/{name}: expected a command that /help lists")

    def _save(self, path: Path) -> None:
        part = path.with_name(path.name + ".part")
        try:
            text = json.dumps(self._messages, indent=2, ensure_ascii=False)
            part.write_text(text + "\n", encoding="utf-8")
            part.replace(path)
        except OSError as error:
            self._complain(f"{path}: {error.strerror}")

    def _load(self, path: Path) -> None:
        try:
            self._messages = list(checked_messages(json.loads(path.read_text(encoding="utf-8"))))
        except OSError as error:
            self._complain(f"{path}: {error.strerror}")
        except PyengineError as error:
            self._complain(f"{path}: {error}")
        except (ValueError, RecursionError) as error:
            self._complain(f"{path}: expected JSON, found: {error}")
