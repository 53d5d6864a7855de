"""What ranks compare of their environment, and what of it nobody may read."""

from __future__ import annotations

import pytest
import torch

from actors.device import device_prints, driver_version
from actors.fingerprint import environment_prints


@pytest.mark.parametrize(
    ("name", "compared"),
    [
        ("NCCL_DEBUG", True),
        ("SGLANG_USE_AITER", True),
        ("OMP_NUM_THREADS", True),
        ("NCCL_SOCKET_IFNAME", False),  # names of interfaces differ from node to node
        ("HOME", False),
        ("RAYLAUNCH_API_KEY", False),  # the driver's, which only workers of its own node inherit
    ],
)
def test_f19_variables_that_change_results_are_compared(name, compared):
    prints = environment_prints({name: "1"}, "group")
    assert prints == ({f"environment variable {name}": "1"} if compared else {})


@pytest.mark.parametrize("name", ["SGLANG_API_KEY", "TORCH_HUB_TOKEN", "SGLANG_SECRET", "NCCL_PASSWORD"])
def test_f19_a_secret_is_compared_and_not_shown(name):
    def print_of(value, group="group"):
        return environment_prints({name: value}, group)[f"environment variable {name}"]

    assert "sesame" not in print_of("sesame")
    assert print_of("sesame") == print_of("sesame") != print_of("open")
    assert print_of("sesame", "another launch") != print_of("sesame")


def test_a_cpu_has_no_prints_of_a_gpu_and_no_driver_is_no_crash():
    assert device_prints(torch.device("cpu")) == {}
    assert driver_version()
