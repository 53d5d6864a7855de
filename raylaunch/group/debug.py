"""Debug mode: a GPU that meets an error in a kernel writes a core dump, and the launch's error says how to open it.

The environment variables are those of CUDA's driver (CUDA-GDB manual, "GPU core dump support"); they work only if
they are set before a process uses CUDA. Every kernel is waited for, so that the rank's traceback names the right one.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from raylaunch.config import LaunchConfig

# Registers and code places say what failed; the memory of a large GPU would take minutes to write.
LEFT_OUT = (
    "skip_nonrelocated_elf_images", "skip_global_memory", "skip_shared_memory", "skip_local_memory",
    "skip_constbank_memory",
)  # fmt: skip


def core_file(config: LaunchConfig, device: str, group: str, rank: int) -> str:
    """Where a rank's GPU is to write a core dump; "" without debug mode, or on a CPU.

    Args:
        device: ``cuda`` or ``cpu``.
        group: the launch's unique name.
    """
    if config.debug == "off" or device != "cuda":
        return ""
    folder = Path(config.debug_folder) if config.debug_folder else Path(tempfile.gettempdir()) / "raylaunch-debug"
    return str(folder / f"{group}-rank{rank}.nvcudmp")


def debug_environment(core_file: str) -> dict[str, str]:
    """Variables of a rank whose GPU is to write its dump there; none for ""."""
    if not core_file:
        return {}
    return {
        "CUDA_LAUNCH_BLOCKING": "1",
        "CUDA_ENABLE_COREDUMP_ON_EXCEPTION": "1",
        "CUDA_COREDUMP_SHOW_PROGRESS": "1",
        "CUDA_COREDUMP_GENERATION_FLAGS": ",".join(LEFT_OUT),
        "CUDA_COREDUMP_FILE": core_file,
    }
