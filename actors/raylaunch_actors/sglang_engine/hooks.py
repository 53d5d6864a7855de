"""Puts hooks on methods of another package, and takes them out again."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from raylaunch.errors import RankFault
from raylaunch.sglang.source import Hook

Wrapper = Callable[[Callable[..., Any]], Callable[..., Any]]
"""Told the original function, gives the one to call instead."""


@dataclass(frozen=True)
class Seam:
    """A hook, and what makes the function to call instead."""

    hook: Hook
    wrap: Wrapper

    def __str__(self) -> str:
        return str(self.hook)


class Hooks:
    """The hooks of one process. ``install`` and ``remove`` may each be called once."""

    def __init__(self) -> None:
        self._replaced: list[tuple[Any, str, Any]] = []

    def install(self, seams: list[Seam]) -> None:
        """Hooks every seam, in order. Raises RankFault, naming the seam, if one is not there; all are out then."""
        try:
            for seam in seams:
                self._hook(seam)
        except BaseException:
            self.remove()
            raise

    def _hook(self, seam: Seam) -> None:
        hook = seam.hook
        if hook.only_with and importlib.util.find_spec(hook.only_with) is None:
            return
        try:
            owner: Any = importlib.import_module(hook.module)
            *names, name = hook.path.split(".")
            for inner in names:
                owner = getattr(owner, inner)
            original = getattr(owner, name)
        except (ImportError, AttributeError) as error:
            if hook.optional:
                return
            raise RankFault(None, f"this version of SGLang has no {hook}: {error}") from error
        self._replaced.append((owner, name, original))
        setattr(owner, name, seam.wrap(original))

    def remove(self) -> None:
        """Puts every original back, the last one first."""
        while self._replaced:
            owner, name, original = self._replaced.pop()
            setattr(owner, name, original)
