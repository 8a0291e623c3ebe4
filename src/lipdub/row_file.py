"""Rows of numbers in an unnamed temporary file, so that memory does not grow with the length of a video or a speech."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

_BUFFERED_ROWS = 256


@dataclass(slots=True)
class RowFile:
    """Rows of `width` float32 numbers, numbered in the order in which they were added. For one thread at a time."""

    width: int
    count: int = 0
    _file: IO[bytes] = field(default_factory=tempfile.TemporaryFile)
    _waiting: list[NDArray[np.float32]] = field(default_factory=list)
    _waiting_rows: int = 0

    def add(self, row: NDArray[np.floating[Any]]) -> int:
        """Store one row (width,); its number."""
        self.extend(row[np.newaxis])
        return self.count - 1

    def extend(self, rows: NDArray[np.floating[Any]]) -> None:
        """Store rows (n, width). Raises ``ValueError`` for another width."""
        if rows.ndim != 2 or rows.shape[1] != self.width:
            raise ValueError(f"a row has {self.width} numbers, got {rows.shape = }")
        self._waiting.append(np.array(rows, np.float32))
        self._waiting_rows += len(rows)
        self.count += len(rows)
        if self._waiting_rows >= _BUFFERED_ROWS:
            self._flush()

    def rows(self, numbers: NDArray[np.int64]) -> NDArray[np.float32]:
        """The rows of these numbers, float32 (n, width). All rows from the first to the last of them are read. Raises IndexError."""
        if len(numbers) == 0:
            return np.empty((0, self.width), np.float32)
        first, last = int(numbers.min()), int(numbers.max())
        if first < 0 or last >= self.count:
            raise IndexError(f"rows {first} to {last} asked for, there are {self.count}")
        self._flush()
        self._file.seek(4 * self.width * first)
        data = self._file.read(4 * self.width * (last + 1 - first))
        found: NDArray[np.float32] = np.frombuffer(data, np.float32).reshape(-1, self.width)[numbers - first]
        return found

    def close(self) -> None:
        """Give the file back."""
        self._file.close()

    def _flush(self) -> None:
        if self._waiting:
            self._file.seek(0, 2)
            data = memoryview(np.concatenate(self._waiting).tobytes())
            while data:
                data = data[self._file.write(data) :]
            self._waiting.clear()
            self._waiting_rows = 0
