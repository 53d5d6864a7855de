"""Variables of the configuration on the driver's side, for as long as SGLang looks at them."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

PREFIX = "SGLANG_"
_one_at_a_time = threading.Lock()


@contextmanager
def switches(environment: Mapping[str, str]) -> Iterator[None]:
    """Sets those that are SGLang's own, which change the defaults that it settles, and puts the process's back. Others
    who want the same meanwhile wait.

    Args:
        environment: ``environment`` of the configuration, which the ranks get in full.
    """
    chosen = {name: value for name, value in environment.items() if name.startswith(PREFIX)}
    with _one_at_a_time:
        before = {name: os.environ.get(name) for name in chosen}
        os.environ.update(chosen)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
