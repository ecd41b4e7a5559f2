"""Damaged and hostile GGUF headers: each is one short error of ours, at once and in little memory."""

import errno
import signal
import struct
import time
import tracemalloc

import pytest

from support.ggufs import INT32, LIST, TEXT, UINT32, gguf, list_pair, pair, shape_pair, tensor, text, text_pair
from unet import UNetFileError
from unet.weights import gguf_file
from unet.weights.files import open_any

HUGE = 2**40
ONE = bytes(16)  # the data of one tensor of four fp32 numbers


def number(value):
    return struct.pack("<I", value)


WHOLE = gguf([tensor("a", (4,), 0, 0)], [text_pair("general.architecture", "sd1")], ONE)
MALFORMED = {
    "only the magic": (b"GGUF", "ends 4 bytes after the file"),
    "cut in the counts": (WHOLE[:20], "count of tensors is 1, and 4 bytes follow"),
    "cut in a key": (WHOLE[:40], "ends|count"),
    "cut in an entry": (WHOLE[:90], "ends"),
    "cut in the data": (WHOLE[:-1], "cut off: a ends at"),
    "version 1": (gguf(version=1), "version is 1, expected 2 or 3"),
    "version 4": (gguf(version=4), "version is 4, expected 2 or 3"),
    "big-endian": (gguf(version=3 << 24), "big-endian, expected little-endian"),
    "very many tensors": (gguf(tensor_count=HUGE), "count of tensors is 1,099,511,627,776"),
    "very many keys": (gguf(pair_count=HUGE), "count of keys is 1,099,511,627,776"),
    "more tensors than the file holds": (gguf([tensor("a")], tensor_count=2, data=ONE), "count of tensors is 2"),
    "very long key": (gguf(pairs=[struct.pack("<Q", HUGE) + bytes(40)]), "key 0 is 1,099,511,627,776 bytes long"),
    "key that is no text": (gguf(pairs=[text_pair(b"\xff\xfe", "x")]), "key 0 is not UTF-8"),
    "key twice": (gguf(pairs=[text_pair("k", "x"), text_pair("k", "y")]), "the key k is there twice"),
    "very long text": (gguf(pairs=[pair("k", TEXT, struct.pack("<Q", HUGE) + bytes(40))]), "text under k is 1,099"),
    "text that is no text": (gguf(pairs=[text_pair("k", b"\xc3")]), "text under k is not UTF-8"),
    "value of an unknown type": (gguf(pairs=[pair("k", 13, bytes(8))]), "unknown type 13"),
    "very long list": (gguf(pairs=[list_pair("k", 0, bytes(40), HUGE)]), "count of values under k is 1,099"),
    "very long list of texts": (gguf(pairs=[list_pair("k", TEXT, bytes(40), HUGE)]), "values under k"),
    "long text in a list": (gguf(pairs=[list_pair("k", TEXT, struct.pack("<Q", HUGE) + bytes(40), 1)]), "a text under k is"),
    "lists in lists": (gguf(pairs=[list_pair("k", LIST, struct.pack("<IQ", LIST, 1) * 50 + bytes(40), 1)]), "list under k is of"),
    "list of an unknown type": (gguf(pairs=[list_pair("k", 99, bytes(40), 1)]), "is of the type 99"),
    "alignment 0": (gguf([tensor("a")], [pair("general.alignment", UINT32, number(0))], ONE), "alignment is 0"),
    "alignment 24": (gguf([tensor("a")], [pair("general.alignment", UINT32, number(24))], ONE), "alignment is 24"),
    "very large alignment": (
        gguf([tensor("a")], [pair("general.alignment", UINT32, number(2**31))], ONE), "alignment is 2147483648"
    ),
    "alignment in words": (gguf([tensor("a")], [text_pair("general.alignment", "wide")], ONE), "alignment is wide"),
    "very long name": (gguf([tensor("a" * 128)], data=ONE), "name of tensor 0 is 128 bytes long, expected 127"),
    "name that is no text": (gguf([tensor(b"\x80a")], data=ONE), "name of tensor 0 is not UTF-8"),
    "name twice": (gguf([tensor("a"), tensor("a", offset=32)], data=bytes(64)), "1 of its 2 tensors have the name of another"),
    "no dimensions": (gguf([tensor("a", ())], data=ONE), "a has 0 dimensions"),
    "six dimensions": (gguf([tensor("a", (1,) * 6)], data=ONE), "a has 6 dimensions"),
    "very many dimensions": (gguf([text("a") + struct.pack("<I", 2**31) + bytes(40)]), "a has 2,147,483,648 dimensions"),
    "dimension 0": (gguf([tensor("a", (4, 0))], data=ONE), r"a is \[0, 4\]"),
    "numbers beyond 64 bits": (gguf([tensor("a", (2**63, 2**63, 4))], data=ONE), "cut off: a ends at"),
    "unknown type": (gguf([tensor("a", (4,), 77)], data=ONE), "a is of the ggml type 77, which is not known"),
    "type of no file (Q8_K)": (gguf([tensor("a", (256,), 15)], data=bytes(292)), "ggml type 15"),
    "half a block in a row": (gguf([tensor("a", (48, 2), 8)], data=bytes(102)), r"a is \[2, 48\], expected rows of whole blocks"),
    "offset off the alignment": (gguf([tensor("a", offset=8)], data=bytes(64)), "a begins at 8, expected a multiple of 32"),
    "offset after the end": (gguf([tensor("a", offset=2**62)], data=ONE), "cut off: a ends at"),
    "one tensor over another": (gguf([tensor("a", (16,)), tensor("b", offset=32)], data=bytes(64)), "b lies over another tensor"),
    "shape of other numbers": (gguf([tensor("a")], [shape_pair("a", (5,))], ONE), r"a is \[4\] and cannot be \[5\]"),
    "negative shape": (gguf([tensor("a")], [shape_pair("a", (-2, -2))], ONE), r"cannot be \[-2, -2\]"),
    "shape in words": (
        gguf([tensor("a")], [list_pair("comfy.gguf.orig_shape.a", TEXT, text("4"), 1)], ONE), "orig_shape.a is no shape"
    ),
    "shape of nine": (
        gguf([tensor("a")], [list_pair("comfy.gguf.orig_shape.a", INT32, bytes(36), 9)], ONE), "orig_shape.a is no shape"
    ),
}


@pytest.fixture(autouse=True)
def in_time():
    """Far more than any of it takes."""
    def late(*_):
        raise TimeoutError("it takes too long")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(5)
    yield
    signal.alarm(0)


def refused(path) -> str:
    with pytest.raises(UNetFileError, match="^odd.gguf: it cannot be read as a GGUF file ") as error:
        open_any(path)
    assert len(str(error.value)) <= 1000 and str(error.value).isprintable() and str(error.value).endswith(".")
    return str(error.value)


@pytest.mark.parametrize("data, reason", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_header_is_one_error_that_names_what_is_wrong(data, reason, tmp_path):
    path = tmp_path / "odd.gguf"
    path.write_bytes(data)
    tracemalloc.start()
    with pytest.raises(UNetFileError, match=reason):
        open_any(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    refused(path)
    assert peak < 2**20


def test_the_smallest_whole_file_opens(tmp_path):
    path = tmp_path / "odd.gguf"
    path.write_bytes(WHOLE)
    assert list(open_any(path).keys()) == ["a"]


@pytest.mark.parametrize("end", range(0, len(WHOLE)))
def test_a_header_that_is_cut_anywhere_is_refused(end, tmp_path):
    path = tmp_path / "odd.gguf"
    path.write_bytes(WHOLE[:end])
    with pytest.raises(UNetFileError, match=r"^odd\.gguf\b"):
        open_any(path)


def long_list(path, kind, count, size):
    """A file with a list of so many values, all zero, which takes no room."""
    path.write_bytes(gguf([], [list_pair("k", kind, b"", count)]))
    with open(path, "ab") as file:
        file.truncate(size)


def test_a_long_list_takes_little_time(tmp_path):
    path = tmp_path / "odd.gguf"
    start = time.process_time()
    long_list(path, TEXT, 2**34, 2**38)
    assert "more than 250,000 texts" in refused(path)
    long_list(path, UINT32, 2**28, 2**30 + 100)
    assert list(open_any(path).keys()) == []
    assert time.process_time() - start < 2


def test_a_file_that_cannot_be_mapped_is_one_error(tmp_path, monkeypatch):
    path = tmp_path / "odd.gguf"
    path.write_bytes(WHOLE)

    def out_of_memory(*_, **__):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(gguf_file.mmap, "mmap", out_of_memory)
    with pytest.raises(UNetFileError, match=r"^odd.gguf: its 0.0 GiB cannot be mapped \(Cannot allocate memory\)\. Free memory"):
        open_any(path)
