"""Memory that the processes of one host share, without a name in any file system.

A segment is a memfd: peers open ``/proc/<pid>/fd/<n>`` of the process that made it. Nothing can be left
behind in /dev/shm, whoever dies and when, and the size of /dev/shm does not matter.
"""

from __future__ import annotations

import errno
import math
import mmap
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from raylaunch.errors import RankFault

ALIGNMENT = 64
HEADER_BYTES = mmap.PAGESIZE
TOKEN_OFFSET = HEADER_BYTES - 64
TOKEN_BYTES = 16


def align(nbytes: int, to: int = ALIGNMENT) -> int:
    """The next multiple of `to` that is not below `nbytes`."""
    return (nbytes + to - 1) // to * to


def host_identity() -> str:
    """Equal in two processes exactly if they can share memory: kernel boot, pid namespace and user."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        boot = file.read().strip()
    return f"boot {boot}, {os.readlink('/proc/self/ns/pid')}, uid {os.getuid()}"


@dataclass(frozen=True)
class ArenaHandle:
    """How a peer finds a segment.

    Attributes:
        pid: process that made it.
        fd: its file descriptor there.
        nbytes: size.
        token: random bytes (hex) that the segment's header holds; proves that the right memory was mapped.
    """

    pid: int
    fd: int
    nbytes: int
    token: str = field(repr=False)


class Segment:
    """A mapped segment. Views keep the mapping alive, also after the segment itself is gone."""

    def __init__(self, name: str, storage: torch.UntypedStorage) -> None:
        self.name = name
        self.storage = storage

    @property
    def base(self) -> int:
        """Address of its first byte in this process."""
        return self.storage.data_ptr()

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.storage.nbytes()

    def view(self, offset: int, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """A contiguous tensor at a byte offset. Raises ValueError if it is not aligned or not inside."""
        end = offset + math.prod(shape) * dtype.itemsize
        if offset < 0 or offset % dtype.itemsize or end > self.nbytes:
            raise ValueError(f"segment {self.name}: bytes {offset} to {end} of {self.nbytes} cannot hold {dtype}")
        with torch.inference_mode(False):  # an inference tensor could not be written outside of inference mode
            flat = torch.empty(0, dtype=dtype).set_(self.storage, offset // dtype.itemsize, (math.prod(shape),), (1,))
            return flat.view(tuple(shape))


class Arena(Segment):
    """This process's own segment, and the allocator of its bytes. Nothing is ever re-issued."""

    def __init__(self, name: str, storage: torch.UntypedStorage, fd: int, token: str) -> None:
        super().__init__(name, storage)
        self._fd = fd
        self._token = token
        self._used = HEADER_BYTES

    @classmethod
    def create(cls, name: str, nbytes: int) -> Arena:
        """Makes a segment of at least `nbytes` and reserves all its pages.

        Raises:
            RankFault: F16 if the host does not give that memory or does not let it be mapped.
        """
        nbytes = align(max(nbytes, HEADER_BYTES), mmap.PAGESIZE)
        fd = -1
        try:
            fd = os.memfd_create(f"raylaunch-{name}")
            os.posix_fallocate(fd, 0, nbytes)  # not enough memory is an error here, and not a SIGBUS later
            storage = _map(os.getpid(), fd, nbytes)
        except (OSError, RuntimeError, AttributeError) as error:
            if fd >= 0:
                os.close(fd)
            why = "out of memory" if getattr(error, "errno", 0) in (errno.ENOSPC, errno.ENOMEM) else str(error)
            raise RankFault("F16", f"{name}: cannot make {nbytes} B of memory that peers can map: {why}") from error
        token = secrets.token_bytes(TOKEN_BYTES)
        arena = cls(name, storage, fd, token.hex())
        arena.view(TOKEN_OFFSET, (TOKEN_BYTES,), torch.uint8).copy_(
            torch.frombuffer(bytearray(token), dtype=torch.uint8)
        )
        return arena

    @property
    def free(self) -> int:
        """Bytes that `alloc` can still give."""
        return self.nbytes - align(self._used)

    def alloc(self, nbytes: int) -> int:
        """Byte offset of `nbytes` that nobody else has. Raises MemoryError, with what is left."""
        offset = align(self._used)
        if offset + nbytes > self.nbytes:
            raise MemoryError(f"{nbytes} B asked, {self.free} B left of {self.nbytes} B")
        self._used = offset + nbytes
        return offset

    def offset_of(self, tensor: torch.Tensor) -> int | None:
        """The tensor's byte offset, or None if it is not in this arena."""
        offset = tensor.data_ptr() - self.base
        return offset if offset >= 0 and offset + tensor.numel() * tensor.element_size() <= self.nbytes else None

    def handle(self) -> ArenaHandle:
        """What peers need to map it; valid until `close`."""
        return ArenaHandle(os.getpid(), self._fd, self.nbytes, self._token)

    def close(self) -> None:
        """Closes the descriptor: no peer can map it any more. The memory goes with the last mapping."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def open_segment(name: str, handle: ArenaHandle) -> Segment:
    """Maps a peer's segment.

    Raises:
        RankFault: F16 if it cannot be opened, or what was mapped is not the peer's segment.
    """
    try:
        size = os.stat(f"/proc/{handle.pid}/fd/{handle.fd}").st_size
        if size != handle.nbytes:
            raise RuntimeError(f"it has {size} B, {handle.nbytes} B were announced")
        segment = Segment(name, _map(handle.pid, handle.fd, handle.nbytes))
    except (OSError, RuntimeError) as error:
        raise RankFault("F16", f"cannot map the memory of {name} (pid {handle.pid}): {error}") from error
    token = bytes(segment.view(TOKEN_OFFSET, (TOKEN_BYTES,), torch.uint8).tolist()).hex()
    if token != handle.token:
        raise RankFault("F16", f"what was mapped for {name} (pid {handle.pid}) is not its segment: tokens differ")
    return segment


def _map(pid: int, fd: int, nbytes: int) -> torch.UntypedStorage:
    return torch.UntypedStorage.from_file(f"/proc/{pid}/fd/{fd}", shared=True, nbytes=nbytes)
