"""The heap that a CPU's tensors lie in."""

import torch

_LARGEST = (32 << 20) - (16 << 10)  # bytes: glibc learns from no block of more than 32 MiB


def keep_pages() -> None:
    """Let the heap hold up to 64 MiB that are free, since the next step asks for as much.

    glibc gives free memory back beyond twice the largest mapped block that it saw freed (mallopt(3), M_MMAP_THRESHOLD). Before
    it has seen a large one, each step of a small model waits for thousands of pages. Does nothing under other C libraries.
    """
    torch.empty(_LARGEST, dtype=torch.uint8)
