"""Memory of the process that trains on a CPU."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # glibc's malloc.h


def keep_memory() -> None:
    """Let this process keep what it frees, where its C library is glibc; elsewhere do nothing.

    A step frees as many large buffers as the next one asks for. By default glibc maps each anew, and
    the system fills it with zeros, page fault by page fault; `bench_training` measures what that costs.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)  # the largest size_t: never
