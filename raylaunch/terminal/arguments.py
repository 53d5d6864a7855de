"""Arguments that cannot be used, whatever they are for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise

OF_FILES = ("--trace", "--output", "--data", "--plot", "--prompt-file")
"""Options whose value is a file's name, which may be of any bytes."""


def undecodable(arguments: Sequence[str]) -> str:
    """Why an argument cannot be used: it is not UTF-8, and no file's name; "" if all can be."""
    for before, argument in pairwise(("", *arguments)):
        option, separator, _ = argument.partition("=")
        of_file = before in OF_FILES or (separator and option in OF_FILES)
        config = not argument.startswith("-") and not before.startswith("-") and os.path.isfile(argument)
        if not (of_file or config) and any("\udc80" <= one <= "\udcff" for one in argument):
            shown = os.fsencode(argument).decode("utf-8", "backslashreplace")
            if "api" in before or "api_key" in argument or "api-key" in argument:
                shown = "..."
            name = before if before.startswith("-") else "argument"
            return f"{name} = {shown!r}: is not valid UTF-8, and only names of files may be: write it in UTF-8"
    return ""
