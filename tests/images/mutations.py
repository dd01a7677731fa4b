"""Damage that knows the format: fields, chunks, segments, directory entries and elements with wrong contents.

Each function takes a whole file and a random generator and returns another file. Checksums and lengths are put
right again most of the time, so that the damage gets past the first check.
"""

import gzip
import struct
import zlib
from collections.abc import Callable

import nibabel
import numpy as np

from tests.images.png_files import chunk

Mutation = Callable[[bytes, np.random.Generator], bytes]

NUMBERS = (
    0,
    1,
    2,
    3,
    4,
    7,
    8,
    16,
    255,
    256,
    32767,
    32768,
    65535,
    65536,
    1 << 24,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
)


def number(rng: np.random.Generator, limit: int = 1 << 32) -> int:
    """Often a number at the edge of a type, else any."""
    return int(rng.choice(NUMBERS) if rng.random() < 0.6 else rng.integers(0, 1 << 32)) % limit


def noise(rng: np.random.Generator, most: int = 64) -> bytes:
    """Random bytes."""
    return rng.integers(0, 256, int(rng.integers(0, most)), np.uint8).tobytes()


def anything(content: bytes, rng: np.random.Generator) -> bytes:
    """Bits flipped, bytes overwritten, taken out, doubled, put in, or the end cut off; knows no format."""
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 4))):
        if not data:
            break
        at, length = int(rng.integers(0, len(data))), int(rng.integers(1, 16))
        match int(rng.integers(0, 6)):
            case 0:
                data[at] ^= 1 << int(rng.integers(0, 8))
            case 1:
                data[at : at + length] = noise(rng, length + 1)
            case 2:
                del data[at : at + length]
            case 3:
                data[at:at] = data[at : at + length]
            case 4:
                data[at : at + 4] = struct.pack("<I" if rng.random() < 0.5 else ">I", number(rng))
            case 5:
                del data[at:]
    return bytes(data)


def png(content: bytes, rng: np.random.Generator) -> bytes:
    """Header fields, line filters, chunks of all kinds; checksums fit unless they are what is wrong."""
    parts, at = [], 8
    while at + 12 <= len(content):
        (length,) = struct.unpack(">I", content[at : at + 4])
        parts.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += 12 + length
    names = [name for name, _ in parts]
    match int(rng.integers(0, 7)):
        case 0:
            fields = list(struct.unpack(">IIBBBBB", parts[0][1]))
            i = int(rng.integers(0, 7))
            fields[i] = number(rng, 1 << 32) if i < 2 else number(rng, 256)
            if rng.random() < 0.5:
                fields[i] = int(rng.integers(0, 20))
            parts[0] = (b"IHDR", struct.pack(">IIBBBBB", *fields))
        case 1 | 2:
            i = names.index(b"IDAT")
            rows = bytearray(zlib.decompress(b"".join(body for name, body in parts if name == b"IDAT")))
            for _ in range(int(rng.integers(1, 5))):
                rows[int(rng.integers(0, len(rows)))] = int(rng.integers(0, 8))
            rows = rows[: int(rng.integers(1, len(rows) + 1))] if rng.random() < 0.5 else rows + noise(rng)
            parts[i] = (b"IDAT", zlib.compress(bytes(rows)))
        case 3:
            i = int(rng.integers(0, len(parts)))
            parts[i:i] = [parts[int(rng.integers(0, len(parts)))]]
        case 4:
            del parts[int(rng.integers(0, len(parts)))]
        case 5:
            kinds = (
                b"tRNS",
                b"PLTE",
                b"eXIf",
                b"iCCP",
                b"zTXt",
                b"iTXt",
                b"acTL",
                b"fcTL",
                b"fdAT",
                b"gAMA",
                b"pHYs",
            )
            body = noise(rng)
            if rng.random() < 0.5:
                body = b"a\0\0" + zlib.compress(bytes(int(rng.integers(0, 1 << 20))))
            parts.insert(
                int(rng.integers(1, len(parts) + 1)), (kinds[int(rng.integers(0, len(kinds)))], body)
            )
        case 6:
            i = int(rng.integers(0, len(parts)))
            parts[i] = (parts[i][0], anything(parts[i][1] or b"\0", rng))
    made = content[:8] + b"".join(chunk(name, body) for name, body in parts)
    return anything(made, rng) if rng.random() < 0.15 else made


def jpeg(content: bytes, rng: np.random.Generator) -> bytes:
    """Segments changed, doubled, taken out, put in; sizes, components and tables among them."""
    parts, at = [], 2
    while at + 4 <= len(content) and content[at + 1] != 0xDA:
        (length,) = struct.unpack(">H", content[at + 2 : at + 4])
        parts.append((content[at + 1], content[at + 4 : at + 2 + length]))
        at += 2 + length
    scan = content[at:]
    i = int(rng.integers(0, len(parts)))
    match int(rng.integers(0, 6)):
        case 0:
            i = next(n for n, (marker, _) in enumerate(parts) if 0xC0 <= marker <= 0xC2)
            body = bytearray(parts[i][1])
            where = int(rng.integers(0, len(body)))
            body[where] = number(rng, 256)
            parts[i] = (parts[i][0], bytes(body))
        case 1:
            parts[i] = (parts[i][0], anything(parts[i][1] or b"\0", rng))
        case 2:
            parts.insert(i, parts[int(rng.integers(0, len(parts)))])
        case 3:
            del parts[i]
        case 4:
            exif = b"Exif\0\0" + (anything(EXIF, rng) if rng.random() < 0.7 else noise(rng))
            kind = (0xE1, 0xE2, 0xED, 0xEE, 0xDD)[int(rng.integers(0, 5))]
            parts.insert(0, (kind, exif if kind == 0xE1 else noise(rng)))
        case 5:
            scan = anything(scan, rng)
    body = b"".join(b"\xff" + bytes([m]) + struct.pack(">H", len(b) + 2) + b for m, b in parts)
    return content[:2] + body + scan


EXIF = struct.pack("<2sHIHHHIHHI", b"II", 42, 8, 1, 0x0112, 3, 1, 6, 0, 0)  # orientation 6


def tiff(content: bytes, rng: np.random.Generator) -> bytes:
    """Entries of the directories: tag, type, count, value; links between directories; descriptions."""
    data = bytearray(content)
    order = "<" if data[:2] == b"II" else ">"
    directories, at = [], struct.unpack(f"{order}I", data[4:8])[0]
    while at and at + 2 <= len(data) and at not in directories:
        directories.append(at)
        count = struct.unpack(f"{order}H", data[at : at + 2])[0]
        link = at + 2 + 12 * count
        at = struct.unpack(f"{order}I", data[link : link + 4])[0]
    for _ in range(int(rng.integers(1, 3))):
        at = directories[int(rng.integers(0, len(directories)))]
        count = struct.unpack(f"{order}H", data[at : at + 2])[0]
        entry = at + 2 + 12 * int(rng.integers(0, max(1, min(count, 30))))
        match int(rng.integers(0, 7)):
            case 0:
                tags = (
                    254,
                    256,
                    257,
                    258,
                    259,
                    262,
                    270,
                    273,
                    274,
                    277,
                    278,
                    279,
                    282,
                    284,
                    317,
                    320,
                    322,
                    338,
                    339,
                    34675,
                )
                data[entry : entry + 2] = struct.pack(f"{order}H", int(rng.choice(tags)))
            case 1:
                data[entry + 2 : entry + 4] = struct.pack(f"{order}H", int(rng.integers(0, 20)))
            case 2:
                data[entry + 4 : entry + 8] = struct.pack(f"{order}I", number(rng))
            case 3 | 4:
                small = int(rng.integers(0, 12))
                value = small if rng.random() < 0.5 else number(rng)
                data[entry + 8 : entry + 12] = struct.pack(f"{order}I", value)
            case 5:
                link = at + 2 + 12 * count
                target = (
                    directories[int(rng.integers(0, len(directories)))] if rng.random() < 0.5 else number(rng)
                )
                data[link : link + 4] = struct.pack(f"{order}I", target)
            case 6:
                where = max(data.find(b"slices="), data.find(b"SizeZ="), data.find(b"images="))
                if where > 0:
                    data[where + 7 : where + 8] = noise(rng, 4)
                else:
                    data[at : at + 2] = struct.pack(f"{order}H", number(rng, 1 << 16))
    return anything(bytes(data), rng) if rng.random() < 0.15 else bytes(data)


def nifti(content: bytes, rng: np.random.Generator) -> bytes:
    """Fields of the header: dimensions, types, offsets, scales, both forms."""
    header = np.frombuffer(content[:348], nibabel.Nifti1Header.template_dtype).copy()
    names = [
        n
        for n in header.dtype.names
        if n not in ("descrip", "aux_file", "intent_name", "db_name", "data_type")
    ]
    for _ in range(int(rng.integers(1, 4))):
        name = ("dim", "datatype", "vox_offset", "pixdim")[int(rng.integers(0, 4))]
        name = name if rng.random() < 0.5 else str(rng.choice(names))
        field = header[name].reshape(-1) if header[name].ndim > 1 else header[name]
        i = int(rng.integers(0, field.size))
        if field.dtype.kind in "iu":
            small = int(rng.integers(-2, 9))
            value = small if rng.random() < 0.5 else number(rng)
            with np.errstate(all="ignore"):
                field[i] = np.array(value).astype(field.dtype)
        elif field.dtype.kind == "f":
            field[i] = rng.choice(
                [0, -1, np.nan, np.inf, 1e30, 1e-40, 352, 353, 1e9, -5.5, float(number(rng))]
            )
        else:
            field[i] = noise(rng, 4)
        header[name] = field.reshape(header[name].shape)
    made = header.tobytes() + content[348:]
    return anything(made, rng) if rng.random() < 0.15 else made


def nifti_gz(content: bytes, rng: np.random.Generator) -> bytes:
    """The same in a gzip file, which may be cut off, damaged, or have further members."""
    raw = gzip.decompress(content)
    made = gzip.compress(nifti(raw, rng) if rng.random() < 0.7 else raw, 1, mtime=0)
    match int(rng.integers(0, 5)):
        case 0:
            return made[: int(rng.integers(0, len(made)))]
        case 1:
            return anything(made, rng)
        case 2:
            return made + gzip.compress(bytes(1 << 22), 1)
        case _:
            return made


def npy(content: bytes, rng: np.random.Generator) -> bytes:
    """The header's text: shape, type, order."""
    end = 10 + struct.unpack("<H", content[8:10])[0]
    text = content[10:end].decode("latin-1")
    shapes = (
        "()",
        "(0, 4)",
        "(-1, 4)",
        "(99999999999, 9)",
        "(5, 6, 3), (1,)",
        "(True, 5)",
        "(5, 6, 1, 3)",
        "(2**40,)",
    )
    kinds = (
        "'|O'",
        "'<c8'",
        "'<f16'",
        "'<U9'",
        "'<M8[s]'",
        "[('a', '<i4')]",
        "'|V8'",
        "'>i2'",
        "'<f8'",
        "None",
    )
    if rng.random() < 0.4:
        text = text.replace("(7, 5, 3)", str(rng.choice(shapes)))
    elif rng.random() < 0.6:
        text = text.replace("'|u1'", str(rng.choice(kinds)))
    else:
        text = anything(text.encode("latin-1"), rng).decode("latin-1")
    head = text.encode("latin-1")
    made = content[:8] + struct.pack("<H", len(head) % 65536) + head + content[end:]
    return anything(made, rng) if rng.random() < 0.2 else made


SYNTAXES = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99",
            "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.80",
            "1.2.840.10008.1.2.4.90", "1.2.3")  # fmt: skip
_LONG = (b"OB", b"OW", b"SQ", b"UN", b"UT", b"OF", b"OD", b"OL", b"UC", b"UR")


def dicom(content: bytes, rng: np.random.Generator) -> bytes:
    """Elements of the data set: tag, kind, length, value, doubled, taken out; the transfer syntax."""
    if b"1.2.840.10008.1.2\0" in content[:400]:  # implicit VR has other elements
        return anything(content, rng)
    elements, at = [], 132
    while at + 8 <= len(content):
        long = content[at + 4 : at + 6] in _LONG
        head = 12 if long else 8
        length = struct.unpack(
            "<I" if long else "<H", content[at + 8 : at + 12] if long else content[at + 6 : at + 8]
        )[0]
        end = len(content) if length == 0xFFFFFFFF else at + head + length
        elements.append(
            [content[at : at + 4], content[at + 4 : at + 6], content[at + head : end], length == 0xFFFFFFFF]
        )
        at = end
    out = bytearray(content[:132])
    chosen = int(rng.integers(0, len(elements)))
    if rng.random() < 0.5:  # the group that pixels and geometry depend on
        chosen = int(
            rng.choice([i for i, e in enumerate(elements) if e[0][:2] in (b"\x28\0", b"\x20\0", b"\xe0\x7f")])
        )
    action = int(rng.integers(0, 9))
    for i, (tag, kind, value, open_end) in enumerate(elements):
        length = 0xFFFFFFFF if open_end else len(value)
        if i == chosen:
            match action:
                case 0:
                    continue
                case 1:
                    kinds = (
                        b"US",
                        b"UL",
                        b"DS",
                        b"IS",
                        b"SQ",
                        b"OB",
                        b"OW",
                        b"UN",
                        b"LO",
                        b"FD",
                        b"AT",
                        b"ZZ",
                        b"PN",
                        b"UI",
                    )
                    kind = kinds[int(rng.integers(0, len(kinds)))]
                case 2:
                    length = number(rng, 1 << 32)
                case 3 | 4:
                    numbers = (
                        b"-1",
                        b"0",
                        b"1e400",
                        b"nan",
                        b"0\\0\\0",
                        b"abc",
                        b"",
                        b"1\\2\\3\\4",
                        b"99999999999999",
                    )
                    value = (
                        numbers[int(rng.integers(0, len(numbers)))] if rng.random() < 0.5 else noise(rng, 16)
                    )
                    value += b" " * (len(value) % 2)
                    length = len(value)
                case 5:
                    value = struct.pack("<H", number(rng, 1 << 16))
                    length = len(value)
                case 6:
                    value = anything(value or b"\0", rng)
                    length = length if open_end else len(value)
                case 7:
                    tag = struct.pack(
                        "<HH", int(rng.choice([0x28, 0x20, 0x7FE0, 0x5200, 8, 2])), number(rng, 1 << 16)
                    )
        if tag == b"\x02\0\x10\0" and action == 8:
            value = SYNTAXES[int(rng.integers(0, len(SYNTAXES)))].encode()
            value += b"\0" * (len(value) % 2)
            length = len(value)
        wide = kind in _LONG
        out += (
            tag
            + kind
            + (b"\0\0" + struct.pack("<I", length) if wide else struct.pack("<H", length % 65536))
            + value
        )
    made = bytes(out)
    return anything(made, rng) if rng.random() < 0.15 else made
