"""IDX files, in which MNIST and its relatives come."""

import gzip
import hashlib
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from torchmor.experiments.data.labelled import DataError

#: First bytes of a file of unsigned bytes; the fourth one is the number of dimensions.
_UNSIGNED_BYTES = b"\0\0\x08"


def read_idx(path: Path, md5: str | None = None) -> np.ndarray:
    """Read an IDX file of unsigned bytes, gzip-compressed if its name ends in .gz.

    Parameters
    ----------
    path
        The file.
    md5
        Checksum of its decompressed content; None checks the format only.

    Returns
    -------
    ndarray
        uint8, of the shape that the file says.

    Raises
    ------
    DataError
        The file is no such file, is cut off, or has another checksum.
    OSError
        The file is missing, or may not be read.
    """
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise DataError(f"expected a gzip file in {path}, got a damaged one ({error}): get it again") from error
    if content[:3] != _UNSIGNED_BYTES or len(content) < 4 * (1 + content[3]):
        raise DataError(
            f"expected an IDX file of unsigned bytes in {path}, got one that begins with {content[:4].hex(' ')}: get "
            "it again"
        )
    shape = struct.unpack(f">{content[3]}I", content[4 : 4 * (1 + content[3])])
    values = np.frombuffer(content, np.uint8, offset=4 * (1 + len(shape)))
    if len(values) != math.prod(shape):
        raise DataError(
            f"expected {math.prod(shape):,} values of shape {shape} in {path}, got {len(values):,}: get it again"
        )
    if md5 is not None:
        check(content, md5, str(path))
    return values.reshape(shape)


def write_idx(values: np.ndarray) -> bytes:
    """Return the content of an IDX file of an array of unsigned bytes."""
    header = _UNSIGNED_BYTES + bytes([values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    return header + np.ascontiguousarray(values, np.uint8).tobytes()


def check(content: bytes, md5: str, where: str) -> None:
    """Check what was read against its known checksum.

    Raises
    ------
    DataError
        It is another one.
    """
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5:
        raise DataError(f"expected data with the MD5 checksum {md5} from {where}, got {found}: get it again")
