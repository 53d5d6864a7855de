"""Which files of raylaunch a process has imported: driver and ranks must have the same ones."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable


def package_files() -> tuple[str, str]:
    """A digest of the Python files of this package and of its ranks' side, and the folder of this package."""
    folder = os.path.dirname(os.path.abspath(__file__))
    return digest_of_package(folder), folder


def digest_of_package(folder: str) -> str:
    """The same of the ``raylaunch`` in a folder."""
    return digest_of([folder, ranks_side(folder)])


def ranks_side(folder: str) -> str:
    """Where the ranks' side of the ``raylaunch`` in a folder lies: in the same checkout, or installed beside it."""
    above = os.path.dirname(folder)
    in_checkout = os.path.join(above, "actors", "raylaunch_actors")
    return in_checkout if os.path.isdir(in_checkout) else os.path.join(above, "raylaunch_actors")


def digest_of(folders: Iterable[str]) -> str:
    """A digest of names and contents of the Python files below these folders; 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for top in folders:
        for folder, below, files in os.walk(top):
            below.sort()
            for name in sorted(files):
                if name.endswith(".py"):
                    file = os.path.join(folder, name)
                    digest.update(f"{os.path.relpath(file, top)}\0".encode())
                    with open(file, "rb") as content:
                        digest.update(content.read())
    return digest.hexdigest()[:16]
