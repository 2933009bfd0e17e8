"""Both sides of a table of ops: packed records in Python, structs and enums in a C header.

An op is a class of named, typed fields (see :mod:`.ops`). Its record is the number of the op and
a C struct: structs that ops share, then pointers, then integers and floats of four bytes. The
kernels are compiled with a header of the same structs, which asserts every offset.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from operator import attrgetter
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    NamedTuple,
    dataclass_transform,
    get_args,
    get_type_hints,
)

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = Any  # whoever only looks for a compiler need not have torch

Int = Annotated[int, "int32_t"]
Flag = Annotated[bool, "int32_t"]
Float = Annotated[float, "float"]
ReadFloats = Annotated[Tensor, "const float *"]
Floats = Annotated[Tensor, "float *"]
ReadInts = Annotated[Tensor, "const int32_t *"]
Ints = Annotated[Tensor, "int32_t *"]
ReadLongs = Annotated[Tensor, "const int64_t *"]
Longs = Annotated[Tensor, "int64_t *"]
ReadBytes = Annotated[Tensor, "const int8_t *"]
Bytes = Annotated[Tensor, "int8_t *"]
ReadMemory = Annotated[Tensor, "const void *"]
Memory = Annotated[Tensor, "void *"]

_CODES = {"int32_t": "i", "float": "f"}
_NUMBER = 8  # bytes that the number of an op takes


@dataclass_transform(kw_only_default=True)
class Op:
    """Base of ops, and of what they share. A subclass declares its fields, widest first."""

    def __init_subclass__(cls) -> None:
        dataclass(kw_only=True, eq=False)(cls)


@dataclass(frozen=True, slots=True)
class Member:
    """A field of an op.

    Attributes:
        path: its name in Python, after that of the struct that it lies in.
        type: its type in C.
        offset: bytes from the start of the op's struct.
    """

    path: str
    type: str
    offset: int

    @property
    def code(self) -> str:
        """What ``struct`` calls the type."""
        return _CODES.get(self.type, "Q")

    @property
    def end(self) -> int:
        """Offset of what may follow."""
        return self.offset + struct.calcsize(self.code)


class _Packer(NamedTuple):
    number: int
    layout: struct.Struct
    values: Callable[[Op], tuple[Any, ...]]
    pointers: tuple[int, ...]  # which of the values they are


class Records:
    """The records of some ops, all as long as the longest.

    Args:
        ops: their classes, in the order of their numbers.
    """

    def __init__(self, ops: Sequence[type[Op]]) -> None:
        self._ops = ops
        self.size = _NUMBER + max(_size(op) for op in ops)
        self._packers = {op: self._packer(number, op) for number, op in enumerate(ops)}

    def _packer(self, number: int, op: type[Op]) -> _Packer:
        found, codes, at = members(op), "=q", 0
        for member in found:
            codes += f"{member.offset - at}x{member.code}"
            at = member.end
        layout = struct.Struct(f"{codes}{self.size - _NUMBER - at}x")
        pointers = tuple(i for i, member in enumerate(found) if member.code == "Q")
        return _Packer(number, layout, attrgetter(*(m.path for m in found)), pointers)

    def pack(self, op: Op) -> tuple[bytes, list[Tensor]]:
        """One op as the bytes of an ``hb_op``, and the tensors, of any shape, that it addresses."""
        number, layout, get, pointers = self._packers[type(op)]
        values = list(get(op))
        tensors: list[Tensor] = []
        for index in pointers:
            tensor = values[index]
            if tensor is None:
                values[index] = 0
            else:
                values[index] = tensor.data_ptr()
                tensors.append(tensor)
        return layout.pack(number, *values), tensors

    def pointers(self, record: bytes) -> Iterator[tuple[int, int]]:
        """(place in the record, address) of each pointer of a packed op that is not NULL."""
        (number,) = struct.unpack_from("=q", record)
        for member in members(self._ops[number]):
            (address,) = struct.unpack_from("=Q", record, _NUMBER + member.offset)
            if member.code == "Q" and address:
                yield _NUMBER + member.offset, address

    def header(self, enums: Mapping[str, type[IntEnum]], numbers: Mapping[str, int]) -> str:
        """The C header: enums by prefix, numbers, structs, prototypes, and the call of an op."""
        lines = ["/* Made from ops.py. */", "#ifndef HALFBYTE_OPS_H", "#define HALFBYTE_OPS_H", ""]
        lines += ["#include <stddef.h>", "#include <stdint.h>", ""]
        lines += [f"#define {name} {value}" for name, value in numbers.items()]
        for prefix, enum in enums.items():
            inside = ", ".join(f"{prefix}_{item.name} = {item.value}" for item in enum)
            lines.append(f"enum {{ {inside} }};")
        shared = dict.fromkeys(t for op in self._ops for t in _fields(op).values() if _is_op(t))
        for op in (*shared, *self._ops):
            lines += ["", *_struct(op)]
        names = [c_name(op) for op in self._ops]
        union = "".join(f" struct {name} {name};" for name in names)
        lines += ["", f"typedef struct {{ int64_t kind; union {{{union} }}; }} hb_op;"]
        lines.append(f'_Static_assert(sizeof(hb_op) == {self.size}, "size of hb_op");')
        kinds = ", ".join(f"OP_{name.upper()} = {i}" for i, name in enumerate(names))
        lines.append(f"enum {{ {kinds} }};")
        for name in names:
            lines.append(f"void hb_{name}(const struct {name} *op, int tid, int threads);")
        lines += ["", "static inline void hb_call(const hb_op *op, int tid, int threads) {"]
        lines.append("    switch (op->kind) {")
        for name in names:
            call = f"hb_{name}(&op->{name}, tid, threads)"
            lines.append(f"        case OP_{name.upper()}: {call}; break;")
        return "\n".join([*lines, "    }", "}", "", "#endif", ""])


def c_name(op: type[Op]) -> str:
    """``RmsNorm`` as C spells it: ``rms_norm``."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", op.__name__).lower()


@cache  # resolving annotations takes milliseconds, and every engine compares its header
def members(op: type[Op]) -> tuple[Member, ...]:
    """Fields of an op, those of shared structs one by one, in the order and places that C gives.

    Raises TypeError where C would leave a gap before one.
    """
    found: list[Member] = []
    at = 0
    for name, hint in _fields(op).items():
        if _is_op(hint):
            inner = [Member(f"{name}.{m.path}", m.type, at + m.offset) for m in members(hint)]
            size = _size(hint)
        else:
            inner = [Member(name, hint, at)]
            size = inner[0].end - at
        if any(m.offset % struct.calcsize(m.code) for m in inner):
            raise TypeError(f"{op.__name__}.{name} lies at byte {at}: wider fields come first")
        found += inner
        at += size
    return tuple(found)


@cache
def _fields(op: type[Op]) -> Mapping[str, Any]:
    """Names of fields: type in C, or the class of a shared struct."""
    found: dict[str, Any] = {}
    for name, hint in get_type_hints(op, include_extras=True).items():
        if not hasattr(hint, "__metadata__") and not _is_op(hint):  # ... | None
            hint = get_args(hint)[0]
        found[name] = hint if _is_op(hint) else hint.__metadata__[0]
    return found


def _is_op(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, Op)


def _size(op: type[Op]) -> int:
    """Bytes of the struct of an op: whole pointers."""
    return -(-members(op)[-1].end // 8) * 8


def _struct(op: type[Op]) -> list[str]:
    name = c_name(op)
    lines = [f"struct {name} {{"]
    checks = [f'_Static_assert(sizeof(struct {name}) == {_size(op)}, "size of {name}");']
    offsets: dict[str, int] = {}
    for member in members(op):
        offsets.setdefault(member.path.split(".")[0], member.offset)
    for field, hint in _fields(op).items():
        declared = f"struct {c_name(hint)}" if _is_op(hint) else hint
        lines.append(f"    {declared} {field};".replace("* ", "*"))
        place = f"offsetof(struct {name}, {field}) == {offsets[field]}"
        checks.append(f'_Static_assert({place}, "{name}.{field}");')
    return [*lines, "};", *checks]
