"""Offline tools that choose how the weights of a model are quantized."""

from __future__ import annotations

from quantizers._imatrix import Imatrix, ImatrixEntry, read_imatrix, write_imatrix

__all__ = ["Imatrix", "ImatrixEntry", "read_imatrix", "write_imatrix"]
