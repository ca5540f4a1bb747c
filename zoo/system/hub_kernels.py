"""Compiled code from a hub, which nobody asked for: bitsandbytes fetches some when it is imported, where `kernels` is installed.

Whoever imports it (diffusers and transformers do) finds `kernels` missing while the one module that asks is being imported, and
bitsandbytes then takes the code it came with. Its warning about that is left out.
"""

from __future__ import annotations

import logging
import sys
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

ASKS = "bitsandbytes.backends.cpu.ops"
PACKAGE = "kernels"


class _WithoutKernels(SourceFileLoader):
    """Imports a module for which the package is missing."""

    def exec_module(self, module: ModuleType) -> None:
        before = sys.modules.get(PACKAGE)
        sys.modules[PACKAGE] = None  # type: ignore[assignment]  # what Python takes for missing
        try:
            super().exec_module(module)
        finally:
            del sys.modules[PACKAGE]
            if before is not None:
                sys.modules[PACKAGE] = before


class _Finder:
    """Stands before Python's own finders and answers for one module."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name == ASKS else None
        if spec is not None and spec.origin:
            spec.loader = _WithoutKernels(name, spec.origin)
        return spec


def leave_on_the_hub() -> None:
    """Keep bitsandbytes from asking, whoever imports it from now on."""
    if _Finder not in sys.meta_path:
        sys.meta_path.insert(0, _Finder)
        logging.getLogger(ASKS).addFilter(lambda record: "gemm_4bit" not in record.getMessage())
