"""Types of the compiled module: what it holds is declared in native/include/pe_api.h."""

from typing import Any

ffi: Any
lib: Any
