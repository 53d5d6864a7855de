"""Which Ray cluster a launch joins."""

from __future__ import annotations

import os

from raylaunch.errors import ConfigError

VARIABLE = "RAY_ADDRESS"
CLIENT = "ray://"
NO_CLIENT = (
    "is of Ray Client, which is not supported: run this on the cluster with ray job submit, or there with HOST:PORT"
)


def cluster_to_join(address: str | None) -> str:
    """``address``, else ``RAY_ADDRESS``; "" where a private cluster is started: without either, or for ``local``.

    Raises:
        ConfigError: it is Ray Client's. What stands in a configuration is refused there.
    """
    target = address or os.environ.get(VARIABLE, "")
    if target.startswith(CLIENT):
        raise ConfigError(VARIABLE, target, NO_CLIENT)
    return "" if target == "local" else target
