"""Files compressed by zstd, read in bounded memory; a file that is damaged or cut off is told from a whole one."""

import io
import os
from typing import Any, BinaryIO


def open_zstd(path: str) -> BinaryIO:
    """The decompressed bytes of `path`; reading raises EOFError where the file is damaged or ends too early."""
    return io.BufferedReader(_Zstd(path))


class _Zstd(io.RawIOBase):
    def __init__(self, path: str):
        import zstandard

        self._error = zstandard.ZstdError
        self._file = open(path, "rb")  # noqa: SIM115  (closed by close)
        # Large corpora are often written with --long=31, whose window is beyond the library's own limit.
        decompressor = zstandard.ZstdDecompressor(max_window_size=2**31)
        self._stream = decompressor.stream_reader(self._file, read_across_frames=True)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            count = self._stream.readinto(buffer)
            # The library takes the end of a file for the end of the stream, wherever it falls.
            if not count and not _ends_whole(self._file):
                raise EOFError("the file ends inside a frame")
        except self._error as error:
            raise EOFError(str(error)) from error
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def _ends_whole(file: BinaryIO) -> bool:
    """Whether a file of frames ends where its last frame does; steps from block to block, reading their headers alone.

    Source: RFC 8878, sections 3.1.1 and 3.1.2.
    """
    import zstandard

    size, at = file.seek(0, os.SEEK_END), 0

    def peek(count: int) -> bytes:
        file.seek(at)
        return file.read(count)

    while at < size:
        head = peek(18)  # the longest header of a frame
        if head[1:4] == b"\x2a\x4d\x18" and head[0] >> 4 == 5:  # a frame to be skipped: pzstd writes them
            at += 8 + int.from_bytes(head[4:8], "little")
            continue
        at += zstandard.frame_header_size(head)
        last = False
        while not last:
            block = peek(3)
            if len(block) < 3:
                return False
            number = int.from_bytes(block, "little")
            last, repeated = bool(number & 1), number >> 1 & 3 == 1
            at += 3 + (1 if repeated else number >> 3)
        at += 4 * zstandard.get_frame_parameters(head).has_checksum
    return at == size
