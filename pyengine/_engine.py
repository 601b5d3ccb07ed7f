"""A model ready to run: open, generate, score, close."""

from __future__ import annotations

import math
import os
import secrets
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, overload

from pyengine._arguments import choice, instance, integer
from pyengine._bundled import bundled_model
from pyengine._chat import ChatReply, ChatStream, prepare
from pyengine._embed import Pooling, Texts, Vectors, embed
from pyengine._errors import ClosedError
from pyengine._file import ModelFile
from pyengine._generate import Generation, Progress, Stream, Turn
from pyengine._info import ISAS, KV_TYPES, RESIDENT_MODES, EngineInfo, engine_info
from pyengine._messages import Tool
from pyengine._native import ClosableHandle, call, ffi, lib
from pyengine._perplexity import Perplexity, text_perplexity
from pyengine._sampler import MAX_SEED, Sampler, Sampling
from pyengine._self_test import check_template, check_tokenizer
from pyengine._session import CancelFlag, Logits, Session, token_array
from pyengine._template import ChatTemplates
from pyengine._tokenizer import Tokenizer


class Engine(ClosableHandle):
    """A model bound to its file, with its threads and its KV pages.

    Weights are read from the file's mapping: opening takes milliseconds beyond building the
    tokenizer. Where memory allows they move to memory of this process while it computes,
    see ``resident``; with ``"off"`` processes that open the same file go on sharing them. One
    engine may be used from several threads: calls into the core wait for each other. Close it
    with :meth:`close` or a ``with`` block.

    Args:
        path: A GGUF file; None opens the bundled story model.
        n_ctx: Positions a session may hold, up to what the model was trained for, which
            is the default. Memory is taken only as positions fill.
        n_threads: Threads that compute, the caller's included; default: usable cores.
        n_batch: Tokens per pass, 256 by default; more needs more working memory. An encoder
            needs a whole text in one pass: there it bounds the context, and the default is
            the context's size, up to 2048.
        kv_type: ``"f32"``, ``"f16"``, ``"q8_0"`` or ``"q4_0"``; ``"auto"`` is f32 for F32
                models, else f16. docs/ACCURACY.md says what each costs.
        max_kv_bytes: Bound on the KV pages and recurrent states of all sessions together.
        resident: Whether weights move from the file's mapping to memory of this process,
            interleaved as decoding reads them fastest: ``"auto"`` where it helps and no
            more than three quarters of the available memory are needed, a share after each
            pass; ``"on"`` all at once while opening; ``"off"`` never. Results do not change.
        isa: Force an instruction set, ``"scalar"``, ``"avx2"``, ``"avx_vnni"`` or
            ``"avx512"``, on Arm ``"neon"``, ``"dotprod"`` or ``"i8mm"``; results do not
            change.

    Attributes:
        file: The :class:`ModelFile` it runs.
        tokenizer: The file's :class:`Tokenizer`.
        chat_templates: The file's chat templates, by name.
        n_vocab: Tokens of the vocabulary.
        n_ctx: Positions a session may hold.
        load_seconds: What opening took.

    Raises:
        ModelFileError: The file cannot be opened.
        ModelFormatError: It is not a GGUF model, or a damaged one.
        UnsupportedModelError: It needs something this build lacks, named.
        TokenizerError: It has no tokenizer, or one that cannot be built or gives other ids
            than the file says.
        ChatTemplateError: The template is not the one that was converted.
        ArgumentError: An option outside its range, named.
        OutOfMemoryError: No memory for the working buffers, or for ``resident="on"``.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        n_ctx: int | None = None,
        n_threads: int | None = None,
        n_batch: int | None = None,
        kv_type: Literal["auto", "f32", "f16", "q8_0", "q4_0"] = "auto",
        max_kv_bytes: int | None = None,
        resident: Literal["auto", "on", "off"] = "auto",
        isa: Literal["scalar", "avx2", "avx_vnni", "avx512", "neon", "dotprod", "i8mm"]
        | None = None,
    ) -> None:
        started = time.perf_counter()
        self._lock = threading.RLock()
        self._pid = os.getpid()
        self._handle: Any = None
        self._sessions: weakref.WeakSet[Session] = weakref.WeakSet()
        params = ffi.new("pe_engine_params *")
        params.struct_bytes = ffi.sizeof("pe_engine_params")
        params.n_ctx = _positive("n_ctx", n_ctx, 2**32 - 1)
        params.n_threads = _positive("n_threads", n_threads, 2**32 - 1)
        params.n_batch = _positive("n_batch", n_batch, 2**32 - 1)
        params.max_kv_bytes = _positive("max_kv_bytes", max_kv_bytes, 2**64 - 1)
        params.isa = lib.PE_ISA_BEST if isa is None else choice("isa", isa, ISAS)
        params.kv_type = choice("kv_type", kv_type, KV_TYPES)
        params.resident = choice("resident", resident, RESIDENT_MODES)

        self.file = ModelFile(bundled_model() if path is None else path)
        try:
            out = ffi.new("pe_engine **")
            call(lib.pe_engine_open, out, self.file.handle, params)
            self._handle = ffi.gc(out[0], lib.pe_engine_close)
            info = self.info
            self.n_vocab: int = info.n_vocab
            self.n_ctx: int = info.n_ctx
            self.tokenizer = Tokenizer.from_metadata(self.file.metadata)
            self.chat_templates = ChatTemplates(self.file.metadata)
            check_tokenizer(self.file.metadata, self.tokenizer)
            check_template(self.file.metadata, self.chat_templates)
        except BaseException:
            self.close()
            raise
        self.load_seconds = time.perf_counter() - started

    def __repr__(self) -> str:
        state = "" if self._handle is not None else ", closed"
        return f"Engine({self.file.path!r}{state})"

    def close(self) -> None:
        """Frees sessions, pages, threads and the mapping; closing twice is allowed.

        Waits for a call that runs in another thread. In a child made by fork() it does
        nothing.
        """
        if self.is_forked:
            return
        with self.lock:
            for session in list(self._sessions):
                session.close()
            if self._handle is not None:
                ffi.release(self._handle)
                self._handle = None
            self.file.close()

    @property
    def is_forked(self) -> bool:
        """Whether this process is a fork of the one that opened the engine."""
        return self._pid != os.getpid()

    @property
    def lock(self) -> threading.RLock:
        """Held around every call into the core; for this package's own use.

        Raises:
            ClosedError: In a child made by fork(), which has the engine's memory but not
                its threads, and locks that nobody will open.
        """
        if self.is_forked:
            raise ClosedError(
                f"{self!r}: expected the process {self._pid} that opened it, found its child "
                f"{os.getpid()}: open the model again after a fork"
            )
        return self._lock

    @property
    def handle(self) -> Any:
        """The core's object, for this package's own use."""
        if self._handle is None:
            raise ClosedError(f"{self!r}: expected an open engine")
        return self._handle

    @property
    def info(self) -> EngineInfo:
        """What the engine is and holds now."""
        raw = ffi.new("pe_engine_info *")
        with self.lock:
            lib.pe_engine_describe(raw, self.handle)
            return engine_info(raw)

    # ---- tokens ----

    def tokenize(
        self, text: str, *, add_special: bool = True, parse_special: bool = False
    ) -> list[int]:
        """Token ids of a text.

        Args:
            text: Any text.
            add_special: Add the begin and end tokens that the model asks for.
            parse_special: Read control tokens written in the text as what they name.
        """
        return self.tokenizer.encode(text, add_special=add_special, parse_special=parse_special)

    def detokenize(self, tokens: Sequence[int], *, skip_special: bool = False) -> str:
        """The text of token ids; bytes that are not UTF-8 become U+FFFD."""
        return self.tokenizer.decode(tokens, skip_special=skip_special)

    # ---- sessions and logits ----

    def session(self) -> Session:
        """Starts an empty timeline, for callers that feed tokens themselves."""
        out = ffi.new("pe_session **")
        with self.lock:
            call(lib.pe_session_new, out, self.handle)
            return self.adopt(Session(self, out[0]))

    def adopt(self, session: Session) -> Session:
        """Notes a session that is closed with the engine; for this package's own use."""
        self._sessions.add(session)
        return session

    def logits(self, tokens: Sequence[int]) -> Logits:
        """Logits at every position of a sequence, float32 ``[len(tokens), n_vocab]``.

        Raises:
            As :meth:`Session.feed`.
        """
        with self.session() as session:
            return session.feed(tokens, logits="all")

    def perplexity(
        self,
        text: str,
        *,
        window: int = 512,
        progress: Callable[[int, int], None] | None = None,
    ) -> Perplexity:
        """Perplexity of a text, cut into windows whose second half is scored.

        The definition is that of llama.cpp's perplexity tool, so values compare: whole
        windows only, each begun with the model's begin token if it asks for one, scored
        from token ``window / 2 + 1`` on.

        Args:
            text: Long enough for one window.
            window: Tokens per window, 4 to the context's size.
            progress: Called with windows done and windows in all.

        Raises:
            ArgumentError: The text is shorter than a window, or the window is impossible.
        """
        return text_perplexity(self, text, window, progress)

    # ---- embedding ----

    @overload
    def embed(
        self,
        texts: Texts,
        *,
        pooling: Literal["mean", "cls", "last"] | None = None,
        normalize: bool = True,
        parse_special: bool = False,
        cancel: CancelFlag | None = None,
        progress: Progress | None = None,
    ) -> Vectors: ...

    @overload
    def embed(
        self,
        texts: Texts,
        *,
        pooling: Literal["none"],
        normalize: bool = True,
        parse_special: bool = False,
        cancel: CancelFlag | None = None,
        progress: Progress | None = None,
    ) -> list[Vectors]: ...

    def embed(
        self,
        texts: Texts,
        *,
        pooling: Pooling | None = None,
        normalize: bool = True,
        parse_special: bool = False,
        cancel: CancelFlag | None = None,
        progress: Progress | None = None,
    ) -> Vectors | list[Vectors]:
        """Turns texts into vectors: what lies behind the model's last norm, pooled.

        Many texts go through the model together, and a text's vector has the same bits
        whatever stands beside it. No text is cut: one that is too long is an error.

        Args:
            texts: A text, or a sequence of texts, or of sequences of token ids. Texts get the
                begin and end tokens that the model asks for, ids are taken as they are.
            pooling: ``"mean"``, ``"cls"`` (the first token) or ``"last"``; ``"none"`` for a
                vector of each token; None: as the file says.
            normalize: Divide each vector by its length.
            parse_special: Read control tokens written in a text as such.
            cancel: Stops the call from another thread.
            progress: Called with texts done and in all.

        Returns:
            Float32 ``[len(texts), d_model]``; without pooling a list of
            ``[len(tokens), d_model]``.

        Raises:
            ArgumentError: A text is empty or not a text, named by its index; or the file
                names no pooling and none is given.
            ContextFullError: A text is longer than ``n_ctx``, named by its index.
            NumericError: The model produced NaN or infinity, named by the text's index.
            OutOfMemoryError: Memory or the KV budget is spent.
            CancelledError: ``cancel`` was raised.
        """
        return embed(self, texts, pooling, normalize, parse_special, cancel, progress)

    # ---- generation ----

    @overload
    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        stream: Literal[False] = False,
        max_tokens: int | None = 256,
        temperature: float = 0.8,
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        repeat_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        penalty_window: int = 64,
        logit_bias: Mapping[int, float] | None = None,
        stop: str | Sequence[str] | None = None,
        ignore_eos: bool = False,
        seed: int | None = None,
        logprobs: int | None = None,
        parse_special: bool = True,
        cancel: CancelFlag | None = None,
        progress: Progress | None = None,
    ) -> Generation: ...

    @overload
    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        stream: Literal[True],
        max_tokens: int | None = 256,
        temperature: float = 0.8,
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        repeat_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        penalty_window: int = 64,
        logit_bias: Mapping[int, float] | None = None,
        stop: str | Sequence[str] | None = None,
        ignore_eos: bool = False,
        seed: int | None = None,
        logprobs: int | None = None,
        parse_special: bool = True,
        cancel: CancelFlag | None = None,
        progress: Progress | None = None,
    ) -> Stream: ...

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        stream: bool = False,
        max_tokens: int | None = 256,
        temperature: float = 0.8,
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        repeat_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        penalty_window: int = 64,
        logit_bias: Mapping[int, float] | None = None,
        stop: str | Sequence[str] | None = None,
        ignore_eos: bool = False,
        seed: int | None = None,
        logprobs: int | None = None,
        parse_special: bool = True,
        cancel: CancelFlag | None = None,
        progress: Progress | None = None,
    ) -> Generation | Stream:
        """Continues a prompt.

        The same seed, options and prompt give the same text on every machine, with any
        number of threads.

        Args:
            prompt: Text, or token ids taken as they are. An empty text starts from the
                model's begin token.
            stream: Return a :class:`Stream` of text pieces instead of the whole.
            max_tokens: Stop after so many; None: when the context is full.
            temperature, top_k, top_p, min_p, repeat_penalty, presence_penalty,
                frequency_penalty, penalty_window, logit_bias: See :class:`Sampling`.
            stop: Strings that end the text; none of them appears in it, not in part.
            ignore_eos: Never choose a token that ends the text.
            seed: 0 to 2^64 - 1; None draws one, which the result names.
            logprobs: Report each token's log-probability and so many alternatives.
            parse_special: Read control tokens written in a text prompt as such.
            cancel: Stops the generation from another thread.
            progress: Called with prompt tokens done and in all while the prompt runs.

        Raises:
            ContextFullError: The prompt does not fit the context; nothing is cut off.
            ArgumentError: An option outside its range, named.
            NumericError: The model produced NaN or infinity.
            OutOfMemoryError: Memory or the KV budget is spent.
        """
        running = self._start(
            self._prompt_tokens(prompt, parse_special),
            Turn(self.tokenizer.eog_ids),
            max_tokens=max_tokens,
            stop=stop,
            ignore_eos=ignore_eos,
            seed=seed,
            logprobs=logprobs,
            cancel=cancel,
            progress=progress,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repeat_penalty=repeat_penalty,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            penalty_window=penalty_window,
            logit_bias=logit_bias,
        )
        if stream:
            return running
        for _ in running:
            pass
        return running.result

    def _start(
        self,
        tokens: list[int],
        turn: Turn,
        *,
        max_tokens: int | None,
        stop: str | Sequence[str] | None,
        ignore_eos: bool,
        seed: int | None,
        logprobs: int | None,
        cancel: CancelFlag | None,
        progress: Progress | None,
        logit_bias: Mapping[int, float] | None,
        **sampling: Any,
    ) -> Stream:
        if logit_bias is not None:
            instance("logit_bias", logit_bias, Mapping, "a mapping of token ids to numbers")
        bias = dict(logit_bias or {})
        if ignore_eos:
            bias.update(dict.fromkeys(turn.ends, -math.inf))
        for token in bias:
            integer("logit_bias", token, 0, self.n_vocab - 1)
        chosen_seed = (
            secrets.randbelow(2**32) if seed is None else integer("seed", seed, 0, MAX_SEED)
        )
        return Stream(
            self,
            tokens,
            Sampler(Sampling(logit_bias=bias, **sampling), chosen_seed),
            seed=chosen_seed,
            max_tokens=max_tokens,
            stop=stop,
            n_logprobs=logprobs,
            cancel=cancel,
            progress=progress,
            turn=turn,
        )

    # ---- chat ----

    @overload
    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        stream: Literal[False] = False,
        **options: Any,
    ) -> ChatReply: ...

    @overload
    def chat(
        self, messages: Sequence[Mapping[str, Any]], *, stream: Literal[True], **options: Any
    ) -> ChatStream: ...

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        stream: bool = False,
        tools: Sequence[Tool] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        template: str | None = None,
        continue_final_message: bool = False,
        session: Session | None = None,
        max_tokens: int | None = None,
        temperature: float = 0.8,
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        repeat_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        penalty_window: int = 64,
        logit_bias: Mapping[int, float] | None = None,
        stop: str | Sequence[str] | None = None,
        ignore_eos: bool = False,
        seed: int | None = None,
        logprobs: int | None = None,
        cancel: CancelFlag | None = None,
        progress: Progress | None = None,
        **variables: Any,
    ) -> ChatReply | ChatStream:
        """Answers a conversation, by the model's own chat template.

        Sampling options are those of :meth:`generate`.

        Args:
            messages: ``{"role": ..., "content": ...}`` each, the newest last.
            stream: Return a :class:`ChatStream` instead of the whole.
            tools: Functions that the model may ask for: Python functions with type hints and
                a docstring, or JSON schemas.
            documents: For templates of retrieval models.
            template: Jinja text, or the name of one of the file's templates.
            continue_final_message: Go on with the last message instead of answering it.
            session: Compute there: the conversation's beginning that it already holds is
                not computed again, what it holds beyond that is dropped.
            max_tokens: Stop after so many; None: at the end of the turn or of the context.
            variables: Passed to the template, such as ``enable_thinking=False``.

        Raises:
            ChatTemplateError: There is no template, or it is broken or refuses the messages.
            ArgumentError: A message, a tool or an option is not as expected, named.
            ContextFullError: The conversation does not fit; nothing is cut off.
            As :meth:`generate`.
        """
        prepared = prepare(
            self,
            messages,
            tools=tools,
            documents=documents,
            template=template,
            continue_final_message=continue_final_message,
            session=session,
            variables=variables,
        )
        raw = self._start(
            self._prompt_tokens(prepared.tokens, False),
            prepared.turn,
            max_tokens=max_tokens,
            stop=prepared.stops(stop),
            ignore_eos=ignore_eos,
            seed=seed,
            logprobs=logprobs,
            cancel=cancel,
            progress=progress,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repeat_penalty=repeat_penalty,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            penalty_window=penalty_window,
            logit_bias=logit_bias,
        )
        running = ChatStream(raw, prepared.parser)
        if stream:
            return running
        for _ in running:
            pass
        return running.result

    def _prompt_tokens(self, prompt: str | Sequence[int], parse_special: bool) -> list[int]:
        if isinstance(prompt, str):
            tokens = self.tokenize(prompt, parse_special=parse_special)
            if not tokens and self.tokenizer.bos_id is not None:
                tokens = [self.tokenizer.bos_id]
            prompt = tokens
        ids: list[int] = token_array(prompt, self.n_vocab, name="prompt").tolist()
        return ids


def _positive(name: str, value: int | None, high: int) -> int:
    """A count for the core, in which 0 stands for None."""
    return 0 if value is None else integer(name, value, 1, high)
