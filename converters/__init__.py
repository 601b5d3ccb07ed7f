"""Offline tools that turn model checkpoints into GGUF files."""

from __future__ import annotations

from converters._adapter import convert_adapter
from converters._convert import convert
from converters._summary import Fallback, Import, Summary

__all__ = ["Fallback", "Import", "Summary", "convert", "convert_adapter"]
