"""Keeps what libraries say while they are imported from drowning the lines of a launch."""

from __future__ import annotations

import logging
import warnings


def quiet_libraries() -> None:
    """For a command's own process: no Python warnings, only errors of SGLang's driver side.

    What SGLang says about its settings is in the ranks' logs as well. Errors, ours too, are shown as before.
    """
    warnings.simplefilter("ignore")
    logging.getLogger("sglang").setLevel(logging.ERROR)
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)  # of torchao's import
