"""100,000 harmed files: the reader gives the right answer, or GGUFError and where.

What is right is said by a second reader, ``parse`` below: the format's rules in the plainest words,
without a thought for speed. Both must agree on every file: on what is refused, and on every value
and every tensor of what is not. The seed is fixed, so a file that fails can be made again.
"""

import os
import random
import resource
import signal
import struct
import time
import tracemalloc

import pytest

from qlab.gguf import BLOCK_TYPES, GGUFError, GGUFFile
from qlab.gguf.inspect import inspect

FILES = 100_000
U32, U64 = struct.Struct("<I"), struct.Struct("<Q")
NUMBERS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
FORMS = {kind: struct.Struct(f"<{code}") for kind, code in NUMBERS.items()}
BLOCKS = {kind.type_id: (kind.block_size, kind.block_bytes) for kind in BLOCK_TYPES.values()}


class Refused(Exception):
    """By the second reader."""


def parse(data):
    """Values, tensors, alignment: key -> value, with bytes for text; name -> (shape, type, offset,
    size).
    """
    at = 0

    def take(n):
        nonlocal at
        at += n
        if at > len(data):
            raise Refused
        return data[at - n : at]

    def number(form):
        return form.unpack(take(form.size))[0]

    def text():
        try:
            return take(number(U64)).decode()
        except UnicodeDecodeError:
            raise Refused from None

    def value(kind, depth):
        if kind == 8:
            return take(number(U64))
        if kind == 9:
            if depth == 16:
                raise Refused
            inner, count = number(U32), number(U64)
            if inner not in FORMS and inner not in (8, 9):
                raise Refused
            found = []
            while len(found) < count:
                found.append(value(inner, depth + 1))
            return found
        if kind not in FORMS:
            raise Refused
        if kind == 7 and data[at : at + 1] > b"\1":
            raise Refused
        return number(FORMS[kind])

    if take(4) != b"GGUF" or number(U32) not in (2, 3):
        raise Refused
    n_tensors, n_values = number(U64), number(U64)
    values, kinds, tensors = {}, {}, {}
    while len(values) < n_values:
        key = text()
        if key in values:
            raise Refused
        kinds[key] = number(U32)
        values[key] = value(kinds[key], 0)
    alignment = values.get("general.alignment", 32)
    if kinds.get("general.alignment", 4) != 4 or bin(alignment).count("1") != 1:
        raise Refused
    listed = []
    while len(listed) < n_tensors:
        name, dims = text(), number(U32)
        if dims > 4 or name in tensors:
            raise Refused
        shape = tuple(number(U64) for _ in range(dims))[::-1]
        kind, offset = number(U32), number(U64)
        if 0 in shape or kind not in BLOCKS:
            raise Refused
        size, nbytes = BLOCKS[kind]
        columns = shape[-1] if shape else 1
        if columns % size or offset % alignment:
            raise Refused
        nbytes *= columns // size
        for n in shape[:-1]:
            nbytes *= n
        tensors[name] = shape, kind, offset, nbytes
        listed.append((offset, offset + nbytes))
    start = -(-at // alignment) * alignment
    listed.sort()
    for i, (begin, end) in enumerate(listed):
        if start + end > len(data) or (i and begin < listed[i - 1][1]):
            raise Refused
    moved = {n: (s, k, start + o, b) for n, (s, k, o, b) in tensors.items()}
    return values, moved, alignment


def same(found, want):
    """Whether a value that was read is what the second reader found."""
    if isinstance(want, bytes):
        return found == want.decode()
    if isinstance(want, list):
        found = found.tolist() if hasattr(found, "tolist") else found
        return len(found) == len(want) and all(map(same, found, want))
    return found == want or (found != found and want != want)


def decodes(value):
    """Whether all text in a value is UTF-8."""
    if isinstance(value, bytes):
        try:
            value.decode()
        except UnicodeDecodeError:
            return False
    return all(map(decodes, value)) if isinstance(value, list) else True


# A file in pieces, each with what it is, so that harm can be done where it hurts.


def text(raw):
    return [("length", U64.pack(len(raw))), ("text", raw)]


def entry(key, kind, *pieces):
    return [*text(key), ("type", U32.pack(kind)), *pieces]


def array(kind, count, *pieces):
    return [("type", U32.pack(kind)), ("count", U64.pack(count)), *pieces]


def tensor(name, dims, kind, offset):
    return [
        *text(name),
        ("dimensions", U32.pack(len(dims))),
        *(("dimension", U64.pack(n)) for n in dims),
        ("type", U32.pack(kind)),
        ("offset", U64.pack(offset)),
    ]


def deep(depth):
    return [piece for _ in range(depth) for piece in array(9, 1)] + array(4, 1, ("value", bytes(4)))


VALUES = [
    entry(b"general.architecture", 8, *text(b"llama")),
    entry(b"general.alignment", 4, ("value", U32.pack(32))),
    entry(b"llama.block_count", 4, ("value", U32.pack(1))),
    entry(b"words", 9, *array(8, 3, *text(b"a"), *text("é".encode()), *text(b""))),
    entry(b"numbers", 9, *array(2, 3, ("value", struct.pack("<3H", 1, 2, 3)))),
    entry(b"bools", 9, *array(7, 2, ("value", b"\1\0"))),
    entry(b"nested", 9, *array(9, 2, *array(5, 1, ("value", bytes(4))), *array(8, 1, *text(b"x")))),
    entry(b"deep", 9, *deep(3)),
    *(entry(b"n%d" % k, k, ("value", f.pack(1))) for k, f in FORMS.items()),
]
TENSORS = [
    tensor(b"token_embd.weight", (1, 2), 0, 0),
    tensor(b"blk.0.a.weight", (32, 2), 2, 32),
    tensor(b"b", (256,), 10, 96),
    tensor(b"c", (3, 2, 1), 0, 192),
]
DATA = bytes(range(256))  # the tensors end at 216
EXTREME = [
    *(0, 1, 2, 3, 7, 8, 9, 12, 13, 31, 32, 33, 64, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32),
    *(2**61, 2**62, 2**63 - 1, 2**63, 2**64 - 8, 2**64 - 1),
]
BAD_TEXT = [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"a\xe2\x82", b"\xf5\x80\x80\x80"]


def harmed_pieces(rng):
    """A file whose numbers, texts and order are harmed, and the rest fits."""
    values, tensors = list(VALUES), list(TENSORS)
    counts = [0, 0]  # what the header claims beside what is there
    for _ in range(rng.choice((0, 0, 1, 1, 2))):
        group = rng.choice((values, tensors))
        at = rng.randrange(len(group))
        harm = rng.random()
        if harm < 0.08:
            group.insert(rng.randrange(len(group) + 1), group[at])  # a key or a name twice
        elif harm < 0.12:
            values.append(entry(b"more", 9, *deep(rng.randrange(40))))
        elif harm < 0.16:
            counts[rng.randrange(2)] = rng.choice((-1, 1, *EXTREME))
        elif harm < 0.20 and len(group) > 1:
            del group[at]
        else:
            group[at] = harmed_entry(group[at], rng)
    out = [b"GGUF", U32.pack(3)]
    for claimed, group in zip(counts, (tensors, values), strict=True):
        out.append(U64.pack((len(group) + claimed) % 2**64))
    out += [raw for group in (values, tensors) for one in group for _, raw in one]
    data = b"".join(out)
    return data + bytes(-len(data) % 32) + DATA


def harmed_entry(pieces, rng):
    out = list(pieces)
    at = rng.randrange(len(out))
    what, raw = out[at]
    if what == "text":
        new = rng.choice((*BAD_TEXT, raw + b"\0", raw[:-1], b"b", b"words", bytes(70)))
        out[at] = what, new
        if rng.random() < 0.8:
            out[at - 1] = "length", U64.pack(len(new))
    elif what == "value":
        out[at] = what, rng.choice((rng.randbytes(len(raw)), raw[:-1], raw + b"\0"))
    else:
        number = int.from_bytes(raw, "little")
        number = rng.choice((rng.choice(EXTREME), number + 1, number - 1, number * 2, number + 32))
        number %= 256 ** len(raw)
        out[at] = what, number.to_bytes(len(raw), "little")
    return out


def harmed_bytes(data, rng):
    """Harm without regard to what the bytes are."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        if not out:
            break
        at = rng.randrange(len(out))
        harm = rng.randrange(7)
        if harm == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif harm == 1:
            out[at] = rng.randrange(256)
        elif harm == 2:
            out[at : at + 8] = U64.pack(rng.choice(EXTREME))
        elif harm == 3:
            out[at : at + 4] = U32.pack(rng.choice(EXTREME) % 2**32)
        elif harm == 4:
            del out[at:]
        elif harm == 5:
            del out[at : at + rng.randrange(1, 20)]
        else:
            to = rng.randrange(len(out))
            out[to:to] = out[at : at + rng.randrange(1, 60)]
    return bytes(out)


def harmed(rng):
    data = harmed_pieces(rng)
    return harmed_bytes(data, rng) if rng.random() < 0.3 else data


def check(path, data):
    """Whether the file was refused, by both."""
    try:
        want = parse(data)
    except Refused:
        want = None
    try:
        file = GGUFFile(path)
    except GGUFError as error:
        assert want is None, f"refused, and right: {error}"
        assert error.offset is not None and 0 <= error.offset <= len(data), error
        return True
    with file:
        assert want is not None, "taken, and wrong"
        values, tensors, alignment = want
        assert file.alignment == alignment
        assert list(file.metadata) == list(values) and list(file.tensors) == list(tensors)
        readable = True
        for key, value in values.items():
            if decodes(value):
                assert same(file.metadata[key], value), key
                continue
            readable = False
            with pytest.raises(GGUFError) as error:
                file.metadata[key]
            assert 0 <= error.value.offset <= len(data)
        for name, (shape, kind, offset, nbytes) in tensors.items():
            one = file.tensors[name]
            assert (one.shape, one.kind.type_id) == (shape, kind)
            assert one.data.tobytes() == data[offset : offset + nbytes]
        if readable:
            inspect(file)
    return False


@pytest.fixture
def place(tmp_path):
    """A path in memory where there is such a place: the disk is not what is tested."""
    folder = "/dev/shm" if os.access("/dev/shm", os.W_OK) else str(tmp_path)
    path = os.path.join(folder, f"qlab-fuzz-{os.getpid()}.gguf")
    yield path
    os.unlink(path)


@pytest.fixture
def limits():
    """64 MiB above what the process has, and 5 s of its time for one file."""

    def hangs(*_):
        raise AssertionError("5 s on one file")

    with open("/proc/self/statm") as statm:
        used = int(statm.read().split()[0]) * resource.getpagesize()
    old = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGVTALRM, hangs)
    resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), old[1]))
    yield lambda: signal.setitimer(signal.ITIMER_VIRTUAL, 5)
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    resource.setrlimit(resource.RLIMIT_AS, old)
    signal.signal(signal.SIGVTALRM, before)


def test_the_whole_file_is_right(place):
    """Both readers take the file that the harm is done to; else nothing below says much."""
    pieces = b"".join(raw for one in (*VALUES, *TENSORS) for _, raw in one)
    data = b"GGUF" + struct.pack("<IQQ", 3, len(TENSORS), len(VALUES)) + pieces
    data += bytes(-len(data) % 32) + DATA
    with open(place, "wb") as out:
        out.write(data)
    assert not check(place, data)
    values, tensors, _ = parse(data)
    assert len(values) == len(VALUES) and len(tensors) == len(TENSORS)


def test_cut_at_any_byte_both_agree(place):
    data = harmed_pieces(random.Random(2))
    for n in range(len(data)):
        with open(place, "wb") as out:
            out.write(data[:n])
        check(place, data[:n])


@pytest.mark.slow
def test_100_000_harmed_files(place, limits):
    rng = random.Random(0)
    refused = 0
    began = time.process_time()
    for i in range(FILES):
        data = harmed(rng)
        with open(place, "wb") as out:
            out.write(data)
        limits()
        refused += check(place, data)
        assert i % 1000 or time.process_time() - began < 300, "the whole takes too long"
    # Enough of both, or the test would test one thing only.
    assert 0.3 * FILES < refused < 0.8 * FILES


def test_memory_stays_below_the_file(place):
    """What opening a harmed file takes, beside the objects of the parser: less than 100 kB."""
    rng = random.Random(1)
    for _ in range(2000):
        data = harmed(rng)
        with open(place, "wb") as out:
            out.write(data)
        tracemalloc.start()
        try:
            GGUFFile(place).close()
        except GGUFError:
            pass
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 100_000
