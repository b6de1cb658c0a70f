"""What a compressed file may become: a stranger's may hold a thousand times its size, or a million, in zeros."""

from __future__ import annotations

from pipeline.storage.errors import StorageError

FREE_BYTES = 64 * 2**20
MOST_TIMES = 300  # an honest list of numbered videos shrinks to a seventieth (zstd); deflate's most is a thousandth
FREE_ROWS = 2**20
MOST_ROWS_A_BYTE = 16  # that list has one row a byte; a column of one value has thousands


class Expansion:
    """Counts what one file has become so far.

    Args:
        uri: names the file in the error.
        size: its bytes.
    """

    def __init__(self, uri: str, size: int) -> None:
        self._uri = uri
        self._most = FREE_BYTES + MOST_TIMES * size
        self._bytes = 0

    def add(self, count: int) -> None:
        """More bytes have been made of it.

        Raises:
            StorageError: they are too many for a file of this size.
        """
        self._bytes += count
        if self._bytes > self._most:
            happened = f"its content is more than {MOST_TIMES} times as large as the file"
            raise StorageError(self._uri, happened, "check where it comes from, or give it as plain CSV")


def refuse_rows(uri: str, rows: int, size: int) -> None:
    """Rows are in a footer, which can claim any number.

    Raises:
        StorageError: they are too many for a file of this size.
    """
    if rows > FREE_ROWS + MOST_ROWS_A_BYTE * size:
        happened = f"claims {rows} rows in {size} bytes"
        raise StorageError(uri, happened, "check where it comes from, or give it as plain CSV")
