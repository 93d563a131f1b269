"""The precision and the kind of convolution that suit a device."""

import contextlib
import platform
from collections.abc import Iterator
from functools import cache

import torch

from topoprune._engine.convolutions import LARGEST, SmallAsProducts


@cache
def precision(device: str) -> torch.dtype:
    """Choose the precision of convolutions on a kind of device ("cpu", "cuda").

    Only instructions for bfloat16 make it fast. A processor with AVX2 alone trains some ten times slower in emulated
    bfloat16 than in float32, one with AVX-512 alone half as fast (`measure.training` times both).
    """
    if device == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = device == "cpu" and _bfloat16_instructions()
    return torch.bfloat16 if native else torch.float32


def _bfloat16_instructions() -> bool:
    """Tell whether this processor has instructions for bfloat16 that oneDNN uses."""
    x86 = platform.machine() in ("x86_64", "AMD64")
    if x86 and not torch.cpu._is_avx512_bf16_supported():
        return False  # oneDNN is content with AVX-512 alone, where it emulates them
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def product_columns(device: str) -> int:
    """Columns of the largest image whose convolution is faster as a product on a kind of device; 0 if none is.

    Units that multiply whole tiles (Intel's AMX) lose more on a short row than those of AVX-512.
    """
    if device != "cpu" or precision(device) is not torch.bfloat16:
        return 0
    return LARGEST if torch.cpu._is_amx_tile_supported() else 2


@contextlib.contextmanager
def autocast(device: torch.device) -> Iterator[None]:
    """Compute in the precision that suits `device`, and convolve in the way that suits it."""
    native, columns = precision(device.type) is torch.bfloat16, product_columns(device.type)
    with (
        torch.autocast(device.type, dtype=torch.bfloat16, enabled=native),
        SmallAsProducts(columns) if columns else contextlib.nullcontext(),
    ):
        yield
