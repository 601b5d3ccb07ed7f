"""Offline tools that choose how the weights of a model are quantized."""

from __future__ import annotations

from quantizers._imatrix import Imatrix, ImatrixEntry, read_imatrix, write_imatrix
from quantizers._quantize import Report, quantize

__all__ = ["Imatrix", "ImatrixEntry", "Report", "quantize", "read_imatrix", "write_imatrix"]
