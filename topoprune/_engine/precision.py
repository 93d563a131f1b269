"""The precision and the kind of convolution that suit a device."""

import contextlib
import platform
from collections.abc import Iterator
from functools import cache

import torch

from topoprune._engine.convolutions import SmallAsProducts, small


def default_device() -> str:
    """ "cuda" where there is one, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@cache
def precision(device: str) -> torch.dtype:
    """What convolutions are computed in on a kind of device ("cpu", "cuda"): bfloat16 where it has
    instructions for that, else float32.

    Others emulate bfloat16: a processor with AVX2 alone trains some ten times slower in it than in
    float32, one with AVX-512 alone twice (`bench_training` measures both).
    """
    native = torch.cuda.is_bf16_supported(including_emulation=False) if device == "cuda" else _bfloat16_instructions()
    return torch.bfloat16 if native else torch.float32


def products(device: str) -> int:
    """Columns of the largest image that a kind of device convolves as a product of matrices, see
    `convolution`; 0 where it convolves none so."""
    return small() if device == "cpu" and precision(device) is torch.bfloat16 else 0


def _bfloat16_instructions() -> bool:
    """Whether this processor has instructions for bfloat16 and oneDNN uses them."""
    x86 = platform.machine() in ("x86_64", "AMD64")
    if x86 and not torch.cpu._is_avx512_bf16_supported():
        return False  # oneDNN is content with AVX-512 alone, where it emulates them
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


@contextlib.contextmanager
def autocast(device: torch.device) -> Iterator[None]:
    """The precision of `device`, and the way of convolving that suits it."""
    native, columns = precision(device.type) is torch.bfloat16, products(device.type)
    with (
        torch.autocast(device.type, dtype=torch.bfloat16, enabled=native),
        SmallAsProducts(columns) if columns else contextlib.nullcontext(),
    ):
        yield
