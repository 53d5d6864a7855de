"""Keeps what libraries say while they are imported from drowning the lines of a launch."""

from __future__ import annotations

import logging
import os
import warnings


def quiet_libraries() -> None:
    """For a command's own process: no Python warnings, no bars of the Hub's library, SGLang's errors only.

    What SGLang says about its settings is in the ranks' logs as well. Errors, ours too, are shown as before.
    """
    warnings.simplefilter("ignore")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # a launch says itself how much has arrived
    logging.getLogger("sglang").setLevel(logging.ERROR)
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)  # of torchao's import
