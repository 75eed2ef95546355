"""File contents in tests, which a failing comparison names instead of printing."""

import google_crc32c


class Content(bytes):
    """The bytes of a file, shown by size and checksum, because pytest would spend hours on the
    difference of megabytes.
    """

    def __repr__(self) -> str:
        return f"<{len(self)} bytes, CRC-32C {google_crc32c.value(bytes(self)):08x}>"
