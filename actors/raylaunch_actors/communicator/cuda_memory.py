"""GPU memory that processes of one host share: cudaMalloc and the cudaIpc calls, which torch does not offer.

Taken from the CUDA runtime that torch has loaded, so that both are of one version.
"""

from __future__ import annotations

import contextlib
import ctypes
from pathlib import Path

from raylaunch.errors import RankFault

HANDLE_BYTES = 64
BUFFER_ID = 7  # CU_POINTER_ATTRIBUTE_BUFFER_ID
NO_BUFFER = 0
LAZY_PEER_ACCESS = 1


class IpcHandle(ctypes.Structure):
    """``cudaIpcMemHandle_t``."""

    _fields_ = (("reserved", ctypes.c_byte * HANDLE_BYTES),)


class CudaRuntime:
    """The loaded CUDA runtime. ``load`` finds it; every call raises RankFault with CUDA's own words."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._driver: ctypes.CDLL | None = None
        library.cudaGetErrorString.restype = ctypes.c_char_p

    @classmethod
    def load(cls) -> CudaRuntime:
        """The runtime of this process. Raises RankFault if torch has loaded none."""
        for line in Path("/proc/self/maps").read_text().splitlines():
            path = line.rsplit(" ", 1)[-1]
            if "libcudart" in path:
                return cls(ctypes.CDLL(path))
        raise RankFault(None, "no CUDA runtime is loaded in this process: is torch a CUDA build?")

    def allocate(self, nbytes: int) -> int:
        """Zeroed memory of the current device, outside of torch's allocator. Returns its address."""
        pointer = ctypes.c_void_p()
        self._call("cudaMalloc", ctypes.byref(pointer), ctypes.c_size_t(nbytes))
        if not pointer.value:
            raise RankFault(None, f"cudaMalloc of {nbytes} bytes gave no address")
        try:
            self._call("cudaMemset", pointer, ctypes.c_int(0), ctypes.c_size_t(nbytes))
            self._call("cudaDeviceSynchronize")
        except RankFault:
            with contextlib.suppress(RankFault):
                self.free(pointer.value)
            raise
        return pointer.value

    def free(self, address: int) -> None:
        """Gives memory of ``allocate`` back."""
        self._call("cudaFree", ctypes.c_void_p(address))

    def buffer_of(self, address: int) -> int:
        """The number of the allocation that holds an address, which no later allocation gets; NO_BUFFER for none."""
        if self._driver is None:
            self._driver = ctypes.CDLL("libcuda.so.1")
        number = ctypes.c_ulonglong()
        code = self._driver.cuPointerGetAttribute(ctypes.byref(number), BUFFER_ID, ctypes.c_uint64(address))
        return number.value if code == 0 else NO_BUFFER

    def handle_of(self, address: int) -> bytes:
        """A handle by which another process of this host may open the allocation that begins at ``address``."""
        handle = IpcHandle()
        self._call("cudaIpcGetMemHandle", ctypes.byref(handle), ctypes.c_void_p(address))
        return bytes(handle.reserved)

    def open(self, handle: bytes) -> int:
        """The address in this process of a peer's memory."""
        pointer = ctypes.c_void_p()
        self._library.cudaIpcOpenMemHandle.argtypes = (ctypes.POINTER(ctypes.c_void_p), IpcHandle, ctypes.c_uint)
        self._call("cudaIpcOpenMemHandle", ctypes.byref(pointer), IpcHandle.from_buffer_copy(handle), LAZY_PEER_ACCESS)
        if not pointer.value:
            raise RankFault("F16", "cudaIpcOpenMemHandle gave no address")
        return pointer.value

    def close(self, address: int) -> None:
        """Unmaps what ``open`` mapped."""
        self._call("cudaIpcCloseMemHandle", ctypes.c_void_p(address))

    def _call(self, name: str, *arguments: object) -> None:
        code = getattr(self._library, name)(*arguments)
        if code != 0:
            self._library.cudaGetLastError()  # else torch would find this error later and blame something else
            text = self._library.cudaGetErrorString(code).decode()
            raise RankFault("F16" if "Ipc" in name else None, f"{name}: {text} (CUDA error {code})")
