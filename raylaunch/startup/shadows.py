"""Files of a user's that ranks would import in place of what they need, found before anything is launched.

Ray puts the driver's working directory and the folder of its script before everything else on its workers' path: a
``torch.py`` there is what a rank gets for torch. Imports the standard library alone, so that it can say so even where
the rest cannot be imported any more.
"""

from __future__ import annotations

import importlib.machinery
import os
import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from raylaunch.errors import ConfigError

OURS = ("raylaunch", "raylaunch_actors")
ROOTS = (
    "ray", "torch", "transformers", "safetensors", "pydantic", "pyyaml", "typer", "rich", "pyzmq", "msgspec", "psutil",
    "nvidia-ml-py", "numpy", "fastapi", "uvicorn", "starlette", "prometheus-client",
)  # fmt: skip
"""Distributions that the driver or a rank imports, with all that they can make use of."""

Tree = Mapping[str, Collection[str] | None]
"""What is in a folder, by name: None for a file, the names of its files for a folder."""


@dataclass(frozen=True)
class Shadow:
    """A file that is found in place of the module ``name``."""

    name: str
    file: str

    @property
    def is_package(self) -> bool:
        """Whether it is a whole package, as a patched copy of one is."""
        return os.path.basename(self.file).startswith("__init__.")


def importable(tree: Tree) -> dict[str, str]:
    """Modules that a folder offers: name to the file below it. A folder without ``__init__`` is none: a regular package
    that comes later on the path is preferred to it."""
    found: dict[str, str] = {}
    suffixes = importlib.machinery.all_suffixes()
    for entry, files in tree.items():
        if files is None:
            suffix = next((one for one in sorted(suffixes, key=len, reverse=True) if entry.endswith(one)), "")
            name = entry.removesuffix(suffix) if suffix else ""
            if name.isidentifier():
                found.setdefault(name, entry)
        elif inits := [f"__init__{suffix}" for suffix in suffixes if f"__init__{suffix}" in files]:
            found[entry] = os.path.join(entry, inits[0])  # before a module of the same name
    return found


def shadows(
    entries: Sequence[str],
    tree_of: Callable[[str], Tree],
    real: Callable[[str], str | None],
    deliberate: Collection[str] = (),
) -> list[Shadow]:
    """Which modules these folders take the place of.

    Args:
        entries: folders that come before all others on the path, first one first.
        tree_of: what is in a folder.
        real: file that a name means without these folders; "" if it has none, None if nothing else has that name.
        deliberate: folders that were put on the path by hand: a package in them is meant.
    """
    found: dict[str, Shadow] = {}
    for entry in entries:
        for name, file in importable(tree_of(entry)).items():
            other = real(name)
            shadow = Shadow(name, os.path.join(entry, file))
            meant = other is None or shadow.file == other or (entry in deliberate and shadow.is_package)
            if not meant or name in OURS:
                found.setdefault(name, shadow)
    return sorted(found.values(), key=lambda one: one.name)


def worker_entries(script: str, path: Sequence[str], cwd: str) -> tuple[str, ...]:
    """Folders that Ray puts before all others on its workers' path, first one first.

    Args:
        script: ``sys.argv[0]`` of the driver.
        path: its ``sys.path``.
        cwd: its working directory.
    """
    folder = os.path.dirname(os.path.realpath(script))
    return tuple(dict.fromkeys([cwd, folder] if script and folder in path else [cwd]))


# ---- with the file system ----------------------------------------------------------------------------------------


def require_unshadowed(sglang: bool = False) -> None:
    """Raises :class:`ConfigError` if the driver or its ranks would import a user's file in place of what they need.

    Args:
        sglang: whether the ranks import SGLang, too.
    """
    entries = _entries()
    by_hand = {os.path.realpath(one) for one in os.environ.get("PYTHONPATH", "").split(os.pathsep) if one}
    for one in shadows(entries, _tree, lambda name: _real(name, entries), by_hand):
        if one.name in OURS:
            if _is_other(one):
                raise _refused(one, f"ranks would import it, and this process has imported {_ours(one.name)}")
        elif one.name in sys.stdlib_module_names:
            raise _refused(one, f"it takes the place of Python's own module {one.name} in every rank")
        elif owner := _owner(one.name, (*ROOTS, "sglang") if sglang else ROOTS):
            raise _refused(one, f"it takes the place of {one.name} ({owner}) in every rank")


def _refused(shadow: Shadow, why: str) -> ConfigError:
    folder = os.path.dirname(os.path.dirname(shadow.file) if shadow.is_package else shadow.file)
    remedy = f"Ray has ranks look in {folder} first: rename it, or run from another folder"
    return ConfigError("import", shadow.file, f"{why}; {remedy}")


def _entries() -> tuple[str, ...]:
    if "ray._private.worker" in sys.modules:  # Ray itself, and no file of that name
        from raylaunch import ray_private

        if (folders := ray_private.workers_folders()) is not None:
            return tuple(os.path.realpath(one) for one in reversed(folders))
    try:
        cwd = os.getcwd()
    except FileNotFoundError:
        return ()
    path = [os.path.realpath(one or cwd) for one in sys.path]
    return worker_entries(sys.argv[0] if sys.argv else "", path, os.path.realpath(cwd))


def _tree(folder: str) -> dict[str, list[str] | None]:
    tree: dict[str, list[str] | None] = {}
    try:
        with os.scandir(folder) as found:
            for entry in found:
                if entry.name.isidentifier() and entry.is_dir():
                    tree[entry.name] = _names(entry.path)
                elif "." in entry.name and entry.is_file():
                    tree[entry.name] = None
    except OSError:
        return {}
    return tree


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _real(name: str, entries: Collection[str]) -> str | None:
    """File that a module comes from where the entries are not on the path; None if there is no such module."""
    if name in sys.builtin_module_names or importlib.machinery.FrozenImporter.find_spec(name) is not None:
        return None  # these come before any folder
    path = [one for one in sys.path if os.path.realpath(one or os.curdir) not in entries]
    found = importlib.machinery.PathFinder.find_spec(name, path)
    for finder in sys.meta_path if found is None else ():  # such as those of editable installations
        known = (
            importlib.machinery.BuiltinImporter,
            importlib.machinery.FrozenImporter,
            importlib.machinery.PathFinder,
        )
        if finder not in known and hasattr(finder, "find_spec"):
            found = found or finder.find_spec(name, None)
    if found is None:
        return "" if name in sys.stdlib_module_names else None
    return os.path.realpath(found.origin) if found.origin else ""


def _ours(name: str) -> str:
    module = sys.modules.get(name)
    return os.path.realpath(getattr(module, "__file__", None) or "") if module else _real(name, _entries()) or ""


def _is_other(shadow: Shadow) -> bool:
    """Whether what ranks would import of ours differs from what this process has: a copy of the same does no harm."""
    from raylaunch.package import digest_of, digest_of_package, ranks_side

    if not shadow.is_package:
        return True
    theirs, mine = os.path.dirname(shadow.file), os.path.dirname(os.path.dirname(__file__))
    if shadow.name == "raylaunch":
        return not os.path.samefile(theirs, mine) and digest_of_package(theirs) != digest_of_package(mine)
    mine = ranks_side(mine)
    return not os.path.samefile(theirs, mine) and digest_of([theirs]) != digest_of([mine])


def _owner(name: str, roots: Iterable[str]) -> str:
    """The installed distribution that a module is of, if the roots need it or can make use of it; else ""."""
    import importlib.metadata  # of many modules, one of which may be what is shadowed

    owners = {_normal(one) for one in importlib.metadata.packages_distributions().get(name, ())}
    return min(owners & _needed(roots), default="") if owners else ""


def _needed(roots: Iterable[str]) -> set[str]:
    """The roots, all that they require or can make use of, and what that requires."""
    import importlib.metadata

    needed: set[str] = set()
    waiting = [(_normal(root), True) for root in roots]  # first come, first served: roots before what others require
    while waiting:
        name, extras = waiting.pop(0)
        if name in needed:
            continue
        try:
            required = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        needed.add(name)
        for line in required:
            if extras or "extra ==" not in line.replace("'", '"').partition(";")[2]:
                waiting.append((_normal(re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0]), False))
    return needed


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
