"""Low-rank adapters as PEFT saves them: which matrices they change, and by what.

A matrix W becomes W + scale * B A, where A has as many rows as B has columns: the rank.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from converters._config import Config
from converters._json import read_object
from converters._mapping import plain_name
from converters._safetensors import SafetensorsFile
from converters._source import TensorEntry, TensorFile
from converters._torch_bin import TorchBinFile
from pyengine._errors import ConversionError

CONFIG_NAME = "adapter_config.json"
_PREFIX = "base_model.model."
# What stands behind a module's name: of a matrix, and of an embedding, whose B A is transposed.
_PAIRS = (
    (".lora_A.weight", ".lora_B.weight", False),
    (".lora_embedding_A", ".lora_embedding_B", True),
)
# What changes more than W + scale * B A says, and what then is another adapter altogether.
_REFUSED = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "arrow_config",
    "velora_config",
)
# Ways to start that leave the base's weights alone. The others subtract what B A starts with.
_HARMLESS_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
# A pattern is matched against names of a hundred letters; this many repetitions stay quick.
_MAX_REPETITIONS, _MAX_PATTERN = 3, 200


@dataclass(frozen=True)
class Delta:
    """What is added to one matrix.

    Attributes:
        source: The matrix's name in the base's checkpoint, without any wrapper's prefix.
        a: A's name in the adapter's file, a tensor of rank rows.
        b: B's, of rank columns.
        rank: The rank.
        scale: What B A is multiplied by.
        embedding: Whether A's columns, and not B's rows, are those of the matrix's rows.
    """

    source: str
    a: str
    b: str
    rank: int
    scale: float
    embedding: bool


class Adapter:
    """An open adapter folder; a context manager that closes its file.

    Attributes:
        folder: The folder.
        alpha: lora_alpha, by which scales without a pattern are counted.
        file: The tensors.
        deltas: What is added, by the matrix's name.
        replaced: What takes a tensor's place, name in the base to name in the adapter: biases
            and modules_to_save.
    """

    def __init__(self, folder: Path) -> None:
        """Opens the folder and checks the config and every tensor's name and shape.

        Args:
            folder: A folder with adapter_config.json and adapter_model.safetensors or .bin.

        Raises:
            ConversionError: A file is missing or broken, or the adapter is of another kind.
            OSError: A file cannot be read.
        """
        self.folder = folder
        path = folder / CONFIG_NAME
        if not path.is_file():
            raise ConversionError(f"{folder}: expected a folder with {CONFIG_NAME}, found none")
        self._config = Config(read_object(path), str(path))
        self._refuse_features()
        self.alpha = self._config.number("lora_alpha", 8.0)
        self._rank = self._config.integer("r", 8)
        self._root_scaled = self._config.flag("use_rslora", False)
        self._alphas = self._patterns("alpha_pattern")
        self._ranks = self._patterns("rank_pattern")
        self.file = _open(folder)
        try:
            self.deltas = {delta.source: delta for delta in self._pairs()}
            self.replaced = self._replaced()
            if not self.deltas:
                raise ConversionError(f"{self.file.path}: expected pairs of LoRA, found none")
        except BaseException:
            self.file.close()
            raise

    def __enter__(self) -> Adapter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.file.close()

    @property
    def paths(self) -> set[Path]:
        """Every file that is read."""
        return {self.file.path.resolve(), (self.folder / CONFIG_NAME).resolve()}

    @property
    def base(self) -> Path | None:
        """A folder with the base's config.json: what the config names, or this one, or None."""
        stated = self._config.text("base_model_name_or_path", "")
        for folder in ([Path(stated)] if stated else []) + [self.folder]:
            if (folder / "config.json").is_file():
                return folder
        return None

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    def check(self, delta: Delta, rows: int, columns: int) -> None:
        """Checks that what is added has the matrix's shape.

        Raises:
            ConversionError: It has another.
        """
        a, b = self.file.entries[delta.a].shape, self.file.entries[delta.b].shape
        found = (a[1], b[0]) if delta.embedding else (b[0], a[1])
        if found != (rows, columns):
            raise ConversionError(
                f"{self.file.path}: tensor {delta.a!r}: expected a pair for {delta.source!r} of "
                f"shape {[rows, columns]}, found one for {list(found)}"
            )

    def refuse_transposed(self) -> None:
        """Refuses an adapter of matrices that are stored the other way round (Conv1D).

        Raises:
            ConversionError: It is one.
        """
        if self._config.flag("fan_in_fan_out", False):
            raise self._config.fail("fan_in_fan_out", "false")

    # ---- reading

    def _refuse_features(self) -> None:
        config = self._config
        if config.text("peft_type", "") != "LORA":
            raise config.fail("peft_type", "'LORA'")
        for key in _REFUSED:
            if config.values.get(key):
                raise config.fail(key, "nothing, as in plain LoRA")
        start = config.values.get("init_lora_weights")
        if not isinstance(start, bool | str | None) or start not in _HARMLESS_STARTS:
            raise config.fail(
                "init_lora_weights", "a start that leaves the base's weights as they are"
            )

    def _patterns(self, key: str) -> list[tuple[re.Pattern[str], float]]:
        section = self._config.section(key)
        found = []
        for text in section.values if section is not None else ():
            assert section is not None
            try:
                if len(text) > _MAX_PATTERN or "(" in text or _repetitions(text) > _MAX_REPETITIONS:
                    raise ValueError
                # PEFT's rule: at the end of a module's name, from a dot on.
                pattern = re.compile(rf"(.*\.)?({text})$")
            except (re.error, ValueError):
                raise section.fail(text, "a simple pattern of module names") from None
            value = section.number(text)
            if key == "rank_pattern":
                value = section.integer(text)
            found.append((pattern, value))
        return found

    def _scale_and_rank(self, module: str) -> tuple[float, int]:
        rank = int(_first(self._ranks, module, self._rank))
        alpha = _first(self._alphas, module, self.alpha)
        return alpha / (math.sqrt(rank) if self._root_scaled else rank), rank

    def _pairs(self) -> Iterator[Delta]:
        for name in self.file.entries:
            for of_a, of_b, embedding in _PAIRS:
                if not name.endswith((of_a, of_b)):
                    continue
                stem = name.removesuffix(of_a).removesuffix(of_b)
                a, b = self._entry(stem + of_a), self._entry(stem + of_b)
                module = stem.removeprefix(_PREFIX)
                scale, rank = self._scale_and_rank(module)
                for entry, at in ((a, 0), (b, 1)):
                    if len(entry.shape) != 2 or entry.shape[at] != rank:
                        raise ConversionError(
                            f"{self.file.path}: tensor {entry.name!r}: expected a matrix of rank "
                            f"{rank} as {CONFIG_NAME} says, found shape {list(entry.shape)}"
                        )
                source = plain_name(module + ".weight")
                yield Delta(source, a.name, b.name, rank, scale, embedding)

    def _entry(self, name: str) -> TensorEntry:
        entry = self.file.entries.get(name)
        if entry is None:
            raise ConversionError(
                f"{self.file.path}: expected a tensor {name!r} beside its other half, found none"
            )
        return entry

    def _replaced(self) -> dict[str, str]:
        used = {name for delta in self.deltas.values() for name in (delta.a, delta.b)}
        found = {}
        for name in self.file.entries:
            if name in used:
                continue
            if ".lora_" in name or not name.startswith(_PREFIX):
                raise ConversionError(
                    f"{self.file.path}: tensor {name!r}: expected a matrix of plain LoRA, found "
                    "another kind"
                )
            module = name.removeprefix(_PREFIX).replace(".base_layer.", ".")
            source = plain_name(module)
            if source in self.deltas or source in found:
                raise ConversionError(
                    f"{self.file.path}: tensor {name!r}: expected one change of {source!r}, "
                    "found another, too"
                )
            found[source] = name
        return found


def _open(folder: Path) -> TensorFile:
    for name, opener in (
        ("adapter_model.safetensors", SafetensorsFile),
        ("adapter_model.bin", TorchBinFile),
    ):
        if (folder / name).is_file():
            opened: TensorFile = opener(folder / name)
            return opened
    raise ConversionError(
        f"{folder}: expected adapter_model.safetensors or adapter_model.bin, found neither"
    )


def _repetitions(pattern: str) -> int:
    return sum(pattern.count(sign) for sign in "*+{?")


def _first(patterns: list[tuple[re.Pattern[str], float]], module: str, default: float) -> float:
    return next((value for pattern, value in patterns if pattern.match(module)), default)
