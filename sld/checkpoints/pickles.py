"""Files of torch.save: their tensors' headers, read without torch, and where the numbers of each stand in the file.

A pickle is a program for a small stack machine. Here it is walked by a machine that knows what torch's tensors and
plain containers need, and nothing else. It imports nothing and calls nothing by a name from the file: such a name is
looked up in `_CALLS` and `_INERT`, and refused if it stands in neither. What the machine finds is bounded by the file:
sizes that it states are compared with the bytes that are there before anything is read.
"""

from __future__ import annotations

import io
import math
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from sld.checkpoints.remap import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "UntypedStorage": "uint8",
    "QInt8Storage": "int8",
    "QUInt8Storage": "uint8",
    "QInt32Storage": "int32",
}
"""Names of dtypes by torch's classes of storages."""

_BYTES = {"bool": 1, "bfloat16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1, "complex64": 8, "complex128": 16}
_BYTES |= {f"{kind}{bits}": bits // 8 for kind in ("int", "uint") for bits in (8, 16, 32, 64)}
_BYTES |= {f"float{bits}": bits // 8 for bits in (16, 32, 64)}

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # what files from before torch 1.6 begin with
_LOCAL = struct.Struct("<4s22xHH")  # before a zip's entry: a signature, and two lengths of what else precedes its data
_INFLATED = 20  # deflate takes a tenth off weights; an archive that claims to unpack to more than this is a bomb
_INDEX = 2**28  # bytes of a pickle without its numbers; a training state of Stable Diffusion has 2**20


class Global(NamedTuple):
    """A name that a pickle refers to. Nothing is imported."""

    name: str


class Storage(NamedTuple):
    """A run of numbers in the file, which tensors are views of."""

    key: str
    dtype: str
    numel: int

    @property
    def nbytes(self) -> int:
        return self.numel * _BYTES[self.dtype]


class Stored(NamedTuple):
    """A dense tensor as a view of its storage; offset and stride count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: str


class Odd(NamedTuple):
    """A tensor that is not dense numbers in the file, in words."""

    kind: str


class Opaque:
    """A value beside the weights that nobody looks at."""


class Archive(NamedTuple):
    """The content of a file of torch.save.

    Attributes:
        path: where it is.
        content: what was saved, with `Stored` in place of tensors and `Opaque` in place of what is not looked at.
        places: by a storage's key its first byte in the file, or the name of its record where that is compressed.
    """

    path: Path
    content: Any
    places: Mapping[str, int | str]

    def reader(self) -> Callable[[Stored], Tensor]:
        """Map the file; the result makes tensors of it, mapped where they are not compressed."""
        import torch

        mapped: Any = torch.UntypedStorage.from_file(str(self.path), False, self.path.stat().st_size)
        open_zip = cache(lambda: zipfile.ZipFile(self.path))

        def read(stored: Stored) -> Tensor:
            numbers: Any
            place = self.places[stored.storage.key]
            if isinstance(place, str):
                numbers = torch.frombuffer(bytearray(_inflated(open_zip(), place)), dtype=torch.uint8).untyped_storage()
            else:
                numbers = mapped[place : place + stored.storage.nbytes]
                if place % _BYTES[stored.dtype]:
                    numbers = numbers.clone()  # not every processor reads a number that is not aligned
            empty = torch.empty(0, dtype=getattr(torch, stored.dtype))
            return empty.set_(numbers, stored.offset, stored.shape, stored.stride)

        return read


def open_archive(path: Path) -> Archive:
    """Read what torch.save wrote, but for the numbers.

    Raises:
        CheckpointError: the file is no such file, is damaged, would run code when read by others, or claims sizes that
            it does not have.
    """
    try:
        with path.open("rb") as file:
            return _open_zip(path) if file.read(4) == b"PK\x03\x04" else _open_old(path, file)
    except CheckpointError:
        raise
    except Exception as error:  # a damaged file may raise any
        reason = str(error).split("\n")[0] or type(error).__name__
        raise CheckpointError(f"{path} is truncated or damaged ({reason}): fetch it again") from None


def _open_zip(path: Path) -> Archive:
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        entries = {entry.filename: entry for entry in archive.infolist()}
        top = archive.filelist[0].filename.split("/")[0]
        if f"{top}/constants.pkl" in entries:
            raise CheckpointError(
                f"{path} is a TorchScript program, not a dictionary of weights: use a file with the weights alone"
            )
        if f"{top}/data.pkl" not in entries:
            raise CheckpointError(f"{path} is a zip archive that torch.save did not write (no data.pkl): unpack it")
        if len(entries) < len(archive.filelist):
            raise CheckpointError(f"{path} is damaged (it has two entries of one name): fetch it again")
        sizes = [entry.file_size for entry in entries.values()]
        if sum(sizes) > _INFLATED * path.stat().st_size or entries[f"{top}/data.pkl"].file_size > _INDEX:
            raise CheckpointError(
                f"{path} would unpack to {sum(sizes):,} bytes and is refused: no weights can be compressed so far"
            )
        if f"{top}/byteorder" in entries and archive.read(f"{top}/byteorder") != b"little":
            raise CheckpointError(f"{path} was written on a big-endian machine, which is not read")
        content, storages = _walk(path, io.BytesIO(archive.read(f"{top}/data.pkl")))
        return Archive(
            path, content, {key: _place(file, entries, f"{top}/data/{key}", s) for key, s in storages.items()}
        )


def _place(file: IO[bytes], entries: Mapping[str, zipfile.ZipInfo], name: str, storage: Storage) -> int | str:
    """Where the numbers of a storage are; see `Archive.places`."""
    if name not in entries:
        raise ValueError(f"no record {name}")
    entry, size = entries[name], storage.nbytes
    if entry.file_size != size:
        raise ValueError(f"record {name} has {entry.file_size} bytes where its tensors need {size}")
    if not size:
        return 0
    if entry.compress_type == zipfile.ZIP_DEFLATED:
        return name
    file.seek(entry.header_offset)
    signature, *lengths = _LOCAL.unpack(file.read(_LOCAL.size))
    start = entry.header_offset + _LOCAL.size + sum(lengths)
    if (
        signature != b"PK\x03\x04"
        or entry.compress_type
        or entry.compress_size != size
        or start + size > file.seek(0, 2)
    ):
        raise ValueError(f"record {name} is not where the archive says")
    return start


def _inflated(archive: zipfile.ZipFile, name: str) -> bytes:
    try:
        return archive.read(name)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # the last of encrypted ones
        raise CheckpointError(f"{archive.filename} is truncated or damaged ({error}): fetch it again") from None


def _open_old(path: Path, file: IO[bytes]) -> Archive:
    """A file from before torch 1.6: pickles one behind another, then of every storage the count and the numbers."""
    file.seek(257)
    if file.read(5) == b"ustar":
        raise CheckpointError(f"{path} is a tar archive, which torch has not written since 2017: use a newer file")
    file.seek(0)
    if (found := _walk(path, file)[0]) != _MAGIC:
        if isinstance(found, int | Opaque):
            raise CheckpointError(f"{path} is no pickle of weights, or damaged: fetch it again")
        return Archive(path, found, {})
    protocol, system = _walk(path, file)[0], _walk(path, file)[0]
    if protocol != _PROTOCOL or not system["little_endian"]:
        raise ValueError(f"protocol {protocol}, little-endian {system['little_endian']}")
    content, storages = _walk(path, file)
    places: dict[str, int | str] = {}
    end = path.stat().st_size
    for key in map(str, _walk(path, file)[0]):
        (numel,) = struct.unpack("<q", file.read(8))
        if key in storages and numel != storages[key].numel:
            raise ValueError(f"storage {key} has {numel} numbers where its tensors need {storages[key].numel}")
        places[key] = file.tell()
        if file.seek(storages[key].nbytes, 1) > end:
            raise ValueError(f"storage {key} goes beyond the end of the file")
    if missing := storages.keys() - places.keys():
        raise ValueError(f"no storage {missing.pop()}")
    return Archive(path, content, places)


# The machine


def _walk(path: Path, stream: IO[bytes]) -> tuple[Any, dict[str, Storage]]:
    """The value of one pickle, and the storages that its tensors are views of, by their keys."""
    stack: list[Any] = []
    marks: list[list[Any]] = []
    memo: dict[int, Any] = {}
    storages: dict[str, Storage] = {}
    argument: Any
    for opcode, argument, _ in pickletools.genops(stream):
        name = opcode.name
        if name.startswith(_LITERALS):
            stack.append(argument)
        elif name in _NEW:
            stack.append(_NEW[name]())
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "MARK":
            marks.append(stack)
            stack = []
        elif name in _TUPLES:
            n = _TUPLES[name]
            stack[-n:] = [tuple(stack[-n:])]
        elif name in _MARKED:
            items, stack = stack, marks.pop()
            if name == "TUPLE":
                stack.append(tuple(items))
            elif name == "APPENDS":
                stack[-1].extend(items)
            else:
                _set(stack[-1], zip(items[::2], items[1::2], strict=True))
        elif name == "APPEND":
            item = stack.pop()
            stack[-1].append(item)
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            _set(stack[-1], [(key, value)])
        elif name == "GLOBAL":
            stack.append(_global(path, *argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(_global(path, module, attribute))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, function = stack.pop(), stack.pop()
            stack.append(_call(function, arguments))
        elif name == "BUILD":
            attributes, target = stack.pop(), stack[-1]  # which no weight needs, but those of a ParameterDict
            if type(target) is dict and isinstance(attributes, dict):
                _set(target, attributes.get("_parameters", {}).items())
        elif name == "BINPERSID":
            storage = _storage(*stack.pop())
            if storages.setdefault(storage.key, storage) != storage:
                raise ValueError(f"storage {storage.key} is described in two ways")
            stack.append(storage)
        elif name == "STOP":
            return stack.pop(), storages
        elif name not in ("PROTO", "FRAME"):
            raise ValueError(f"a pickle of weights has no {name}")
    raise ValueError("a pickle without an end")


_LITERALS = ("BININT", "LONG1", "BINFLOAT", "BINUNICODE", "BINSTRING", "BINBYTES", "SHORT_BIN")
_NEW: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": Opaque,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MARKED = ("TUPLE", "APPENDS", "SETITEMS")


def _set(target: dict[Any, Any], pairs: Iterable[tuple[Any, Any]]) -> None:
    if type(target) is not dict:
        raise ValueError(f"items are set in a {type(target).__name__}")
    for key, value in pairs:
        # the hash of another key may go as deep as it is nested
        target[key if isinstance(key, str | int | Global) else Opaque()] = value


def _global(path: Path, module: str, attribute: str) -> Global:
    name = f"{'builtins' if module == '__builtin__' else module}.{attribute}"  # Python 2's name of it
    if name in _CALLS or name in _INERT or (module.startswith("torch") and attribute in _KNOWN):
        return Global(name)
    if attribute[:1].isupper():
        raise CheckpointError(
            f"{path} holds an object of the class {name} beside weights or in place of them; it would run code when "
            "read, and is refused: use a .safetensors file, or have someone who trusts it save its state_dict alone"
        )
    raise CheckpointError(
        f"{path} would run code when read (it refers to {name}) and is refused: use a .safetensors file, or have "
        "someone who trusts it convert it"
    )


def _call(function: Any, arguments: tuple[Any, ...]) -> Any:
    """What torch would make of these arguments."""
    if not isinstance(function, Global) or not isinstance(arguments, tuple):
        raise ValueError(f"a call of a {type(function).__name__}")
    return _CALLS[function.name](*arguments) if function.name in _CALLS else Opaque()


def _storage(kind: str, storage: Global, key: str, location: str, numel: int, view: object = None) -> Storage:
    class_name = storage.name.rsplit(".", 1)[-1]
    if kind != "storage" or class_name not in _STORAGES or view is not None:
        raise ValueError(f"a storage of kind {class_name}")
    return Storage(str(key), _STORAGES[class_name], _count(numel))


def _tensor(
    storage: Storage,
    offset: int,
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    requires_grad: bool = False,
    hooks: object = None,
    metadata: object = None,
) -> Stored | Odd:
    return _view(storage, offset, shape, stride, storage.dtype, metadata)


def _tensor_of_dtype(
    storage: Storage,
    offset: int,
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    requires_grad: bool,
    hooks: object,
    dtype: Global,
    metadata: object = None,
) -> Stored | Odd:
    return _view(storage, offset, shape, stride, dtype.name.removeprefix("torch."), metadata)


def _view(
    storage: Storage, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], dtype: str, metadata: object
) -> Stored | Odd:
    if metadata:
        return Odd("a view that is conjugated or negative")
    if dtype not in _BYTES:
        return Odd(f"a tensor of {dtype}")
    shape, stride = tuple(map(_count, shape)), tuple(map(_count, stride))
    last = _count(offset) + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    if math.prod(shape) and (last + 1) * _BYTES[dtype] > storage.nbytes:
        raise ValueError(f"a tensor of shape {shape} goes beyond its storage of {storage.numel} numbers")
    return Stored(storage, offset, shape, stride, dtype)


def _count(number: int) -> int:
    if type(number) is not int or not 0 <= number < 2**48:
        raise ValueError(f"{str(number)[:20]!r} for a size")
    return number


def _odd(kind: str) -> Callable[..., Odd]:
    return lambda *arguments: Odd(kind)


def _dictionary(pairs: Iterable[tuple[Any, Any]] = ()) -> dict[Any, Any]:
    made: dict[Any, Any] = {}
    _set(made, pairs.items() if isinstance(pairs, dict) else pairs)
    return made


_CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _dictionary,
    "collections.Counter": _dictionary,
    "torch.Size": tuple,
    "torch.nn.modules.container.ParameterDict": _dictionary,
    "torch.nn.parameter.Parameter": lambda data, *_: data,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_dtype,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
    "torch._tensor._rebuild_from_type_v2": lambda function, kind, arguments, state: _call(function, arguments),
    "torch._utils._rebuild_sparse_tensor": _odd("a sparse tensor"),
    "torch._utils._rebuild_qtensor": _odd("a quantized tensor"),
    "torch._utils._rebuild_nested_tensor": _odd("a nested tensor"),
    "torch._utils._rebuild_meta_tensor_no_storage": _odd("a tensor without numbers (on torch's meta device)"),
}
"""What the machine makes of a call, by the name that is called."""

_INERT = frozenset(
    (
        "_codecs.encode",
        "builtins.bytearray",
        "builtins.complex",
        "builtins.set",
        "torch.device",
        "torch.serialization._get_layout",
        "numpy.dtype",
        "numpy.ndarray",
        "numpy.core.multiarray.scalar",
        "numpy._core.multiarray.scalar",
        "numpy.core.multiarray._reconstruct",
        "numpy._core.multiarray._reconstruct",
        "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    )
)
"""Names of what lies beside weights in files that training wrote. Nothing is made of them."""

_KNOWN = frozenset([*_STORAGES, *_BYTES, "Tensor", "per_tensor_affine", "per_channel_affine"])
"""Names of torch's storages, dtypes and the like, which stand in several of its modules."""
