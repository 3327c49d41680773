"""The parts of picture files, counted before a decoder spends its time on each of them.

A decoder reads every metadata segment, and passes over the whole picture for every scan of a
progressive JPEG, however small: 100 kB of scans keep it busy for seconds, 16 MB for minutes.
"""

import re

MAX_PARTS = 20_000
MAX_SCANS = 100

_QUICK_BYTES = 2**14
QUICK_PIXELS = 2**16  # of a picture that is quickly decoded and brought to another size
_QUICK_CHUNKS = 8
# Apart from the pixels, which are counted, none of them holds packed data of unknown size.
_PLAIN_CHUNKS = (b"PLTE", b"tRNS", b"IDAT", b"IEND", b"sRGB", b"gAMA", b"pHYs")

_PNG = b"\x89PNG\r\n\x1a\n"
_PLAIN_HEAD, _HEAD_BYTES = _PNG + b"\0\0\0\rIHDR", 33
_JPEG = b"\xff\xd8\xff"
# Not those inside a scan: escaped 0xFF, restart.
_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")
_ALONE, _END, _SCAN = (0x01, 0xD8), 0xD9, 0xDA  # markers; those alone have no segment behind


def excess_parts(data: bytes) -> str | None:
    """What of a PNG or JPEG file there is too much of, as words; None where it may be decoded."""
    if data.startswith(_PNG):
        return _excess_chunks(data)
    if data.startswith(_JPEG):
        return _excess_segments(data)
    return None


def decodes_quickly(data: bytes) -> bool:
    """Whether decoding surely takes less time than to have it done on another thread."""
    if len(data) > _QUICK_BYTES or data[:16] != _PLAIN_HEAD:
        return False
    width, height = (int.from_bytes(data[place : place + 4], "big") for place in (16, 20))
    place = _HEAD_BYTES
    for _ in range(_QUICK_CHUNKS):
        if place >= len(data):
            return width * height <= QUICK_PIXELS
        if data[place + 4 : place + 8] not in _PLAIN_CHUNKS:
            return False
        place += 12 + int.from_bytes(data[place : place + 4], "big")
    return False


def _excess_chunks(data: bytes) -> str | None:
    place = len(_PNG)
    for _ in range(MAX_PARTS):
        if place >= len(data):
            return None
        place += 12 + int.from_bytes(data[place : place + 4], "big")
    return f"more than {MAX_PARTS} chunks"


def _excess_segments(data: bytes) -> str | None:
    place, num_scans = 2, 0
    for _ in range(MAX_PARTS):
        found = _MARKER.search(data, place)
        if found is None or (kind := found[1][0]) == _END:
            return None
        num_scans += kind == _SCAN
        if num_scans > MAX_SCANS:
            return f"more than {MAX_SCANS} scans"
        place = found.end()
        if kind not in _ALONE:
            place += int.from_bytes(data[place : place + 2], "big")
    return f"more than {MAX_PARTS} segments"
