"""A Hugging Face checkpoint folder: its config and its tensors, whatever files they lie in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from converters._encode import TensorType
from converters._grid import Grid
from converters._json import read_object
from converters._packed import Packed, Piece
from converters._quantized import find_quantized, plain_config
from converters._safetensors import SafetensorsFile
from converters._source import Array, Floats, TensorEntry, TensorFile
from converters._torch_bin import TorchBinFile
from pyengine._errors import ConversionError

_Opener = Callable[[Path], TensorFile]
# In the order in which transformers prefers them.
_SINGLE: tuple[tuple[str, _Opener], ...] = (
    ("model.safetensors", SafetensorsFile),
    ("pytorch_model.bin", TorchBinFile),
)


def has_weights(folder: Path) -> bool:
    """Whether a folder has a model's weights, whole or in parts."""
    names = [n for single, _ in _SINGLE for n in (single, f"{single}.index.json")]
    return any((folder / name).is_file() for name in names)


class Checkpoint:
    """An open checkpoint folder; a context manager that closes its files.

    Attributes:
        folder: The folder.
        config: config.json as it stands, but for how the weights are quantized.
        matrices: The quantized matrices, which are read as any others are.
        method: What quantized them, "" for none.
        files: Every file that is read, so that none of them is overwritten by the output.
    """

    def __init__(self, folder: Path) -> None:
        """Opens the folder and reads the directory of every weights file, but no weights.

        Args:
            folder: A folder with config.json and weights.

        Raises:
            ConversionError: A file is missing, breaks its format or contradicts the index.
            OSError: A file cannot be read.
        """
        self.folder = folder
        config = folder / "config.json"
        if not config.is_file():
            found = "no such file" if folder.is_dir() else "no such folder"
            raise ConversionError(f"{folder}: expected a folder with config.json, found {found}")
        self.config: dict[str, Any] = read_object(config)
        self.files: set[Path] = {config.resolve()}
        self._open: list[TensorFile] = []
        self._owner: dict[str, TensorFile] = {}
        try:
            self._open_weights()
        except BaseException:
            self.close()
            raise
        self._entries: Mapping[str, TensorEntry] = {
            name: file.entries[name] for name, file in self._owner.items()
        }
        self.matrices: Mapping[str, Packed] = {}
        self.method = ""
        try:
            self._find_quantized()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def name(self) -> str:
        """The model's name: the config's, or the folder's. Never more than its last part.

        `_name_or_path` is often a path on the machine of whoever saved the model.
        """
        stated = self.config.get("_name_or_path")
        if isinstance(stated, str):
            last = stated.replace("\\", "/").rstrip("/").rpartition("/")[2]
            if last.strip(". "):
                return last
        return self.folder.resolve().name

    @property
    def entries(self) -> Mapping[str, TensorEntry]:
        """Every tensor of every file by name."""
        return self._entries

    def file_of(self, name: str) -> Path:
        """The file that holds a tensor; of a quantized one, the folder."""
        return self._owner[name].path if name in self._owner else self.folder

    def read_rows(self, name: str, first: int, last: int) -> Floats:
        """Reads rows of one tensor; as `TensorFile.read_rows`."""
        if name in self.matrices:
            piece = self.matrices[name].read(first, last)
            return piece.floats() if isinstance(piece, Grid) else piece
        return self._owner[name].read_rows(name, first, last)

    def read_piece(self, name: str, first: int, last: int) -> Piece:
        """Reads rows of one tensor, quantized ones as they are."""
        if name in self.matrices:
            return self.matrices[name].read(first, last)
        return self.read_rows(name, first, last)

    def fits(self, name: str) -> tuple[Mapping[TensorType, bool], TensorType]:
        """The types of blocks that hold a quantized matrix, whether exactly, and another type
        for want of any; reads and checks scales."""
        packed = self.matrices[name]
        return packed.fits(), packed.rounded

    def read_stored(self, name: str, first: int, last: int) -> Array:
        """Reads rows of one stored tensor; as `TensorFile.read_stored`."""
        return self._owner[name].read_stored(name, first, last)

    def read_bytes(self, name: str, first: int, last: int) -> Array:
        """Reads rows of one tensor of bytes; as `TensorFile.read_bytes`."""
        return self._owner[name].read_bytes(name, first, last)

    def close(self) -> None:
        """Closes every file; safe to call twice."""
        for file in self._open:
            file.close()

    def _find_quantized(self) -> None:
        found = find_quantized(self.folder, self.config, self._entries, self)
        if found is not None:
            self._entries, self.matrices = found.entries, found.matrices
            self.method = found.method
            self.files.update(path.resolve() for path in found.files)
            self.config = plain_config(self.config)

    def _open_weights(self) -> None:
        for name, opener in _SINGLE:
            single = self.folder / name
            index = self.folder / f"{name}.index.json"
            if single.is_file():
                self._add(opener(single))
                return
            if index.is_file():
                self._open_shards(index, opener)
                return
        names = [n for single, _ in _SINGLE for n in (single, f"{single}.index.json")]
        raise ConversionError(f"{self.folder}: expected one of {', '.join(names)}, found none")

    def _open_shards(self, index: Path, opener: _Opener) -> None:
        self.files.add(index.resolve())
        weight_map = read_object(index, unique=True).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ConversionError(
                f"{index}: weight_map: expected an object that is not empty, "
                f"found {type(weight_map).__name__}"
            )
        shards: dict[str, set[str]] = {}
        for tensor, shard in weight_map.items():
            # A name with a folder in it could reach out of the checkpoint.
            if not isinstance(shard, str) or not shard or shard != Path(shard).name:
                raise ConversionError(
                    f"{index}: tensor {tensor!r}: expected a file name, found {shard!r}"
                )
            shards.setdefault(shard, set()).add(tensor)
        for shard in sorted(shards):
            path = self.folder / shard
            if not path.is_file():
                raise ConversionError(f"{index}: expected the file {shard}, found no such file")
            file = opener(path)
            self._add(file)
            missing = sorted(shards[shard] - file.entries.keys())
            if missing:
                raise ConversionError(
                    f"{path}: expected the tensor {missing[0]!r} as {index.name} says, found none"
                )
            extra = sorted(file.entries.keys() - shards[shard])
            if extra:
                listed = weight_map.get(extra[0])
                raise ConversionError(
                    f"{path}: tensor {extra[0]!r}: expected {index.name} to list it here, found "
                    + (f"it listed under {listed}" if listed else "it in no list")
                )

    def _add(self, file: TensorFile) -> None:
        self._open.append(file)
        self.files.add(file.path.resolve())
        self._owner.update((name, file) for name in file.entries)
