"""The file of a program: OpenVINO's XML and its weights behind each other.

OpenVINO stores a model as two files. Here the weights stand behind the XML, after zeros, and the offsets in
the XML count from the beginning of the file. OpenVINO reads such a file by itself: ``core.read_model(path,
path)``, in any language, since it stops reading XML at the first zero. A comment in the first lines says how
long the parts are, and a digest tells a file that is damaged before OpenVINO sees it.

Importing this module imports neither torch nor OpenVINO.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from typing import Any

import attrs

from torchquilt import ProgramError

#: Where the facts are that a program states about itself, in the runtime information of the model.
FACTS = ("torchquilt", "program")
_DECLARATION = b'<?xml version="1.0"?>\n'
_HEADER = re.compile(
    rb'<\?xml version="1\.0"\?>\n<!-- torchquilt-openvino 1: '
    rb"(\d{12}) bytes of XML, weights from (\d{12}) to (\d{12}), sha256 ([0-9a-f]{64}) -->\n"
)
_DIGEST = slice(-69, -5)
_NO_DIGEST = b"0" * 64
_OFFSET = re.compile(rb'(<data [^>]*\boffset=")(\d+)(" size="\d+")')
#: Weights begin at a multiple of this, as OpenVINO's own files have it.
_ALIGNMENT = 64
_GET_AGAIN = "get the file again from where it was saved"


@attrs.frozen(eq=False)
class StoredProgram:
    """The parts of a file.

    Args:
        xml: OpenVINO's description of the model, whose offsets count from the beginning of the file.
        buffer: the whole file.
    """

    xml: bytes
    buffer: bytes

    @classmethod
    def of(cls, buffer: bytes) -> StoredProgram:
        """Read a file.

        Raises:
            ProgramError: it is cut off, damaged, or something else.
        """
        found = _HEADER.match(buffer)
        if found is None:
            raise ProgramError(
                "This is not a program of torchquilt for OpenVINO, or only its beginning.",
                expected="XML whose first comment says 'torchquilt-openvino 1'",
                got=f"{len(buffer):,} bytes, which begin with {buffer[:24]!r}",
                remedy=_GET_AGAIN,
            )
        length, _, end = (int(found[number]) for number in (1, 2, 3))
        if len(buffer) != end:
            raise ProgramError(
                "The program is cut off." if len(buffer) < end else "The file goes on behind the program.",
                expected=f"{end:,} bytes, as its first lines say",
                got=f"{len(buffer):,} bytes",
                remedy=_GET_AGAIN,
            )
        if _digest(buffer, found.end()) != found[4]:
            raise ProgramError(
                "The program is damaged.",
                expected=f"sha256 {found[4].decode()}, as its first lines say",
                got=f"sha256 {_digest(buffer, found.end()).decode()}",
                remedy=_GET_AGAIN,
            )
        return cls(buffer[:length], buffer)


def packed(xml: bytes, weights: bytes) -> bytes:
    """One file of the two that OpenVINO writes."""
    rest = xml.removeprefix(_DECLARATION)
    front = len(_header(0, 0, 0))
    begin = 0
    while (length := front + len(moved := _moved(rest, begin))) >= begin:
        begin = _aligned(length + 1)  # the offsets grow with it, which may take another digit
    end = begin + len(weights)
    made = _header(length, begin, end) + moved + bytes(begin - length) + weights
    return _header(length, begin, end, _digest(made, front)) + made[front:]


def _moved(xml: bytes, by: int) -> bytes:
    """The XML for weights that begin so many bytes later."""
    return _OFFSET.sub(lambda found: found[1] + str(int(found[2]) + by).encode() + found[3], xml)


def _header(length: int, begin: int, end: int, digest: bytes = _NO_DIGEST) -> bytes:
    text = f"{length:012} bytes of XML, weights from {begin:012} to {end:012}, sha256 {digest.decode()}"
    return _DECLARATION + f"<!-- torchquilt-openvino 1: {text} -->\n".encode()


def _digest(buffer: bytes, end_of_header: int) -> bytes:
    """Digest of a file without the digest in its header."""
    header = bytearray(buffer[:end_of_header])
    header[_DIGEST] = _NO_DIGEST
    made = hashlib.sha256(header)
    made.update(memoryview(buffer)[end_of_header:])
    return made.hexdigest().encode()


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _sizes(values: Iterable[int]) -> tuple[int, ...]:
    return tuple(values)


@attrs.frozen
class Tensor:
    """A tensor, or a constant, that a program takes or returns.

    Args:
        dtype: its name in torch; that of a number's type where it is constant.
        low, high: the smallest and the largest size of each dimension.
        is_constant: whether it is no tensor and has one value.
        constant: that value.
        number: of an output, which output of OpenVINO's model it is; two may be one.
    """

    dtype: str
    low: tuple[int, ...] = attrs.field(default=(), converter=_sizes)
    high: tuple[int, ...] = attrs.field(default=(), converter=_sizes)
    is_constant: bool = False
    constant: Any = None
    number: int = 0


@attrs.frozen
class Facts:
    """Facts that a program states about itself.

    Args:
        inputs, outputs: in order.
        structure: the structures of inputs and outputs as pytree writes them.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    structure: tuple[str, str]

    def to_json(self) -> str:
        """The facts as JSON text."""
        return json.dumps(attrs.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Facts:
        """The inverse of :meth:`to_json`."""
        plain = json.loads(text)
        inputs, outputs = (tuple(Tensor(**one) for one in plain[key]) for key in ("inputs", "outputs"))
        first, second = plain["structure"]
        return cls(inputs, outputs, (first, second))
