"""Files on disk: opened once and mapped read-only, named for what they really are, written whole or not at all."""

from __future__ import annotations

import mmap
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from .errors import BiseError, FormatError

PICKLE = (
    "a PyTorch or Python pickle, which can run code: bise never loads pickles. Look for a .safetensors or .gguf of the "
    "same model, or convert it with safetensors.torch.save_file where you trust it"
)
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}


class Mapped:
    """A regular file, mapped read-only: `data` is (size,) uint8, and nothing is read until it is touched.
    changed is the time of its last change when it was opened, nanoseconds since 1970."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Raises FormatError for anything but a readable regular file with at least one byte."""
        self.path = Path(path)
        fd = _open_regular(self.path)
        try:
            status = os.fstat(fd)
            if status.st_size == 0:
                raise FormatError(f"{self.path}: the file is empty (0 bytes): download it again")
            self._map = mmap.mmap(fd, 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise FormatError(f"{self.path}: cannot be mapped: {error}") from None
        finally:
            os.close(fd)
        self.size, self.changed = len(self._map), status.st_mtime_ns
        self.data: NDArray[np.uint8] = np.frombuffer(self._map, np.uint8)

    def forget(self, part: np.ndarray) -> None:
        """Drop the pages of `part`, a view of `data`, from this process's memory; they are read again if touched."""
        if part.size and hasattr(mmap, "MADV_DONTNEED"):
            begin = part.ctypes.data - self.data.ctypes.data
            first = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE  # whole pages only: a neighbour may share the border
            length = (begin + part.size) // mmap.PAGESIZE * mmap.PAGESIZE - first
            if length > 0:
                self._map.madvise(mmap.MADV_DONTNEED, first, length)


def _open_regular(path: Path) -> int:
    """A file descriptor of a regular file. Opened first and looked at afterwards, so nothing can be swapped between;
    O_NONBLOCK, because opening a FIFO would wait for its writer."""
    try:
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        fd = os.open(path, flags)
    except FileNotFoundError:
        what = "is a link to a file that does not exist" if path.is_symlink() else "there is no such file"
        raise FormatError(f"{path}: {what}") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise FormatError(f"{path}: cannot be opened: {getattr(error, 'strerror', None) or error}") from None
    kind = stat.S_IFMT(os.fstat(fd).st_mode)
    if kind != stat.S_IFREG:
        os.close(fd)
        raise FormatError(f"{path}: is {_KINDS.get(kind, 'no file')}, expected a regular file")
    return fd


def opened(path: Path) -> BinaryIO:
    """A regular file, to be read from its beginning to its end. FormatError where it cannot be."""
    return os.fdopen(_open_regular(path), "rb")


def read_small(path: Path, most: int) -> bytes:
    """The whole of a small regular file. FormatError if it is longer than `most` bytes."""
    fd = _open_regular(path)
    with os.fdopen(fd, "rb") as file:
        size = os.fstat(fd).st_size
        if size > most:
            raise FormatError(f"{path}: {size:,} bytes, expected at most {most:,}")
        return file.read(most)


def looks_like(head: bytes) -> str:
    """What the first bytes of a file that is not what it should be are, in words for a person."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith(b"version https://git-lfs"):
        return "a git-LFS pointer, not the file itself: run git lfs pull, or download the file again"
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        return "an HTML page (an error or log-in page saved in the file's place): download it again"
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")) or (head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05"):
        return PICKLE
    for magic, what in _MAGICS.items():
        if head.startswith(magic):
            return what
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= 100_000_000:
        return "a safetensors file"
    if not head.strip(b"\0"):
        return "zeros (a download that was reserved and never filled): download it again"
    if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head):
        return f"a text that begins {head[:40].decode('ascii')!r}: download the file again"
    return f"unknown data that begins {head[:4].hex(' ')}"


_MAGICS = {
    b"GGUF": "a GGUF file",
    b"lmgg": "a GGML file of 2023, older than GGUF: download a GGUF of the same model",
    b"fmgg": "a GGML file of 2023, older than GGUF: download a GGUF of the same model",
    b"tjgg": "a GGML file of 2023, older than GGUF: download a GGUF of the same model",
    b"\x1f\x8b": "a gzip archive: unpack it first",
    b"\x28\xb5\x2f\xfd": "a Zstandard archive: unpack it first",
    b"7z\xbc\xaf\x27\x1c": "a 7-Zip archive: unpack it first",
    b"\x89HDF": "an HDF5 file",
    b"\x7fELF": "a program",
}


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write that takes `path`'s place only when the block ends well: written beside it, synced, renamed, and
    the folder synced. On any exception the old file is untouched and nothing is left behind."""
    path = Path(path)
    try:
        fd, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    except OSError as error:
        raise BiseError(f"{path}: cannot be written: {error.strerror}") from None
    try:
        with os.fdopen(fd, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
        _sync_folder(path.parent)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise BiseError(f"{path}: cannot be written: {error.strerror or error}") from None
        raise


@contextmanager
def building(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """A folder to fill that takes `folder`'s place only when the block ends well; at that place may be nothing, or an
    empty folder. On any exception nothing is left behind."""
    folder = Path(folder)
    try:
        part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
    except OSError as error:
        raise BiseError(f"{folder}: cannot be written: {error.strerror}") from None
    try:
        yield part
        part.chmod(0o777 & ~_umask())
        os.replace(part, folder)
        _sync_folder(folder.parent)
    except BaseException as error:
        shutil.rmtree(part, ignore_errors=True)
        if isinstance(error, OSError):
            raise BiseError(f"{folder}: cannot be written: {error.strerror or error}") from None
        raise


def _umask() -> int:
    mask = os.umask(0o077)  # the only way to read it is to set it
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable; some file systems refuse to sync a folder, which loses nothing else."""
    if hasattr(os, "O_DIRECTORY"):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        except OSError:
            pass
        finally:
            os.close(fd)
