"""Memory of a process that trains on the CPU."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # glibc's malloc.h


def keep_memory() -> None:
    """Tell glibc's malloc not to return memory to the system, for the rest of this process.

    A step frees as many large buffers as the next one allocates. By default glibc maps each anew, and the system fills
    it with zeros, page fault by page fault (`measure.training` times that). Other C libraries are left as they are.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)  # the largest size_t: never
