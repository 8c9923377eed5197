"""Peak memory of this process, in GiB."""

from __future__ import annotations

import resource
import sys


def peak_memory_gib() -> float:
    """The most GPU memory that torch held at once where a GPU is in use, else the process's largest resident set."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return float(torch.cuda.max_memory_allocated()) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
