"""Pickled files made by hand: none runs code, takes much memory or ends in another error than ours; ordinary ones are read."""

import io
import pickle
import struct
import tarfile
import tracemalloc
import zipfile
from collections import Counter, OrderedDict

import pytest
import torch

from unet import UNetFileError, find_controlnet
from unet.weights.files import open_any, shapes_of
from unet.weights.pickle_check import MOST_STEPS, Refused, check_before_1_6

BEGIN = b"".join(pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))


def archive(program: bytes, *more, compression=zipfile.ZIP_STORED) -> bytes:
    """A file as since PyTorch 1.6; `more`: (name, content) of further entries."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as made:
        for name, content in (("archive/data.pkl", program), ("archive/version", b"3\n"), ("archive/data/0", bytes(64)), *more):
            made.writestr(name, content)
    return file.getvalue()


def before_1_6(program: bytes) -> bytes:
    return BEGIN + program + pickle.dumps(["0"], 2) + struct.pack("<q", 1) + bytes(4)


FORMS = {"zip": archive, "before 1.6": before_1_6}


def number(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def call(name: str, *arguments: bytes) -> bytes:
    return b"c" + name.replace(" ", "\n").encode() + b"\n(" + b"".join(arguments) + b"tR"


def tensor(size=(1,), stride=(1,), count=1, storage="torch FloatStorage") -> bytes:
    kind = b"c" + storage.replace(" ", "\n").encode() + b"\n"
    stored = b"(" + text("storage") + kind + text("0") + text("cpu") + number(count) + b"tQ"
    sizes, strides = (b"(" + b"".join(map(number, numbers)) + b"t" for numbers in (size, stride))
    return call("torch._utils _rebuild_tensor_v2", stored, b"K\0", sizes, strides, b"\x89", call("collections OrderedDict"))


def state(*values: bytes) -> bytes:
    return b"}(" + b"".join(text(f"controlnet.{index}") + value for index, value in enumerate(values)) + b"u."


DAMAGED, OBJECTS = "it is damaged or cut off", "it is damaged, or holds Python objects"
HOSTILE = {  # program -> message
    "bytearray": (state(call("builtins bytearray", number(1 << 29))), OBJECTS),
    "bytearray of Python 2": (state(call("__builtin__ bytearray", number(1 << 80))), OBJECTS),
    "tensor": (state(call("torch Tensor", number(1 << 40))), OBJECTS),
    "tensor class": (state(call("torch FloatTensor", number(1 << 40))), OBJECTS),
    "storage": (state(call("torch.storage UntypedStorage", number(1 << 40))), OBJECTS),
    "eval": (state(call("builtins eval", text("1"))), OBJECTS),
    "system": (state(call("os system", text("true"))), OBJECTS),
    "module": (b"ctorch\n_dynamo\n.", OBJECTS),
    "other codec": (state(call("_codecs encode", text("é" * 1000), text("punycode"))), OBJECTS),
    "argument of any length": (state(call("torch device", text("cpu" + "0" * 5000))), OBJECTS),
    "counted text": (state(call("collections Counter", text("a" * 5000))), OBJECTS),
    "deep key": (b"})" + b"\x85" * 100_000 + b"K\1s.", DAMAGED),
    "deep key by memo": (b"})" + b"\x85q\0h\0" * 1000 + b"K\1s.", DAMAGED),
    "many steps": (b"]" * (MOST_STEPS + 1) + b".", DAMAGED),
    "keys of one hash": (
        b"}(" + b"".join(number(index * (2**61 - 1)) + b"N" for index in range(10**6, 10**6 + 9)) + b"u.", DAMAGED,
    ),
    "long name": (b"c" + b"a" * 10**6 + b"\na\n.", DAMAGED),
    "long text": (b"X" + struct.pack("<I", 2**32 - 1) + b"a", DAMAGED),
    "item of a tensor": (tensor() + b"K\0K\1s.", DAMAGED),
    "unknown step": (b"\x95.", DAMAGED), "empty stack": (b"0.", DAMAGED),
    "nothing": (b"", DAMAGED), "no tuple": (b"K\5Q.", DAMAGED),
    "more numbers than bytes": (state(tensor(count=1 << 40)), DAMAGED),
    "fewer than none": (state(tensor(count=-1)), DAMAGED),
    "negative size": (state(tensor(size=(-5,))), DAMAGED),
    "expanded": (state(tensor(size=(1 << 40,), stride=(0,))), "its tensor controlnet.0 is larger than the file|" + DAMAGED),
    "unknown storage": (state(tensor(storage="torch NoSuchStorage")), OBJECTS),
}


def refused(content: bytes, tmp_path, words: str) -> None:
    (tmp_path / "net.pth").write_bytes(content)
    with pytest.raises(UNetFileError, match=rf"^net.pth cannot be read as a PyTorch file \(({words})"):
        find_controlnet(tmp_path / "net.pth")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_program_is_refused(name, form, tmp_path):
    program, words = HOSTILE[name]
    tracemalloc.start()
    refused(FORMS[form](b"\x80\2" + program), tmp_path, words)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 80 * 2**20


SMALL = b"\x80\2}."
ARCHIVES = {  # content -> message
    "compressed": (lambda: archive(SMALL, compression=zipfile.ZIP_DEFLATED), "its contents are compressed"),
    "a large program": (lambda: archive(b"\x80\2}." + bytes(10**7)), DAMAGED),
    "two programs": (lambda: archive(SMALL, ("archive/DATA.pkl", b"\x80\2N.")), DAMAGED),
    "TorchScript": (lambda: archive(SMALL, ("archive/constants.pkl", b"\x80\2).")), "it is a TorchScript archive"),
    "many parts": (lambda: archive(SMALL, *((f"archive/{index:090}", b"") for index in range(40_000))), "it is cut off"),
    "other zip": (lambda: archive(SMALL).replace(b"data.pkl", b"data.txt"), DAMAGED),
}


def misplaced(content: bytes) -> bytes:
    """The archive with a list of contents that is said to stand 999 bytes later, which puts its parts before the file."""
    at = content.rindex(b"PK\5\6") + 16
    return content[:at] + struct.pack("<I", struct.unpack_from("<I", content, at)[0] + 999) + content[at + 4:]


ARCHIVES["parts before the file"] = (lambda: misplaced(archive(SMALL)), "it is (damaged or )?cut off")


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_that_pytorch_does_not_write_is_refused(name, tmp_path):
    make, words = ARCHIVES[name]
    refused(make(), tmp_path, words)


def test_a_tar_file_that_is_whole_pickles_too_is_refused(tmp_path):
    """Versions of PyTorch before 2.6 unpack it, and follow the pickles in it without care."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as made:
        made.addfile(tarfile.TarInfo("x" * 30))
    content = bytearray(file.getvalue())
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
    content[:30] = (magic + b"\x80\2X" + struct.pack("<I", len(content) - len(magic) - 7)).ljust(30, b"x")  # the rest is a text
    content[148:156] = b"%06o\0 " % (256 + sum(content[:148]) + sum(content[156:512]))
    content += b"." + 3 * b"\x80\2N."
    path = tmp_path / "net.pth"
    path.write_bytes(content)
    with tarfile.open(path) as made, path.open("rb") as opened, pytest.raises(Refused):
        assert made.getmembers()
        check_before_1_6(opened)


SAVED = {  # what people save next to the weights
    "numbers": {
        "epoch": 3, "lr": 1e-5, "loss": float("nan"), "seed": 2**64 - 1, "negative": -7, "done": True, "none": None, "z": 1j,
    },
    "texts": {
        "name": "depth ✓", "bytes": b"\0\xff" * 600, "long": "x" * 5000, "list": ["a"] * 3, "set": {"a"}, "tuple": (1, ("b", ())),
    },
    "training": OrderedDict(optimizer={"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"betas": (0.9, 0.999)}]},
                            lr_schedulers=[{"milestones": Counter([3, 5])}]),
    "types": {"dtype": torch.float16, "size": torch.Size([1, 2]), "device": torch.device("cpu"), "layout": torch.strided},
    "tensors": {"parameter": torch.nn.Parameter(torch.ones(2)), "half": torch.ones(2).half(), "bf16": torch.ones(2).bfloat16(),
                "long": torch.ones(2).long(), "bool": torch.ones(2).bool(), "view": torch.ones(3, 4).t(),
                "scalar": torch.tensor(1.0)},
}


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("name", SAVED)
def test_what_is_saved_next_to_weights_is_no_matter(name, new, tmp_path):
    weights = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)).state_dict()  # with `_metadata`
    torch.save({"state_dict": weights, **SAVED[name]}, tmp_path / "net.pth", _use_new_zipfile_serialization=new)
    file = open_any(tmp_path / "net.pth")
    assert shapes_of(file) == {key: tuple(value.shape) for key, value in weights.items()}
    assert all(torch.equal(file.get_tensor(key), value) for key, value in weights.items())


def test_tensors_of_every_float_dtype_are_read(tmp_path):
    dtypes = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16)
    tensors = {str(dtype): torch.ones(2).to(dtype) for dtype in dtypes}
    torch.save(tensors, tmp_path / "net.pth")
    file = open_any(tmp_path / "net.pth")
    assert all(torch.equal(file.get_tensor(name).double(), value.double()) for name, value in tensors.items())


def test_what_the_process_allows_is_read(tmp_path):
    """As a host allows the classes of old training programs."""
    class Callback:
        pass

    Callback.__module__, Callback.__qualname__ = "training.callbacks", "Callback"
    name = tmp_path / "net.pth"
    name.write_bytes(archive(b"\x80\2" + state(call("training.callbacks Callback") + b"}b", tensor())))
    refused(name.read_bytes(), tmp_path, OBJECTS)
    with torch.serialization.safe_globals([Callback]):
        assert shapes_of(open_any(name)) == {"controlnet.1": (1,)}
