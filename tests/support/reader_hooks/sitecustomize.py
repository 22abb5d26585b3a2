"""Put on a reading process's path by tests: its decompressor dies, hangs or eats memory where the data says so.

That is what a damaged file does to a reader in C; here it is done on purpose, in the real process, on the real path.
"""

import contextlib
import os
import time
import zlib

_real = zlib.decompressobj


class _Treacherous:
    def __init__(self, *arguments, **named):
        self._inner = _real(*arguments, **named)

    def decompress(self, data, *arguments):
        out = self._inner.decompress(data, *arguments)
        if b"PLEASE-ABORT" in out:
            os.abort()
        if b"ABORT-ONCE" in out:
            with contextlib.suppress(FileExistsError):
                os.close(os.open(os.environ["READER_ABORTED_FILE"], os.O_CREAT | os.O_EXCL))
                os.abort()
        if b"PLEASE-HANG" in out:
            with open(os.environ["READER_PID_FILE"], "w") as file:
                file.write(str(os.getpid()))
            time.sleep(3600)
        if b"PLEASE-EAT" in out:
            hoard = []
            while True:
                hoard.append(bytearray(64 << 20))
        if b"PLEASE-RAISE" in out:
            raise KeyError("what nobody foresaw")
        return out

    def __getattr__(self, name):
        return getattr(self._inner, name)


zlib.decompressobj = _Treacherous
