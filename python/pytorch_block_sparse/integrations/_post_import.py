# SPDX-License-Identifier: Apache-2.0
"""Running a function once a module that may never be imported has been imported."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import warnings
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any


def when_imported(name: str, action: Callable[[], None]) -> None:
    """Runs `action` now if module `name` is imported already, else right after it is.

    `action` must not spoil the import of another library: if it raises, the exception becomes a
    warning.

    Args:
        name: full name of a module inside a package.
        action: called once without arguments.
    """
    if name in sys.modules:
        _run(action, name)
    else:
        sys.meta_path.insert(0, _Finder(name, action))


def _run(action: Callable[[], None], name: str) -> None:
    try:
        action()
    except Exception as error:
        warnings.warn(
            f"pytorch_block_sparse could not register itself with {name}: {error}", stacklevel=2
        )


class _Finder(importlib.abc.MetaPathFinder):
    """Finds one module as Python itself would, with a loader that runs the action afterwards."""

    def __init__(self, name: str, action: Callable[[], None]) -> None:
        self._name = name
        self._action = action

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._name:
            return None
        # The module lies in a package, so `path` is the package's own: no other finder is needed.
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self)
        return spec

    def loaded(self) -> None:
        sys.meta_path.remove(self)
        _run(self._action, self._name)


class _Loader(importlib.abc.Loader):
    """Another loader, with the action run after the module."""

    def __init__(self, loader: Any, finder: _Finder) -> None:
        self._loader = loader
        self._finder = finder

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        # From here on the module looks as if its own loader had been called.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        self._finder.loaded()
