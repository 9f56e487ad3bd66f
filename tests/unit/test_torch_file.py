"""Files of torch.save from anywhere: nothing runs, nothing is reserved, damage is noticed."""

from __future__ import annotations

import collections
import functools
import io
import json
import os
import pickle
import random
import re
import resource
import struct
import subprocess
import zipfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile import ONES, Calls, Stored, archive, end, in_each_other, legacy, pickled, tensor
from torch import Tensor, nn

from mosaickd import teachers, torch_file
from mosaickd.engine.checkpoint import load_checkpoint, save_checkpoint
from mosaickd.errors import UserError
from mosaickd.files import file_digest, write_json
from mosaickd.models.weights import load_weights, read_weights, save_weights

# ------------------------------------------------------------------------- what is read, and how


def everything() -> dict[str, Any]:
    """All that a training checkpoint may hold."""
    flat = torch.arange(12.0)
    return {
        "state_dict": nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).state_dict(),
        "views": [flat[2:6].view(2, 2).t(), flat],
        "empty": [torch.zeros(0), torch.zeros(3, 0), torch.tensor(7)],
        "types": [torch.ones(3, dtype=dtype) for dtype in (torch.float64, torch.float16,
                  torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8,
                  torch.bool, torch.complex64, torch.uint16, torch.float8_e4m3fn)],
        "parameter": nn.Parameter(torch.ones(2)),
        "schedule": {"milestones": collections.Counter({30: 1}), "last": 1e-3, "done": None},
        "said": ["text", b"bytes", bytearray(b"more"), 1j, True, -1, 2**70, {1, "a"}, (1, (2,))],
        "kinds": [torch.Size([2, 3]), torch.device("cpu"), torch.float32],
    }  # fmt: skip


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return type(a) is type(b) and [*a] == [*b] and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@pytest.mark.parametrize("zipped", [True, False])
def test_it_reads_what_torch_reads(tmp_path: Path, zipped: bool) -> None:
    path, saved = tmp_path / "всё 1.pth", everything()
    if not zipped:
        saved["types"] = saved["types"][:-2]  # which had no storages then
    torch.save(saved, path, _use_new_zipfile_serialization=zipped)
    loaded = torch_file.load(path)
    assert same(loaded, torch.load(path, weights_only=True))
    assert same(loaded, saved)
    assert loaded["state_dict"]._metadata == saved["state_dict"]._metadata

    described = torch_file.describe(path)
    for name in ("views", "empty", "types"):
        shapes = [(t.shape, t.dtype, t.device.type) for t in described[name]]
        assert shapes == [(t.shape, t.dtype, "meta") for t in saved[name]]


# ------------------------------------------------------------------------------ nothing is executed


def proofs(proof: Path) -> dict[str, Any]:
    """Pickles that make the file `proof` when they are read without care; so does `proof.inner`,
    which some of them read."""
    inner, line = f"{proof}.inner", f"open({str(proof)!r}, 'w')"
    text = repr(str(proof)).encode()
    return {
        "system": Calls(os.system, f"touch {proof}"),
        "exec": Calls(exec, line),
        "eval": Calls(eval, line),
        "open": Calls(open, str(proof), "w"),
        "process": Calls(subprocess.check_call, ["touch", str(proof)]),
        "torch.load": Calls(functools.partial(torch.load, inner, weights_only=False)),
        "numpy.load": b"cnumpy\nload\n(S" + repr(inner).encode() + b"\nNI01\ntR.",
        "in a shape": tensor(shape=(Calls(exec, line),)),
        "in hooks": tensor(hooks={"hook": Calls(exec, line)}),
        "in a storage": {"w": Stored(Calls(eval, f"len([{line}])"))},
        "in attributes": Calls(dict, state={"x": Calls(exec, line)}),
        "by getattr": b"c__builtin__\ngetattr\n(cpathlib\nPath\n(S"
        + text
        + b"\ntRS'touch'\ntR(tR.",
        "an instance": b"(S" + text + b"\nS'w'\ni__builtin__\nopen\n.",
        "an object": b"(c__builtin__\nopen\nS" + text + b"\nS'w'\no.",
        "by its new names": b"\x80\x04\x8c\x08builtins\x8c\x04open\x93(S" + text + b"\nS'w'\ntR.",
    }


@pytest.mark.parametrize("what", proofs(Path("proof")))
def test_nothing_is_executed(tmp_path: Path, what: str) -> None:
    proof = tmp_path / "proof"
    Path(f"{proof}.inner").write_bytes(pickle.dumps(Calls(open, str(proof), "w")))
    content = proofs(proof)[what]
    files = {
        "zip": archive(content),
        "legacy": legacy(content),
        "machine": legacy(tensor(), first=content),
        **{f"pickle {protocol}": pickled(content, protocol) for protocol in (1, 2, 4)},
    }

    class Careless(pickle.Unpickler):
        def persistent_load(self, saved: Any) -> Any:
            return saved

    with suppress(Exception):
        Careless(io.BytesIO(pickled(content))).load()
    assert proof.exists(), "it is a danger"
    proof.unlink()

    for name, data in files.items():
        path = tmp_path / f"{name}.pth"
        path.write_bytes(data)
        for read in (read_weights, load_checkpoint):
            with pytest.raises(UserError, match=rf"{name}\.pth") as error:
                read(path)  # type: ignore[operator]
            if name in ("zip", "legacy"):
                assert "running code that it names" in str(error.value), str(error.value)
        assert not proof.exists(), name


# ------------------------------------------------------------------------- nothing is reserved

HUGE = 2**40
Q = "<Q"


def zip64(begin: int, data: bytes) -> bytes:
    """The end of an archive whose directory begins elsewhere for programs that look elsewhere."""
    record = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, len(data), begin)
    return data + record + struct.pack("<4sIQI", b"PK\6\7", 0, begin, 1) + end(1, len(data), begin)


def as_tar() -> bytes:
    """A legacy file that is a tar archive as well: torch looks for one first."""
    whole = legacy(tensor(), first={"x": "y" * 600})
    header = bytearray(whole[:512])
    header[100:156] = bytes(24) + b"77777777777\0" + bytes(12) + b" " * 8
    header[156:157], header[329:345] = b"x", bytes(16)
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + whole[512:]


def deflated(size: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("archive/data.pkl", pickled(tensor(storage=Stored(size // 4))))
        bomb.writestr("archive/data/0", bytes(size))
    return file.getvalue()


def many_entries() -> bytes:
    whole = archive(tensor())
    begin = whole.index(b"PK\1\2")
    directory = whole[begin:-22] * 30_000
    return whole[:begin] + directory + end(2**16 - 1, len(directory), begin)


def again(what: bytes, text: bytes, times: int = 2000) -> bytes:
    """A call of `what` with the same long argument, again and again."""
    return b"\x80\x02]" + text + b"q\x000(" + (b"c" + what + b"\nh\x00\x85R") * times + b"e."


LONG_LIST = b"](" + b"K\x01" * 100_000 + b"e"
OTHER = "running code that it names"
RAW = b"\x80\x02"

#: Pickles, and what is said of a file with one of them.
PICKLES: dict[str, tuple[Any, str]] = {
    "a huge storage": (tensor(storage=Stored(HUGE)), "storage"),
    "a storage beyond numbers": (tensor(storage=Stored(2**64)), "whole number"),
    "a storage below none": (tensor(storage=Stored(-1)), "whole number"),
    "a storage that is not there": (tensor(storage=Stored(key="1")), "storage"),
    "a storage of objects": (tensor(storage=Stored(kind=collections.OrderedDict)), "storage"),
    "a storage by itself": ({"w": Stored()}, "by itself"),
    "a function by itself": (torch._utils._rebuild_tensor_v2, "by itself"),
    "an expanded tensor": (tensor((10**6, 10**6), (0, 0)), "in a storage of 4 values"),
    "an expanded row": (tensor((2, 4), (0, 1)), "in a storage of 4 values"),
    "a tensor out of bounds": (tensor((2,), (4,)), "in a storage of 4 values"),
    "an offset out of bounds": (tensor(offset=1), "in a storage of 4 values"),
    "a shape below none": (tensor((-1,)), "whole number"),
    "a shape that overflows": (tensor((2**32, 2**32), (1, 1)), "in a storage of 4 values"),
    "strides below none": (tensor(strides=(-1,), offset=3), "whole number"),
    "an offset below none": (tensor(offset=-1), "whole number"),
    "a shape of fractions": (tensor((4.0,)), "whole number"),
    "a shape without an end": (tensor((1,) * 1000, (1,) * 1000), "shape"),
    "fewer strides": (tensor((2, 2)), "unusual kind"),
    "hooks": (tensor(hooks={"a": 1}), "unusual kind"),
    "bytes by number": (Calls(bytearray, 10**12), "encoding"),
    "texts again and again": (
        b"\x80\x02](" + b"X\x40\x42\x0f\0" + b"a" * 10**6 + b"q\0"
        + b"c_codecs\nencode\nh\0X\6\0\0\0latin1\x86R" * 5000 + b"e.", "more bytes"),
    "sets again and again": (again(b"builtins\nset", LONG_LIST), "more bytes"),
    "sparse": (Calls(torch._utils._rebuild_sparse_tensor, torch.sparse_coo, ()), OTHER),
    "quantized": (Calls(torch._utils._rebuild_qtensor, Stored()), OTHER),
    "without values": (Calls(torch._utils._rebuild_meta_tensor_no_storage, torch.float32, (4,),
                             (1,), False), OTHER),
    "a subclass": (Calls(torch._utils._rebuild_wrapper_subclass, Tensor, torch.float32), OTHER),
    "by numpy": (Calls(torch._utils._rebuild_device_tensor_from_numpy, HUGE), OTHER),
    "a huge tensor": (RAW + b"ctorch\nFloatTensor\n\x8a\x06\0\0\0\0\0\x01\x85R.", OTHER),
    "a new tensor": (RAW + b"ctorch\nTensor\n)\x81.", OTHER),
    "a long memo": (
        RAW + b"]" + pickle.LONG_BINPUT + b"\xff\xff\xff\xff.", "neither|other storages"),
    "a long text": (RAW + pickle.BINUNICODE + b"\xff\xff\xff\xff", "too early"),
    "a longer text": (RAW + pickle.BINUNICODE8 + struct.pack(Q, HUGE), "too early"),
    "long bytes": (RAW + pickle.BINBYTES8 + struct.pack(Q, HUGE), "too early"),
    "a long bytearray": (RAW + pickle.BYTEARRAY8 + struct.pack(Q, HUGE), "too early"),
    "a long frame": (b"\x80\4" + pickle.FRAME + struct.pack(Q, HUGE), "too early"),
    "a long number": (RAW + pickle.LONG4 + b"\xff\xff\xff\x7f", "too early"),
    "lists in lists": (in_each_other(200), "too deep"),
    "many lists in lists": (RAW + b"](" * 300_000 + b"e" * 300_000 + b".", "too deep"),
    "many tuples in tuples": (RAW + b")" + b"\x85" * 300_000 + b".", "too deep"),
    "a tuple as a key": (RAW + b"})" + b"\x85" * 300_000 + b"Ns.", "unusual keys"),
    "a tuple in a set": (
        RAW + b"c__builtin__\nset\n])" + b"\x85" * 300_000 + b"a\x85R.", "unusual members"),
    "2^45 lists": (in_each_other(45, 2), "again and again"),
    "a list in itself": (RAW + b"]q\0h\0a.", "too deep"),
    "numbers of one hash": (
        RAW + b"}(" + b"".join(b"\x8a\x0a" + (k * (2**61 - 1)).to_bytes(10, "little") + b"N"
                               for k in range(100_000)) + b"u.", "unusual keys"),
    "attributes of a dict": (
        RAW + b"ccollections\nOrderedDict\n)R}X\5\0\0\0itemsNsb.", "doesn't have"),
}  # fmt: skip

FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "deflated": (lambda: deflated(2**26), "compressed"),
    "larger than packed": (
        lambda: archive(tensor(storage=Stored(2**28)), {"0": (ONES, {"size": 2**30})}),
        "compressed"),
    "larger than the file": (
        lambda: archive(tensor(storage=Stored(2**28)),
                        {"0": (ONES, {"size": 2**30, "packed": 2**30})}), "overlaps"),
    "larger still": (
        lambda: archive(tensor(storage=Stored(2**38)),
                        {"0": (ONES, {"size": 2**32 - 1, "packed": 2**32 - 1,
                                      "extra": struct.pack("<2H2Q", 1, 16, HUGE, HUGE)})}),
        "overlaps"),
    "two sizes": (
        lambda: archive(tensor(), {"0": (ONES, {"extra": struct.pack("<2HQ", 1, 8, 1) * 2})}),
        "unusual fields"),
    "one in the other": (
        lambda: archive(tensor(), {"0": ONES, "1": (ONES, {"at": 0})}), "overlaps"),
    "twice": (lambda: archive(tensor(), {"0": ONES}, **{"DATA/0": ONES}), "same name"),
    "encrypted": (lambda: archive(tensor(), {"0": (ONES, {"flags": 1})}), "unusual entry"),
    "a folder": (lambda: archive(tensor(), {"0": (ONES, {"attributes": 16})}), "a folder"),
    "a folder by its name": (
        lambda: archive(tensor(storage=Stored(key="0/")), {"0/": ONES}), "a folder"),
    "another checksum": (lambda: archive({"w": tensor()}, {"0": (ONES, {"crc": 0})}), "is damaged"),
    "no pickle": (lambda: archive(b"", **{"data.pkl": (b"", {"at": 2**31})}), "damaged"),
    "many entries": (many_entries, "a directory of"),
    "a comment": (lambda: archive(tensor())[:-2] + b"\1\0x", "archive's end"),
    "an end in the comment": (
        lambda: (lambda w: w[:-22] + end(3, 99, 9, w[-22:]))(archive(tensor())), "archive's end"),
    "another directory": (lambda: b"PK\3\4" + zip64(4, b"PK\1\2" + bytes(60)), "unusual end"),
    "a tar archive": (as_tar, "tar archive"),
    "two sizes of one": (
        lambda: legacy([tensor(), tensor(storage=Stored(8))]), "of two sizes"),
    "another size": (lambda: legacy(tensor(), count=5), "another size"),
    "no values": (lambda: legacy(tensor(), keys=()), "other storages"),
    "values of nothing": (lambda: legacy(tensor(), keys=("0", "1")), "other storages"),
    "more than the file": (
        lambda: legacy(tensor(storage=Stored(HUGE)), count=HUGE), "larger than the file"),
}  # fmt: skip


def header(said: bytes | dict[str, Any], length: int | None = None, values: bytes = b"") -> bytes:
    """A .safetensors file."""
    text = said if isinstance(said, bytes) else json.dumps(said).encode()
    return struct.pack(Q, len(text) if length is None else length) + text + values


def one(dtype: str, shape: list[int], *places: int) -> dict[str, Any]:
    return {"w": {"dtype": dtype, "shape": shape, "data_offsets": places}}


SAFE: dict[str, tuple[bytes, str]] = {
    "an endless header": (header({}, 2**60), "damaged"),
    "a header of all": (header({}, 2**64 - 1), "damaged"),
    "a larger header": (header({}, 99_000_000), "damaged"),
    "no values": (header(one("F32", [10**10], 0, 4 * 10**10)), "damaged"),
    "another type": (header(one("F64", [4], 0, 16), None, ONES), "damaged"),
    "no type": (header(one("F31", [4], 0, 16), None, ONES), "damaged"),
    "a shape that overflows": (header(one("F32", [2**32, 2**32], 0, 16), None, ONES), "damaged"),
    "another shape that overflows": (header(one("F32", [2**62, 4, 4], 0, 0), None, b""), "damaged"),
    "a shape below none": (header(one("F32", [-4], 0, 16), None, ONES), "damaged"),
    "places in reverse": (header(one("F32", [4], 16, 0), None, ONES), "damaged"),
    "one on the other": (
        header(one("F32", [4], 0, 16) | {"v": one("F32", [4], 0, 16)["w"]}, None, ONES),
        "damaged",
    ),
    "lists in lists": (header(b"[" * 10**6), "damaged"),
    "metadata of numbers": (header({"__metadata__": {"a": 1}}), "damaged"),
    "no weights": (header({"__metadata__": {"record": "[" * 10**6}}), "no weights"),
}


def outcomes(folder: Path) -> dict[str, tuple[str, int]]:
    """What reading each file in a folder raises, and by how many kB it lets this process grow."""
    torch.set_num_threads(1)
    good = folder / "good.pth"
    torch.save(everything(), good)
    read_weights(good)
    found = {}
    for path in sorted(folder.iterdir()):
        before = virtual_size()
        try:
            read_weights(path)
            said = "nothing"
        except UserError as error:
            said = str(error)
        found[path.name] = said, virtual_size() - before
    return found


def virtual_size() -> int:
    """The most address space that this process has had, in kB: what is reserved counts, too."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(status.read_text().partition("VmPeak:")[2].split()[0])


@pytest.fixture(scope="module")
def apart() -> Any:
    """A process of its own: a crash of the interpreter would be one of that process."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        yield pool


@pytest.mark.slow
def test_no_claim_reserves_memory(tmp_path: Path, apart: ProcessPoolExecutor) -> None:
    expected = {}
    for name, (content, said) in PICKLES.items():
        for kind, write in (("zip", archive), ("legacy", legacy)):
            (tmp_path / f"{kind} {name}.pth").write_bytes(write(content))
            expected[f"{kind} {name}.pth"] = said
    for name, (make, said) in FILES.items():
        (tmp_path / f"{name}.pth").write_bytes(make())
        expected[f"{name}.pth"] = said
    for name, (data, said) in SAFE.items():
        (tmp_path / f"{name}.safetensors").write_bytes(data)
        expected[f"{name}.safetensors"] = said
    found = apart.submit(outcomes, tmp_path).result()
    assert found.keys() - expected.keys() == {"good.pth"}
    for name, said in expected.items():
        message, grown = found[name]
        assert name in message, name
        assert re.search(said, message), f"{name}: {message}"
        assert grown < 300_000, f"{name} takes {grown} kB: {message}"


@pytest.mark.slow
@pytest.mark.parametrize("what", ["lists", "tensors"])
def test_the_largest_pickle_takes_a_hundred_times_its_size(
    tmp_path: Path, apart: ProcessPoolExecutor, what: str
) -> None:
    saved = pickled({"w": tensor()})
    call = saved[saved.index(b"ctorch") : saved.rindex(b"R") + 1]
    last = call[call.rindex(b"q") :]  # where its arguments are in the memo
    again = {"lists": b"]", "tensors": b"h\2" + last.replace(b"q", b"h")}[what]
    whole = RAW + b"(" + call + again * (4_100_000 // len(again)) + b"t."
    (tmp_path / "pickle.pth").write_bytes(archive(whole))
    said, grown = apart.submit(outcomes, tmp_path).result()["pickle.pth"]
    assert "holds neither" in said
    assert grown < 150 * len(whole) / 1024


def test_a_file_of_another_network_is_not_read(tmp_path: Path) -> None:
    """However large: 50 GB that are claimed, and are there, at no cost to this disk."""
    wide, zipped = tmp_path / "wide.safetensors", tmp_path / "wide.pth"
    wide.write_bytes(header(one("F32", [12_500_000_000], 0, 50_000_000_000)))
    os.truncate(wide, wide.stat().st_size + 50_000_000_000)

    size = 3_600_000_000
    values = {"data/0": (b"", {"size": size, "packed": size})}
    whole = archive({"w": tensor((size // 4,), storage=Stored(size // 4))}, {}, **values)
    begin, directory = whole.index(b"PK\1\2"), whole[whole.index(b"PK\1\2") : -22]
    with open(zipped, "wb") as file:
        file.write(whole[:begin])
        file.seek(size, 1)
        file.write(directory + end(3, len(directory), begin + size))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for path in (wide, zipped):
        with pytest.raises(UserError, match=rf"{path.name}.* keys missing \(weight, bias\).*\(w\)"):
            load_weights(nn.Linear(4, 4), path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


# --------------------------------------------------------------------------------------- damage


def damaged(content: bytes, chance: random.Random) -> bytes:
    """With something wrong at a random place."""
    at, length = chance.randrange(len(content)), chance.choice((1, 2, 8, 64, 700))
    match chance.randrange(8):
        case 0 | 1 | 2:  # one bit
            return (
                content[:at] + bytes([content[at] ^ 1 << chance.randrange(8)]) + content[at + 1 :]
            )
        case 3:
            return content[:at] + chance.randbytes(length) + content[at + length :]
        case 4:
            return content[:at] + bytes(length) + content[at + length :]
        case 5:
            return content[:at]
        case 6:
            return content[:at] + content[at + length :]
        case _:
            return content[:at] + content[at : at + length] + content[at:]


class Network(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 10))


def write_teacher(path: Path) -> Callable[[], Any]:
    """A teacher's weights -> how a run reads them."""
    if path.name == "recorded.safetensors":
        save_weights(Network(), path, {})
        write_json(path.with_suffix(".json"), {"sha256": file_digest(path), "accuracy": 70.0})
    elif path.suffix == ".safetensors":
        save_weights(Network(), path, {"accuracy": 70.0})
    else:
        torch.save({"state_dict": Network().state_dict(), "best_acc1": 70.0}, path,
                   _use_new_zipfile_serialization="legacy" not in path.name)  # fmt: skip

    def read() -> Any:
        teacher = Network()
        record = teachers.load(teacher, path)
        teachers.check_accuracy(100.0, record, path)
        return dict(teacher.state_dict())

    return read


def write_checkpoint(path: Path) -> Callable[[], Any]:
    """A run's checkpoint -> how it is read."""
    network = Network()
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.ones(1, 3, 6, 6)).sum().backward()
    optimizer.step()
    game = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
    save_checkpoint(path, {"game": game, "random": torch.get_rng_state(), "step": 7})
    return lambda: load_checkpoint(path)


#: Files, how they are written, and whether damage to their values is noticed.
DAMAGED: dict[str, tuple[Callable[[Path], Callable[[], Any]], bool]] = {
    "last.pt": (write_checkpoint, True),
    "teacher.pth": (write_teacher, True),
    "recorded.safetensors": (write_teacher, True),
    "legacy.pth": (write_teacher, False),  # formats without checksums
    "teacher.safetensors": (write_teacher, False),
}


def read_damaged(folder: Path, name: str, count: int) -> dict[str, int]:
    """How often reading a damaged file raised, and brought what was written, or something else."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    path, chance, met = folder / name, random.Random(name), collections.Counter[str]()
    read = DAMAGED[name][0](path)
    content, whole = path.read_bytes(), read()
    for _ in range(count):
        path.write_bytes(damaged(content, chance))
        try:
            found = read()
        except UserError as error:
            met["raised" if name in str(error) else str(error)] += 1
        else:
            met["same" if same(found, whole) else "other"] += 1
    return met


def check_damage(folder: Path, apart: ProcessPoolExecutor, name: str, count: int) -> None:
    met = apart.submit(read_damaged, folder, name, count).result()
    print(f"{name}: {dict(met)}")
    assert met.keys() <= {"raised", "same", "other"}
    assert sum(met.values()) == count
    assert met["raised"] > count // 3
    if DAMAGED[name][1]:
        assert "other" not in met
    else:
        assert met["other"] > 0, "there is a checksum after all"


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_noticed_or_harmless(
    tmp_path: Path, apart: ProcessPoolExecutor, name: str
) -> None:
    check_damage(tmp_path, apart, name, 150)


@pytest.mark.slow
@pytest.mark.parametrize("name", DAMAGED)
def test_much_damage_is_noticed_or_harmless(
    tmp_path: Path, apart: ProcessPoolExecutor, name: str
) -> None:
    check_damage(tmp_path, apart, name, 5000)
