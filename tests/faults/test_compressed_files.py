"""Flipped bits in compressed logs: the file is refused by name, or its rows are the same.

``python -m tests.faults.test_compressed_files 500`` tries as many flips per kind of file and prints a table.
"""

from __future__ import annotations

import bz2
import gzip
import io
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
import pytest
import zstandard
from tests.data.conftest import zip_bytes

from recpipe.data import readers
from recpipe.data.engines import connect
from recpipe.data.files.fetch import fetch

ROWS = 1500
LINES = [f"u{n * 31 % 211},i{n * 7919 % 997},{1_600_000_000 + n * 61}" for n in range(ROWS)]
TEXT = "\n".join(["u,i,t", *LINES, ""]).encode()
JSON = "".join('{{"u": "{}", "i": "{}", "t": {}}}\n'.format(*line.split(",")) for line in LINES).encode()
TABLE = pc.read_csv(io.BytesIO(TEXT))


def parquet(compression: str, **options: str) -> bytes:
    """Write with page checksums, as Spark does by default."""
    out = io.BytesIO()
    pq.write_table(TABLE, out, compression=compression, write_page_checksum=True, row_group_size=600, **options)
    return out.getvalue()


def zstd(content: bytes) -> bytes:
    """Compress with a checksum, as the command zstd does by default."""
    return zstandard.ZstdCompressor(write_checksum=True).compress(content)


FILES: dict[str, bytes] = {
    "log.csv.gz": gzip.compress(TEXT),
    "two members.csv.gz": gzip.compress(TEXT[:9000]) + gzip.compress(TEXT[9000:]),
    "named as text.csv": gzip.compress(TEXT),
    "log.jsonl.gz": gzip.compress(JSON),
    "log.csv.bz2": bz2.compress(TEXT[:9000]) + bz2.compress(TEXT[9000:]),
    "log.csv.zst": zstd(TEXT),
    "log.csv.zip": zip_bytes({"log.csv": TEXT}),
    "log.parquet": parquet("snappy"),
    "pages of version 2.parquet": parquet("zstd", data_page_version="2.0"),
    "uncompressed.parquet": parquet("none"),
}


def flipped(content: bytes, flips: int, seed: int) -> Iterator[tuple[int, bytes]]:
    """Yield copies with one flipped bit each, at seeded places, with the place in bits."""
    numbers = random.Random(seed)
    for _ in range(flips):
        place = numbers.randrange(8 * len(content))
        copy = bytearray(content)
        copy[place // 8] ^= 1 << place % 8
        yield place, bytes(copy)


def reader(folder: Path) -> Callable[[str, bytes], pa.Table]:
    """Return a function that writes a file, fetches it and reads its log, as ingest does."""
    con = connect({"memory_limit": "500MB", "threads": 1, "spill_folder": str(folder / "spill")})

    def read(name: str, content: bytes) -> pa.Table:
        (folder / name).write_bytes(content)
        options = {"columns": {"user_id": "u", "item_id": "i", "timestamp": "t"}}
        conf = {"source": "files", "files": {"interactions": name}, "options": options}
        return readers.read(conf, fetch(conf, folder), con).interactions.to_pyarrow()

    return read


def outcomes(name: str, folder: Path, flips: int, seed: int = 7) -> Counter[str]:
    """Count the flips after which a file is refused, or gives the same or other rows; name the places of the last."""
    read, counts = reader(folder), Counter[str]()
    expected = read(name, FILES[name])
    assert expected.num_rows == ROWS
    assert expected["problem"].null_count == ROWS
    for place, content in flipped(FILES[name], flips, seed):
        try:
            counts["same rows" if read(name, content).equals(expected) else f"other rows, bit {place}"] += 1
        except ValueError as error:
            counts["refused" if name in str(error) else f"refused without a name: {error}"] += 1
    return counts


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_refused_or_changes_no_row(name: str, tmp_path: Path) -> None:
    counts = outcomes(name, tmp_path, 20)
    assert counts.keys() <= {"refused", "same rows"}
    assert counts["refused"] > 14, "most bits are data"


if __name__ == "__main__":
    for file in FILES:
        with tempfile.TemporaryDirectory() as place_to_write:
            counts = outcomes(file, Path(place_to_write), int(sys.argv[1]))
            sys.stdout.write(f"{file:32} {dict(counts)}\n")
