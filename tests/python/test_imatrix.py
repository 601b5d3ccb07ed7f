"""Importance matrices: files of gguf-py read, ours read by gguf-py, hostile files refused."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from pyengine import ArgumentError, ModelFileError, ModelFormatError
from quantizers import Imatrix, ImatrixEntry, read_imatrix, write_imatrix

Array = np.ndarray[Any, Any]
NAMES = ("blk.0.attn_q.weight", "blk.0.ffn_down_exps.weight")


def example() -> Imatrix:
    rng = np.random.default_rng(3)
    entries = {
        NAMES[0]: ImatrixEntry(rng.random((1, 8), np.float32) * 100, np.array([512], np.float32)),
        NAMES[1]: ImatrixEntry(
            rng.random((3, 8), np.float32) * 100, np.array([7, 0, 11], np.float32)
        ),
    }
    return Imatrix(entries, ("a.txt", "b.txt"), 4, 128)


def check_same(found: Imatrix, expected: Imatrix) -> None:
    assert found.datasets == expected.datasets
    assert (found.chunk_count, found.chunk_size) == (expected.chunk_count, expected.chunk_size)
    assert found.entries.keys() == expected.entries.keys()
    for name, entry in expected.entries.items():
        np.testing.assert_array_equal(found.entries[name].sums, entry.sums)
        np.testing.assert_array_equal(found.entries[name].counts, entry.counts)


def write_theirs(path: Path, tensors: dict[str, Array], kind: str = "imatrix") -> None:
    """As llama-imatrix writes it, which names no architecture, by gguf-py."""
    writer = gguf.GGUFWriter(path, "none")
    writer.add_string("general.type", kind)
    writer.add_array("imatrix.datasets", ["a.txt", "b.txt"])
    writer.add_uint32("imatrix.chunk_count", 4)
    writer.add_uint32("imatrix.chunk_size", 128)
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def theirs() -> dict[str, Array]:
    first, second = (example().entries[name] for name in NAMES)
    return {
        NAMES[0] + ".in_sum2": first.sums[0],
        NAMES[0] + ".counts": first.counts,
        NAMES[1] + ".in_sum2": second.sums,
        NAMES[1] + ".counts": second.counts[:, None],
    }


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "i.gguf"
    write_imatrix(path, example())
    check_same(read_imatrix(path), example())
    with pytest.raises(ModelFileError, match=r"i\.gguf"):
        write_imatrix(path, example())
    write_imatrix(path, example(), overwrite=True)


def test_gguf_py_reads_ours(tmp_path: Path) -> None:
    write_imatrix(tmp_path / "i.gguf", example())
    reader = gguf.GGUFReader(tmp_path / "i.gguf")
    assert reader.fields["general.type"].contents() == "imatrix"
    assert reader.fields["imatrix.datasets"].contents() == ["a.txt", "b.txt"]
    assert reader.fields["imatrix.chunk_count"].contents() == 4
    assert reader.fields["imatrix.chunk_size"].contents() == 128
    found = {tensor.name: tensor for tensor in reader.tensors}
    assert list(found) == list(theirs())
    for name, values in theirs().items():
        assert tuple(found[name].shape[::-1]) == values.shape
        np.testing.assert_array_equal(found[name].data, values)


def test_theirs_is_read(tmp_path: Path) -> None:
    write_theirs(tmp_path / "i.gguf", theirs())
    check_same(read_imatrix(tmp_path / "i.gguf"), example())


def test_importance() -> None:
    first, second = (example().entries[name] for name in NAMES)
    np.testing.assert_array_equal(first.importance(), first.sums / np.float32(512))
    found = second.importance(3)
    np.testing.assert_array_equal(found[0], second.sums[0] / np.float32(7))
    np.testing.assert_array_equal(found[1], np.ones(8))
    assert first.importance(4).shape == (4, 2)
    for n_experts in (2, 0, 5):
        with pytest.raises(ArgumentError, match="n_experts: expected 3"):
            second.importance(n_experts)


def old_file(trailer: bytes = b"") -> bytes:
    out = struct.pack("<i", 2)
    for name, calls in (("a.weight", 5), ("b", 0)):
        out += struct.pack("<i", len(name)) + name.encode()
        out += struct.pack("<ii3f", calls, 3, 10.0, 20.0, 30.0)
    return out + trailer


def test_older_format(tmp_path: Path) -> None:
    path = tmp_path / "i.dat"
    path.write_bytes(old_file(struct.pack("<ii", 9, 5) + b"c.txt"))
    found = read_imatrix(path)
    assert (found.datasets, found.chunk_count, found.chunk_size) == (("c.txt",), 9, 0)
    np.testing.assert_array_equal(found.entries["a.weight"].importance(), [[2, 4, 6]])
    np.testing.assert_array_equal(found.entries["b"].importance(), [[10, 20, 30]])
    path.write_bytes(old_file())
    assert read_imatrix(path).chunk_count == 0


def test_every_cut_of_the_older_format_is_refused(tmp_path: Path) -> None:
    whole = old_file(struct.pack("<ii", 9, 5) + b"c.txt")
    allowed = {len(old_file()), len(old_file()) + 4}
    for cut in range(len(whole)):
        (tmp_path / "i.dat").write_bytes(whole[:cut])
        if cut in allowed:
            read_imatrix(tmp_path / "i.dat")
            continue
        with pytest.raises(ModelFormatError, match=r"i\.dat"):
            read_imatrix(tmp_path / "i.dat")


@pytest.mark.parametrize("at", [0, 4, 16, 20])
@pytest.mark.parametrize("value", [-1, 2**31 - 1])
def test_hostile_counts_of_the_older_format(tmp_path: Path, at: int, value: int) -> None:
    data = bytearray(old_file())
    struct.pack_into("<i", data, at, value)
    if at == 16 and value > 0:
        return  # any number of calls will do
    (tmp_path / "i.dat").write_bytes(data)
    with pytest.raises(ModelFormatError, match=r"i\.dat"):
        read_imatrix(tmp_path / "i.dat")


def test_contradictions_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "i.gguf"

    def refused(match: str, kind: str = "imatrix", **changes: Array | None) -> None:
        tensors = theirs()
        for part, values in changes.items():
            del tensors[f"{NAMES[1]}.{part}"]
            if values is not None:
                tensors[f"{NAMES[1]}.{part}"] = values
        write_theirs(path, tensors, kind)
        with pytest.raises(ModelFormatError, match=match):
            read_imatrix(path)

    refused("expected 'imatrix', found 'model'", "model")
    refused("expected sums and counts", counts=None)
    refused("a count for each of 3 rows, found 2", counts=np.ones((2, 1), np.float32))
    refused("expected F32", in_sum2=np.ones((3, 8), np.float16))
    refused("expected finite sums", in_sum2=np.full((3, 8), np.nan, np.float32))
    refused("expected finite counts", counts=np.full((3, 1), -1, np.float32))
    write_theirs(path, {"other": np.ones(3, np.float32)})
    with pytest.raises(ModelFormatError, match="found no sums"):
        read_imatrix(path)
    with pytest.raises(ModelFileError, match="nowhere"):
        read_imatrix(tmp_path / "nowhere.gguf")


def test_bad_entries_are_not_written(tmp_path: Path) -> None:
    path = tmp_path / "i.gguf"
    ones = np.ones((2, 4), np.float32)
    with pytest.raises(ArgumentError, match="x: expected sums"):
        write_imatrix(path, Imatrix({"x": ImatrixEntry(ones, ones[0])}))
    with pytest.raises(ArgumentError, match="x: expected finite sums"):
        write_imatrix(path, Imatrix({"x": ImatrixEntry(-ones, ones[:, 0])}))
    with pytest.raises(ArgumentError, match="found none"):
        write_imatrix(path, Imatrix({}))
    assert not path.exists()
