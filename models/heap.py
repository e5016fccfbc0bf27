"""How this process keeps memory. Of C libraries only glibc has something to say here; elsewhere nothing happens."""

from __future__ import annotations

import ctypes
import gc

# From glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
#: Buffers of this size, whole updates and models, are given back to the system when they are let go of. Chunks are
#: smaller: to ask the system for each of them would double what an update costs.
_LARGE_BYTES = 512 * 1024
#: What is kept of the heap's free end.
_KEPT_BYTES = 1024 * 1024


def tidy_heap() -> bool:
    """Let all threads share one heap, and large buffers be apart from it; whether the C library can.

    To be called before there are threads. glibc gives each thread a heap of its own, and what one of them has let go of
    no other can use; and once a large buffer was let go of, all others of its size lie on the heap, between small
    things that stay. So a process in which a handful of threads hold a large buffer now and then takes several times
    what it has in use. One heap costs threads a lock, which those that hold Python's own lock would wait for anyway.
    """
    wanted = ((_M_ARENA_MAX, 1), (_M_MMAP_THRESHOLD, _LARGE_BYTES), (_M_TRIM_THRESHOLD, _KEPT_BYTES))
    try:
        mallopt = ctypes.CDLL(None).mallopt
        taken = [mallopt(parameter, value) for parameter, value in wanted]
    except (AttributeError, OSError, TypeError):
        return False
    return all(taken)


def leave_alone() -> None:
    """What is here now stays for good, so that looking for garbage leaves it out: modules, most of all.

    Python looks at everything once what has survived since is a quarter of it. A quarter of the modules is much to have
    about as garbage, and to look at all of it holds the event loop up.
    """
    gc.collect()
    gc.freeze()


def give_back() -> bool:
    """Give what the heap has free between its parts back to the system; whether there was anything. Takes about 1 ms
    for 10 MB.
    """
    try:
        return bool(ctypes.CDLL(None).malloc_trim(0))
    except (AttributeError, OSError, TypeError):
        return False
