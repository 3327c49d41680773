"""Files made to break a decoder: none may do more than be refused."""

import io
import resource
import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from service.api.file_parts import MAX_PARTS, MAX_SCANS, decodes_quickly
from service.api.uploads import decode_image
from service.errors import InvalidRequest

STATUSES = {200, 413, 415, 422}
MAX_PIXELS = 1_000_000
SIGNATURE = b"\x89PNG\r\n\x1a\n"


def status_of(data: bytes) -> int:
    """200 when the picture decodes, else the status of the refusal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about damaged metadata
        try:
            upload = decode_image(
                data, size=(32, 32), fit="pad", max_pixels=MAX_PIXELS, param="image"
            )
        except InvalidRequest as error:
            return error.status if error.param == "image" else 0
    assert upload.pixels.shape == (3, 32, 32)
    return 200


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(*between: bytes, size: tuple[int, int] = (8, 8), pixels: bytes | None = None) -> bytes:
    """A grey PNG with chunks between its header and its pixels."""
    header = struct.pack(">IIBBBBB", *size, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes((size[0] + 1) * size[1])) if pixels is None else pixels
    parts = [chunk(b"IHDR", header), *between, chunk(b"IDAT", rows), chunk(b"IEND", b"")]
    return SIGNATURE + b"".join(parts)


def seeds() -> dict[str, bytes]:
    """Small files with all the metadata that a decoder reads."""
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 4), dtype=np.uint8)
    colours, exif = Image.fromarray(noise), Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    made = {}
    for name, image, file_type, options in (
        ("png", colours, "PNG", {}),
        ("palette", colours.convert("P"), "PNG", {"transparency": bytes(range(256))}),
        ("sixteen", Image.fromarray(noise[..., 0].astype(np.uint16) * 257), "PNG", {}),
        ("jpeg", colours.convert("RGB"), "JPEG", {}),
        ("progressive", colours.convert("L"), "JPEG", {"progressive": True}),
        ("cmyk", colours.convert("CMYK"), "JPEG", {}),
        ("webp", colours, "WEBP", {}),
        ("lossless", colours, "WEBP", {"lossless": True}),
    ):
        buffer = io.BytesIO()
        image.save(buffer, file_type, exif=exif, icc_profile=profile, **options)
        made[name] = buffer.getvalue()
    return made


SEEDS = seeds()


def with_checksums(data: bytes) -> bytes:
    """A PNG whose chunks are right about their checksums, so that their content is looked at."""
    parts, place = [data[:8]], 8
    while place + 12 <= len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        kind, body = data[place + 4 : place + 8], data[place + 8 : place + 8 + length]
        parts.append(data[place : place + 8] + body + struct.pack(">I", zlib.crc32(kind + body)))
        place += 12 + length
    return b"".join(parts)


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """Bytes changed, a part doubled, cut out or overwritten by another, or the end missing."""
    changed = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        place, length = int(rng.integers(0, len(changed))), int(rng.integers(1, 40))
        match int(rng.integers(0, 6)):
            case 0 | 1:
                changed[place] = int(rng.integers(0, 256))
            case 2:
                changed[place:place] = changed[place : place + length]
            case 3:
                del changed[place : place + length]
            case 4:
                changed[place : place + 4] = bytes(
                    rng.choice(np.array([0, 0x7F, 0xFF], np.uint8), 4)
                )
            case _:
                other = int(rng.integers(0, len(changed)))
                changed[place : place + length] = changed[other : other + length]
        changed = changed or bytearray(b"\0")
    return bytes(changed)


@pytest.mark.parametrize("name", SEEDS)
def test_mutated_files_are_decoded_or_refused(name):
    rng = np.random.default_rng(sum(name.encode()))
    met = []
    for _ in range(250):
        data = mutated(SEEDS[name], rng)
        if data.startswith(SIGNATURE):
            met.append(status_of(with_checksums(data)))
        met.append(status_of(data))
    assert set(met) <= STATUSES
    assert 422 in met
    assert 200 in met


@pytest.mark.parametrize("file_type", ["PNG", "WEBP", "MPO"])
def test_mutated_files_of_several_frames(file_type):
    frames = [Image.fromarray(np.full((24, 24, 3), value, np.uint8)) for value in (9, 99, 200)]
    buffer = io.BytesIO()
    frames[0].save(buffer, file_type, save_all=True, append_images=frames[1:])
    clean, rng = buffer.getvalue(), np.random.default_rng(1)
    assert status_of(clean) == (200 if file_type == "MPO" else 422)
    for _ in range(200):
        data = mutated(clean, rng)
        assert {status_of(data), status_of(with_checksums(data))} <= STATUSES


@settings(max_examples=150, deadline=None, database=None)
@given(
    kind=st.sampled_from([b"iCCP", b"zTXt", b"iTXt", b"tEXt", b"eXIf", b"tRNS", b"gAMA", b"PLTE"]),
    body=st.binary(max_size=60),
)
def test_any_chunk_content(kind, body):
    assert status_of(png(chunk(kind, body))) in STATUSES


@settings(max_examples=100, deadline=None, database=None)
@given(
    head=st.sampled_from(
        [SIGNATURE, b"\xff\xd8\xff\xe0", b"\xff\xd8\xff\xe1\x00\x20Exif\0\0", b"RIFF....WEBPVP8X"]
    ),
    rest=st.binary(max_size=200),
)
def test_nothing_but_a_beginning(head, rest):
    assert status_of(head + rest) in (413, 422)


def test_other_types_are_refused_by_their_content():
    image = Image.new("RGB", (16, 16), "red")
    files = [b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"\0\0\0\x18ftypheic" + bytes(64), b""]
    for file_type in ("GIF", "BMP", "TIFF", "ICO", "TGA", "PPM", "JPEG2000", "AVIF", "PCX"):
        buffer = io.BytesIO()
        image.save(buffer, file_type)
        files.append(buffer.getvalue())
    assert [status_of(data) for data in files] == [415] * len(files)


def test_sizes_of_nothing_and_of_everything():
    for size in ((0, 8), (8, 0), (0, 0)):
        assert status_of(png(size=size)) == 422
    for size in ((1001, 1000), (2**31 - 1, 1), (2**31 - 1, 2**31 - 1)):
        assert status_of(png(size=size, pixels=b"x")) == 413
    assert status_of(png(size=(2**32 - 1, 2**32 - 1), pixels=b"x")) == 413


@pytest.fixture(scope="module")
def bomb() -> bytes:
    """256 MiB of zeros in one or two MiB."""
    squeeze = zlib.compressobj(1)
    return b"".join(squeeze.compress(bytes(2**20)) for _ in range(256)) + squeeze.flush()


@pytest.mark.parametrize("kind", [b"iCCP", b"zTXt", b"iTXt", b"IDAT"])
def test_compressed_bombs_stay_small(kind, bomb):
    head = {b"iCCP": b"bomb\0\0", b"zTXt": b"bomb\0\0", b"iTXt": b"bomb\0\1\0\0\0", b"IDAT": b""}
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert status_of(png(chunk(kind, head[kind] + bomb))) in STATUSES
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 20_000


def test_many_bombs_stay_small():
    squeezed = b"name\0\0" + zlib.compress(bytes(2**20))
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert status_of(png(*[chunk(b"zTXt", squeezed)] * 500)) == 422
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 100_000


def refusal(data: bytes) -> str:
    with pytest.raises(InvalidRequest) as caught:
        decode_image(data, size=(32, 32), fit="pad", max_pixels=MAX_PIXELS, param="image")
    return caught.value.message


def progressive(num_more_scans: int) -> bytes:
    """A progressive JPEG whose last scan, which changes nothing, comes again and again."""
    buffer = io.BytesIO()
    Image.new("L", (900, 900), 128).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    last, end = data.rindex(b"\xff\xda"), data.rindex(b"\xff\xd9")
    return data[:end] + data[last:end] * num_more_scans + data[end:]


def test_scans_are_counted():
    assert status_of(progressive(MAX_SCANS - 20)) == 200
    assert "more than 100 scans" in refusal(progressive(MAX_SCANS))


def test_scans_of_thumbnails_and_of_what_follows_do_not_count():
    plain = SEEDS["jpeg"]
    scans = b"\xff\xda\0\x02" * 1000
    assert status_of(plain + scans) == 200
    segment = b"\xff\xe5" + struct.pack(">H", len(scans) + 2) + scans
    assert status_of(plain[:2] + segment + plain[2:]) == 200


def test_parts_are_counted():
    plain = SEEDS["jpeg"]
    for num_parts, allowed in ((MAX_PARTS - 30, True), (MAX_PARTS, False)):
        jpeg = plain[:2] + b"\xff\xfe\0\x02" * num_parts + plain[2:]
        chunks = png(chunk(b"prVt", b"") * num_parts)
        for data, name in ((jpeg, "segments"), (chunks, "chunks")):
            if allowed:
                assert status_of(data) == 200
            else:
                assert f"more than {MAX_PARTS} {name}" in refusal(data)


def test_what_follows_a_picture_is_dropped():
    """A picture that is an archive too: only its pixels go on."""
    for name, data in SEEDS.items():
        if name not in ("webp", "lossless"):  # their length is part of the header
            assert status_of(data + b"PK\x03\x04 an archive") == 200


def test_a_turned_picture_is_turned_once():
    """Orientation in both places of a PNG: the chunk and the text."""
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.new("RGB", (20, 10)).save(buffer, "PNG", exif=exif)
    upload = decode_image(
        buffer.getvalue(), size=(20, 10), fit="pad", max_pixels=MAX_PIXELS, param="image"
    )
    assert upload.source_size == (20, 10)
    assert upload.fitted == "none"


def test_only_what_decodes_quickly_for_certain_is_decoded_beside_other_requests():
    header = struct.pack(">IIBBBBB", 9000, 9000, 8, 0, 0, 0, 0)
    slow = {
        "large": png(size=(300, 300)),
        "large by a second header": png(chunk(b"IHDR", header)),
        "large by a header that comes late": png()[:8] + chunk(b"sRGB", b"\0") + png()[8:],
        "packed text": png(chunk(b"zTXt", b"key\0\0" + zlib.compress(bytes(1000)))),
        "a profile": png(chunk(b"iCCP", b"name\0\0" + zlib.compress(bytes(1000)))),
        "many chunks": png(*(chunk(b"pHYs", bytes(9)) for _ in range(8))),
        "many bytes": png(pixels=bytes(2**14)),
        "another type": SEEDS["jpeg"],
        "nothing": b"",
    }
    assert {name for name, data in slow.items() if decodes_quickly(data)} == set()
    assert decodes_quickly(png())
    assert decodes_quickly(png(chunk(b"sRGB", b"\0"), size=(256, 256)))
