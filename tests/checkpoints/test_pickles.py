"""Files of torch.save, read without torch: equal to torch's own restricted reader, or refused for what they are."""

import argparse
import io
import random
import tarfile
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from sld.checkpoints import CheckpointError
from sld.checkpoints.files import open_weights

CONTENTS = {
    "plain": lambda: {"a": torch.randn(3, 4), "b": torch.arange(5), "c": torch.tensor(2.5), "none": torch.zeros(0, 3)},
    "views of one storage": lambda: {"whole": (x := torch.randn(6, 4)), "turned": x.T, "part": x[1:5:2, 1:]},
    "expanded": lambda: {"a": torch.ones(()).expand(7, 5)},
    "a state_dict": lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).state_dict(),
    "parameters": lambda: OrderedDict(a=nn.Parameter(torch.randn(3)), b=nn.Parameter(torch.randn(2).bfloat16())),
    "beside weights": lambda: {
        "state_dict": {"a": torch.randn(2)},
        "optimizer": [{"state": {0: {"step": 3, "exp_avg": torch.randn(2)}}, "lr": 0.1, "betas": (0.9, 0.999)}],
        "size": torch.Size((2, 3)),
        ("a", "tuple"): b"bytes",
        None: complex(1, 2),
        2.5: {1, 2},
        "device": torch.device("cpu"),
        "kind": torch.float16,
    },
    **{
        str(kind): lambda kind=kind: {"x": torch.arange(1, 9).reshape(2, 4).to(kind), "y": torch.ones(3).to(kind)}
        for kind in (torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.uint8, torch.int16, torch.int32)
    },
    "torch.bool": lambda: {"x": torch.tensor([True, False, True])},
    "dtypes without a storage of their own": lambda: {
        "x": torch.tensor([1, 2], dtype=torch.uint16),
        "y": torch.randn(6).to(torch.float8_e4m3fn),
    },
}


def read(path):
    file = open_weights(path)
    fetch = file.reader()
    return {key: fetch(key) for key in file.tensors}


def equal(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.float(), b.float())


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
@pytest.mark.parametrize("name", CONTENTS)
def test_what_torch_reads_is_read_to_the_bit(name, zipped, tmp_path):
    """Killed by: strides or offsets dropped; an old file's storages one place on; another dtype."""
    if name.startswith("dtypes without") and not zipped:
        pytest.skip("torch cannot read what it writes here")
    path = tmp_path / "x.ckpt"
    torch.save(CONTENTS[name](), path, _use_new_zipfile_serialization=zipped)
    theirs = torch.load(path, weights_only=True)
    theirs = {key: x for key, x in theirs.get("state_dict", theirs).items() if isinstance(x, torch.Tensor)}
    ours = read(path)
    assert ours.keys() == theirs.keys()
    assert all(equal(ours[key], x) for key, x in theirs.items())
    headers = open_weights(path).tensors
    assert {key: (h.shape, f"torch.{h.dtype}") for key, h in headers.items()} == {
        key: (tuple(x.shape), str(x.dtype)) for key, x in theirs.items()
    }


def test_newer_pickles_and_numpys_numbers_beside_weights_are_read_too(tmp_path):
    """torch's restricted reader refuses both, though they run nothing."""
    path = tmp_path / "x.ckpt"
    content = {"x": torch.randn(3), "score": np.float64(0.5), "curve": np.arange(3)}
    for protocol in (2, 4):
        torch.save(content, path, pickle_protocol=protocol)
        assert torch.equal(read(path)["x"], content["x"])
        assert open_weights(path).beside == ("score", "curve")


def rewritten(path, target, compression=zipfile.ZIP_STORED, change=lambda name, data: data):
    """The zip written again by Python, which does not align records as torch does."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w", compression) as new:
        for name in old.namelist():
            if (data := change(name, old.read(name))) is not None:
                new.writestr(name, data)
    return target


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
def test_a_zip_that_was_written_again_gives_the_right_tensors(compression, tmp_path):
    """Deflated records were once mapped as if they were stored. Killed by: the kind of compression not looked at."""
    content = {name: make() for name, make in CONTENTS.items() if "beside" not in name}
    flat = {f"{name}.{key}": x for name, tensors in content.items() for key, x in tensors.items()}
    torch.save(flat, tmp_path / "x.ckpt")
    ours = read(rewritten(tmp_path / "x.ckpt", tmp_path / "y.ckpt", compression))
    assert ours.keys() == flat.keys()
    assert all(equal(ours[key], x) for key, x in flat.items())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda name, data: data[:-4] if name.endswith("data/0") else data, "record x/data/0 has 8 bytes .* need 12"),
        (lambda name, data: data + b"1234" if name.endswith("data/0") else data, "has 16 bytes"),
        (lambda name, data: None if name.endswith("data/1") else data, "no record x/data/1"),
        (lambda name, data: b"big" if name.endswith("byteorder") else data, "big-endian"),
        (lambda name, data: None if name.endswith("data.pkl") else data, "torch.save did not write"),
    ],
    ids=["shortened", "lengthened", "lost", "big-endian", "no pickle"],
)
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
def test_records_that_do_not_fit_their_tensors_are_refused(compression, change, says, tmp_path):
    """A shortened record was once read on into the bytes behind it. Killed by: its size not compared."""
    torch.save({"a": torch.randn(3), "b": torch.randn(2)}, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match=says):
        open_weights(rewritten(tmp_path / "x.ckpt", tmp_path / "y.ckpt", compression, change))


def test_a_damaged_compressed_record_is_an_error_in_words(tmp_path):
    torch.save({"a": torch.randn(3000)}, tmp_path / "x.ckpt")
    path = rewritten(tmp_path / "x.ckpt", tmp_path / "y.ckpt", zipfile.ZIP_DEFLATED)
    data = bytearray(path.read_bytes())
    at = data.index(b"x/data/0") + 2000
    data[at : at + 100] = bytes(100)
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        read(path)


def test_a_zip_bomb_is_refused_by_the_sizes_it_states(tmp_path):
    torch.save({"a": torch.zeros(10**6)}, tmp_path / "x.ckpt")
    path = rewritten(tmp_path / "x.ckpt", tmp_path / "y.ckpt", zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match=r"would unpack to 4,\d+,\d+ bytes and is refused"):
        open_weights(path)


class Runs:
    """A pickle of this calls a function when it is read carelessly."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Net(nn.Module):
    """A module that is saved whole."""


def a_tar(path):
    with tarfile.open(path, "w") as file:
        file.addfile(tarfile.TarInfo("storages"), io.BytesIO())


def a_script(path):
    torch.jit.script(nn.Linear(2, 2)).save(path)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize(
    ("write", "says"),
    {
        "TorchScript": (a_script, "is a TorchScript program, not a dictionary of weights"),
        "tar": (a_tar, "is a tar archive"),
        "another zip": (lambda path: zipfile.ZipFile(path, "w").writestr("a.txt", "a"), "torch.save did not write"),
        "sparse": ({"x": torch.eye(3).to_sparse()}, "x is a sparse tensor"),
        "quantized": ({"x": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)}, "x is a quantized tensor"),
        "meta": ({"x": torch.ones(2, device="meta")}, "x is a tensor without numbers"),
        "eval": (
            {"x": torch.ones(2), "y": Runs(eval, "1")},
            r"would run code when read \(it refers to builtins.eval\)",
        ),
        "a method": ({"y": Runs(getattr, "a", "upper")}, "it refers to builtins.getattr"),
        "a class beside": ({"x": torch.ones(2), "y": argparse.Namespace(lr=1)}, "of the class argparse.Namespace"),
        "a module": (Net(), r"of the class test_pickles.Net beside weights or in place of them"),
        "a list": ([torch.ones(2)], "holds a list, expected a dictionary of tensors"),
        "a tensor": (torch.ones(2), "holds a tensor, expected a dictionary of tensors"),
    }.values(),
)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_what_is_no_dictionary_of_dense_weights_is_named(write, says, zipped, tmp_path):
    """None of the messages passes on the advice to switch the protection off."""
    path = tmp_path / "x.pt"
    write(path) if callable(write) and not isinstance(write, nn.Module) else torch.save(
        write, path, _use_new_zipfile_serialization=zipped
    )
    with pytest.raises(CheckpointError, match=says) as caught:
        open_weights(path)
    assert "weights_only" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x02]r\xff\xff\xff\xff.",  # a memo of four billion places
        b"\x80\x02" + b"(" * 2_000 + b".",
        b"\x80\x02}" + b")" + b"\x85" * 100_000 + b"Ns.",  # the hash of a key as deep as this ends the process
        b"\x80\x02X\xff\xff\xff\x7fabc.",  # a string of two billion letters
        b"\x80\x02\x8b\xff\xff\xff\x7fabc.",
        b"\x80\x02ccollections\nOrderedDict\nK\x01\x85R.",
        b"\x80\x02ctorch\nFloatStorage\n)R.",
        b"\x80\x02]K\x01Q.",
        b"\x80\x02K\x01.K",
        b"",
    ],
)
def test_programs_that_are_no_pickle_of_weights_do_no_harm(program, tmp_path):
    """Killed by: keys of any kind taken for those of a dictionary."""
    with zipfile.ZipFile(tmp_path / "x.ckpt", "w") as file:
        file.writestr("x/data.pkl", program)
    (tmp_path / "y.ckpt").write_bytes(program)
    for path in (tmp_path / "x.ckpt", tmp_path / "y.ckpt"):
        try:
            assert not open_weights(path).tensors
        except CheckpointError as error:
            assert "damaged" in str(error) or "expected a dictionary" in str(error)


@pytest.mark.filterwarnings("ignore:TypedStorage")
@pytest.mark.parametrize(
    ("offset", "shape", "stride"),
    [(0, (5,), (1,)), (1, (2, 2), (2, 1)), (0, (2,), (4,)), (-1, (2,), (1,)), (0, (2,), (-1,))],
)
def test_a_view_that_leaves_its_storage_is_refused(offset, shape, stride, tmp_path):
    """Killed by: only the first element looked at; signs not looked at."""
    build = torch._utils._rebuild_tensor_v2

    class View:
        def __reduce__(self):
            return build, (torch.arange(4.0).storage(), offset, shape, stride, False, OrderedDict())

    torch.save({"x": View()}, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match=r"goes beyond its storage|for a size"):
        open_weights(tmp_path / "x.ckpt")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_files_of_changed_bytes_are_refused_or_read_as_torch_reads_them(zipped, tmp_path):
    """Killed by: errors of other kinds than ValueError passed on."""
    content = {"state_dict": {f"layer.{k}": torch.randn(3, 2) for k in range(3)}, "epoch": 3}
    torch.save(content, tmp_path / "x.ckpt", _use_new_zipfile_serialization=zipped)
    data = (tmp_path / "x.ckpt").read_bytes()
    dice, path = random.Random(0), tmp_path / "y.ckpt"
    refused = 0
    for _ in range(120):
        changed = bytearray(data)
        for _ in range(dice.randint(1, 3)):
            changed[dice.randrange(len(changed))] = dice.randrange(256)
        path.write_bytes(changed)
        try:
            ours = read(path)
        except CheckpointError as error:
            assert str(path) in str(error)
            refused += 1
            continue
        try:
            theirs = torch.load(path, weights_only=True)
            theirs = theirs.get("state_dict", theirs)
            theirs = {str(key): x for key, x in theirs.items() if isinstance(x, torch.Tensor)}
        except Exception:
            continue
        for key in ours.keys() & theirs.keys():
            assert ours[key].shape == theirs[key].shape
            assert ours[key].numpy().tobytes() == theirs[key].numpy().tobytes()
    assert 10 < refused < 110
