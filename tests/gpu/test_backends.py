"""Kernel backends against the torch reference on a CUDA device: outputs, states and every gradient."""

from __future__ import annotations

import copy

import pytest
import torch
from linearize_mamba2.config import Mamba2Config
from linearize_mamba2.mixer import Mamba2Mixer
from torch import Tensor

from linearize.ops.backends import available_backends, choose
from linearize.protocols import AttentionSite

REASONS = available_backends()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; kernels do not run on a CPU"),
]
# One head shape for all tests: a new shape or dtype costs minutes of kernel tuning.
BATCH, HEADS, GROUPS, WIDTH, HIDDEN = 2, 16, 8, 128, 256
SITE = AttentionSite(
    index=0, path="", tower="", layer=0, cache_index=0, hidden_size=HIDDEN, num_heads=HEADS,
    num_key_value_heads=GROUPS, key_dim=WIDTH, value_dim=WIDTH,
)  # fmt: skip
# Inputs, chunk states and outputs are rounded to 8 bits; fp32 products run as TF32 (10 bits). In the norm of the error.
TOLERANCE = {torch.bfloat16: 1.5e-2, torch.float32: 4e-3}
# A whole layer rounds at every step: in plain torch this one is off by up to 1e-2, without any kernel.
LAYER_TOLERANCE = 2.5e-2
PRECISIONS = [torch.bfloat16, torch.float32]


def backends(*names: str) -> list[object]:
    """One parameter per backend; those that cannot run here skip with their reason."""
    return [
        pytest.param(name, marks=pytest.mark.skipif(bool(REASONS[name]), reason=f"{name}: {REASONS[name]}"))
        for name in names
    ]


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16().float().cuda()


def assert_near(name: str, found: Tensor, wanted: Tensor, tolerance: float) -> None:
    error = float((found.double() - wanted.double()).norm() / wanted.double().norm().clamp_min(1e-30))
    assert error <= tolerance, f"{name} is off by {error:.1e} of its norm"


def ssd_leaves(tokens: int) -> dict[str, Tensor]:
    dt = 1e-3 * 100 ** torch.rand(BATCH, tokens, HEADS, generator=torch.Generator().manual_seed(3))
    return {
        "q": normal(BATCH, tokens, HEADS, WIDTH, seed=0),
        "k": normal(BATCH, tokens, GROUPS, WIDTH, seed=1),
        "v": normal(BATCH, tokens, GROUPS, WIDTH, seed=2),
        "dt": dt.cuda(),
        "A": -torch.linspace(0.5, 8.0, HEADS).cuda(),
        "state": normal(BATCH, HEADS, WIDTH, WIDTH, seed=4),
    }


def run_ssd(backend: str, leaves: dict[str, Tensor], dtype: torch.dtype, segments: Tensor | None) -> dict[str, Tensor]:
    """Output, final state and gradients by name."""
    typed = {name: leaf.detach().to(dtype if name in "qkv" else leaf.dtype) for name, leaf in leaves.items()}
    typed = {name: leaf.requires_grad_() for name, leaf in typed.items()}
    *inputs, state = typed.values()
    outputs = choose("ssd", backend, "cuda").kernel(*inputs, state_BNKV=state, segments_BT=segments)
    toward = [normal(*y.shape, seed=8 + index).to(y.dtype) for index, y in enumerate(outputs)]
    gradients = torch.autograd.grad(outputs, list(typed.values()), toward)
    named = {f"d{name}": gradient for name, gradient in zip(typed, gradients, strict=True)}
    return {"y": outputs[0].detach(), "final": outputs[1].detach(), **named}


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
@pytest.mark.parametrize("tokens", [1, 63, 64, 65, 200])
@pytest.mark.parametrize("backend", backends("fla", "mamba_ssm"))
def test_the_recurrence_agrees_in_output_state_and_every_gradient(
    backend: str, tokens: int, dtype: torch.dtype
) -> None:
    leaves = ssd_leaves(tokens)
    wanted = run_ssd("torch", leaves, torch.float32, None)
    for name, found in run_ssd(backend, leaves, dtype, None).items():
        assert_near(name, found, wanted[name], TOLERANCE[dtype])


@pytest.mark.parametrize("backend", backends("fla", "mamba_ssm"))
def test_packed_segments_agree_in_output_state_and_every_gradient(backend: str) -> None:
    leaves = ssd_leaves(200)
    segments = torch.zeros(BATCH, 200, dtype=torch.long, device="cuda")
    segments[0, 70:] += 1
    segments[0, 71:] += 1
    segments[1, 128:] += 3
    wanted = run_ssd("torch", leaves, torch.float32, segments)
    for name, found in run_ssd(backend, leaves, torch.bfloat16, segments).items():
        assert_near(name, found, wanted[name], TOLERANCE[torch.bfloat16])


@pytest.mark.parametrize("backend", backends("fla"))
def test_the_gated_recurrence_without_dt_agrees(backend: str) -> None:
    q, k, v, g, *_ = ssd_leaves(65).values()
    wanted = choose("gated", "torch", "cuda").kernel(q, k, v, -g)
    found = choose("gated", backend, "cuda").kernel(q.bfloat16(), k.bfloat16(), v.bfloat16(), -g)
    assert_near("y", found[0], wanted[0], TOLERANCE[torch.bfloat16])
    assert_near("state", found[1], wanted[1], TOLERANCE[torch.bfloat16])


@pytest.mark.parametrize("carried", [False, True])
@pytest.mark.parametrize("backend", backends("fla", "causal_conv1d"))
def test_the_convolution_agrees_in_output_state_and_every_gradient(backend: str, carried: bool) -> None:
    leaves = [normal(BATCH, 65, 4 * WIDTH, seed=0), normal(4 * WIDTH, 2, seed=1), normal(4 * WIDTH, seed=2)]
    if carried:
        leaves.append(normal(BATCH, 4 * WIDTH, 1, seed=3))
    valid = torch.ones(BATCH, 65, dtype=torch.bool, device="cuda")
    valid[0, :9] = False
    results = []
    for name, dtype in (("torch", torch.float32), (backend, torch.bfloat16)):
        typed = [leaf.detach().to(dtype).requires_grad_() for leaf in leaves]
        x, weight, bias, *state = typed
        y, final = choose("conv", name, "cuda").kernel(
            x, weight, bias, state_BCX=state[0] if state else None, valid_BT=valid
        )
        toward = [normal(*tensor.shape, seed=5).to(dtype) for tensor in (y, final)]
        results.append([y.detach(), final.detach(), *torch.autograd.grad((y, final), typed, toward)])
    for name, wanted, found in zip(("y", "final", "dx", "dweight", "dbias", "dstate"), *results, strict=False):
        assert_near(name, found, wanted, TOLERANCE[torch.bfloat16])


def pair(backend: str, conv_backend: str) -> tuple[Mamba2Mixer, Mamba2Mixer]:
    """The reference in fp32 and the backend's mixer in bf16, of the same rounded weights."""
    mixer = Mamba2Mixer(Mamba2Config(backend=backend, conv_backend=conv_backend), SITE)  # type: ignore[arg-type]
    mixer.initialize("scratch", torch.Generator().manual_seed(0))
    with torch.no_grad():
        # Decays as after mimic seeding and a small bias: where the state forgets at once or all outputs point one way,
        # the norm after the recurrence takes them out again, and rounding decides the gradients of q and k.
        mixer.A_log.fill_(1.0)
        dt = torch.logspace(-3, -1, HEADS)
        mixer.dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))
        mixer.conv1d.bias.mul_(0.1)  # type: ignore[union-attr]
    mixer = mixer.cuda().bfloat16()
    reference = Mamba2Mixer(Mamba2Config(backend="torch", conv_backend="torch"), SITE).cuda()
    reference.load_state_dict(copy.deepcopy(mixer.state_dict()))
    return reference, mixer


CONV_OF = {"fla": "fla", "mamba_ssm": "auto"}


@pytest.mark.parametrize("backend", backends("fla", "mamba_ssm"))
def test_a_mixer_agrees_under_left_padding_and_carried_state_in_output_and_every_gradient(backend: str) -> None:
    tokens = 65
    valid = torch.ones(BATCH, tokens, dtype=torch.bool, device="cuda")
    valid[0, :20] = False
    results = []
    for mixer in pair(backend, CONV_OF[backend]):
        dtype = mixer.q_proj.weight.dtype
        x = normal(BATCH, tokens, HIDDEN, seed=0).to(dtype).requires_grad_()
        with torch.no_grad():
            _, state = mixer(normal(BATCH, 64, HIDDEN, seed=1).to(dtype))
        y, final = mixer(x, valid_BT=valid, state=state)
        y = y * valid[..., None, None]
        named = {"x": x, **dict(mixer.named_parameters())}
        toward = [normal(*tensor.shape, seed=5).to(tensor.dtype) for tensor in (y, final["ssm"])]
        gradients = torch.autograd.grad((y, final["ssm"]), list(named.values()), toward)
        results.append({"y": y, "ssm": final["ssm"], "conv": final["conv"], **dict(zip(named, gradients, strict=True))})
    for name, wanted in results[0].items():
        assert_near(name, results[1][name].detach(), wanted.detach(), LAYER_TOLERANCE)


@pytest.mark.parametrize("backend", backends("fla", "mamba_ssm"))
def test_decode_steps_follow_the_reference(backend: str) -> None:
    results = []
    for mixer in pair(backend, CONV_OF[backend]):
        x = normal(BATCH, 70, HIDDEN, seed=0).to(mixer.q_proj.weight.dtype)
        with torch.no_grad():
            y, state = mixer(x[:, :64])
            steps = [y]
            for index in range(64, 70):
                y, state = mixer(x[:, index : index + 1], state=state)
                steps.append(y)
        results.append((torch.cat(steps, 1), state["ssm"]))
    assert_near("y", results[1][0], results[0][0], LAYER_TOLERANCE)
    assert_near("state", results[1][1], results[0][1], LAYER_TOLERANCE)


def test_auto_takes_fla_where_it_is_right() -> None:
    chosen = choose("ssd", "auto", "cuda")
    assert chosen.backend == next(name for name in ("fla", "mamba_ssm", "torch") if not REASONS[name])
    assert chosen.backend in chosen.describe()


def test_the_torch_reference_on_a_gpu_equals_itself_on_a_cpu() -> None:
    leaves = ssd_leaves(100)
    on_gpu = choose("ssd", "torch", "cuda").kernel(*list(leaves.values())[:5], state_BNKV=leaves["state"])
    on_cpu = choose("ssd", "torch", "cpu").kernel(
        *(leaf.cpu() for leaf in list(leaves.values())[:5]), state_BNKV=leaves["state"].cpu()
    )
    for name, found, wanted in zip(("y", "state"), on_gpu, on_cpu, strict=True):
        # fp32 sums in another order, in matrix products over 128 entries and 64 tokens.
        assert_near(name, found.cpu(), wanted, 1e-5)
