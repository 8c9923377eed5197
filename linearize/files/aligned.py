"""Loaded weights in memory as torch allocates it, not at whatever address they have in a mapped file."""

from __future__ import annotations

from collections import Counter

from torch import Tensor, nn

ALIGNMENT = 64
"""Bytes; what torch's CPU allocator gives."""


def align_tensors(model: nn.Module) -> None:
    """Moves each tensor on the CPU that begins at an odd address, one at a time, to memory of its own.

    safetensors maps a file and gives views of it, at addresses that depend on the length of the file's header. Kernels
    for CPUs choose their path by the address, and round otherwise: the same weights would give other logits once they
    were saved and loaded. Whoever writes to the mapped file later would also change the model.

    Tensors that share memory with another one stay where they are.
    """
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}.values()
    plain = [tensor for tensor in tensors if tensor.device.type == "cpu" and tensor.numel()]
    sharing = Counter(_memory(tensor) for tensor in plain)
    for tensor in plain:
        if sharing[_memory(tensor)] == 1 and tensor.data_ptr() % ALIGNMENT:
            tensor.data = tensor.data.clone()


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
