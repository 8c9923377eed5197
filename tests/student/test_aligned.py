"""What is loaded lies in memory as torch allocates it: how a CPU's kernels round depends on addresses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from linearize.api import load_teacher
from linearize.files.aligned import ALIGNMENT, align_tensors
from linearize.student.modeling import load_student, save_student


def odd(values: Tensor) -> Tensor:
    """The same values at an address that no allocator gives."""
    return torch.cat([values.new_zeros(1), values.flatten()])[1:].view(values.shape)


def lie_odd(model: nn.Module) -> list[str]:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return [name for name, tensor in tensors.items() if tensor.data_ptr() % ALIGNMENT]


def test_a_loaded_student_lies_where_torch_puts_tensors(llama: Any, tmp_path: Path) -> None:
    save_student(llama.convert(llama.hybrid), tmp_path)
    assert lie_odd(load_student(tmp_path)) == []


def test_a_loaded_teacher_lies_where_torch_puts_tensors() -> None:
    assert lie_odd(load_teacher("hovle", dtype="float32").model) == []


def test_tensors_keep_their_values_their_ties_and_what_requires_grad() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    model[0].bias.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for parameter in model.parameters():
        parameter.data = odd(parameter.data)
    assert lie_odd(model) == ["0.weight", "0.bias"]
    align_tensors(model)
    assert lie_odd(model) == []
    assert model[1].weight is model[0].weight
    assert [parameter.requires_grad for parameter in model.parameters()] == [True, False]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_tensors_that_share_memory_go_on_sharing_it() -> None:
    model = nn.Module()
    model.whole = nn.Parameter(odd(torch.ones(4, 3)))
    model.part = nn.Parameter(model.whole.data[1:3])
    align_tensors(model)
    with torch.no_grad():
        model.whole.fill_(2.0)
    assert model.part.eq(2.0).all()
