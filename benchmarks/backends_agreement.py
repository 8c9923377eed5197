"""How far a kernel backend is from the fp32 torch reference: recurrences alone, and a whole Mamba-2 mixer.

An error is ‖found - wanted‖ / ‖wanted‖, over all entries of a tensor. Largest difference over largest entry would ask
another question: one token near a pole of RMSNorm (an output close to zero, whose direction rounding decides) then
stands for all. The mixer's parameters keep clear of such poles, where bf16 in plain torch already misses the gradients
by a fifth: decays that remember hundreds of tokens, so that an output is more than its own value times a number that
the norm takes out again, and a small bias in the convolution, so that outputs of different tokens differ in direction.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from linearize_mamba2.config import Mamba2Config
from linearize_mamba2.mixer import DT_MAX, DT_MIN, Mamba2Mixer
from torch import Tensor

from linearize.ops.backends import available_backends, choose, kernels_of
from linearize.protocols import AttentionSite

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
DECODE_STEPS = 4
SLOTS = 64
OPERATIONS = {
    "Mamba-2": "ssd", "GLA": "channel_gated", "DeltaNet": "delta", "Gated DeltaNet": "delta", "KDA": "delta",
    "GSA": "slots",
}  # fmt: skip
"""Recurrences by a name that a reader knows -> the operation of linearize.ops.backends that computes it."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """One comparison with the reference; relative errors in the norm, ``gradient`` the worst of all leaves."""

    level: str
    backend: str
    dtype: str
    case: str
    tokens: int
    output: float
    state: float
    gradient: float
    worst_gradient: str


@dataclass(frozen=True, slots=True)
class Sizes:
    """The layer that is compared and timed."""

    heads: int
    groups: int
    head_dim: int
    hidden: int

    def site(self) -> AttentionSite:
        """The attention that the mixer replaces."""
        return AttentionSite(
            index=0, path="", tower="", layer=0, cache_index=0, hidden_size=self.hidden, num_heads=self.heads,
            num_key_value_heads=self.groups, key_dim=self.head_dim, value_dim=self.head_dim,
        )  # fmt: skip


def families_of(backend: str) -> list[str]:
    """The recurrences that a backend computes."""
    kernels = kernels_of(backend)
    return [family for family, operation in OPERATIONS.items() if operation in kernels]


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """The norm of the difference over the norm of ``wanted``; infinite when anything is not finite."""
    found, wanted = found.detach().double(), wanted.detach().double()
    error = (found - wanted).norm() / wanted.norm().clamp_min(1e-30)
    return float(error) if bool(error.isfinite()) else float("inf")


def normal(shape: Sequence[int], seed: int, device: str, dtype: torch.dtype) -> Tensor:
    """The same numbers on every device."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def recurrence_inputs(
    family: str, batch: int, tokens: int, sizes: Sizes, device: str, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Leaves of a recurrence by the names of its arguments: q, k and v in ``dtype``, all else in fp32.

    Time steps and decays are log-uniform as mimic seeding draws Mamba-2's; keys of the delta rule have length 1.
    """
    n, m, k = sizes.heads, sizes.groups, sizes.head_dim
    # Drawn on the device: hundreds of millions take seconds on a CPU.
    generator = torch.Generator(device).manual_seed(4)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(batch, tokens, *shape, device=device, generator=generator).to(dtype)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(batch, tokens, *shape, device=device, generator=generator)

    def step(*shape: int) -> Tensor:
        return DT_MIN * (DT_MAX / DT_MIN) ** uniform(*shape)

    leaves = {"q_BTNK": drawn(n, k), "k_BTMK": drawn(m, k), "v_BTMV": drawn(m, k)}
    if OPERATIONS[family] == "delta":
        leaves["k_BTMK"] = F.normalize(leaves["k_BTMK"].float(), dim=-1).to(dtype)
        leaves["beta_BTN"] = uniform(n)
    match family:
        case "Mamba-2":
            leaves |= {"dt_BTN": step(n), "a_N": -torch.linspace(0.5, 8.0, n, device=device)}
        case "GLA":
            leaves["g_BTNK"] = -step(n, k)
        case "Gated DeltaNet":
            leaves["g"] = -step(n)
        case "KDA":
            leaves["g"] = -step(n, k)
        case "GSA":
            leaves["g_BTMS"] = -step(m, SLOTS)
            leaves["write_BTMS"] = -torch.expm1(leaves["g_BTMS"])
    leaves |= carried_state(family, batch, sizes, device)
    return {name: leaf.requires_grad_() for name, leaf in leaves.items()}


def carried_state(family: str, batch: int, sizes: Sizes, device: str) -> dict[str, Tensor]:
    """What a recurrence goes on from, by the names of its arguments, in fp32."""
    n, m, k = sizes.heads, sizes.groups, sizes.head_dim
    shapes = {"state_BNKV": (batch, n, k, k)}
    if OPERATIONS[family] == "slots":
        shapes = {"slot_keys_BMKS": (batch, m, k, SLOTS), "slot_values_BMSV": (batch, m, SLOTS, k)}
    return {name: normal(shape, 5 + i, device, torch.float32) for i, (name, shape) in enumerate(shapes.items())}


def gradients(outputs: Sequence[Tensor], leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The gradient of one fixed mixture of all outputs for every leaf."""
    # Rounded to bf16 whatever the dtype, so that every run differentiates the same mixture.
    toward = [normal(y.shape, 9 + i, str(y.device), torch.bfloat16).to(y.dtype) for i, y in enumerate(outputs)]
    return dict(zip(leaves, torch.autograd.grad(outputs, list(leaves.values()), toward), strict=True))


def worst(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> tuple[float, str]:
    """The largest relative error among the gradients and whose it is."""
    return max((relative_error(found[name], wanted[name]), name) for name in wanted)


def compare_op(
    case: str, family: str, backend: str, dtype: str, tokens: int, sizes: Sizes, device: str
) -> list[Agreement]:
    """A recurrence alone: carried state, and packed segments in case "packed"."""
    results = []
    for name, precision in (("torch", torch.float32), (backend, DTYPES[dtype])):
        leaves = {
            key: leaf.detach().to(precision if key[0] in "qkv" else leaf.dtype).requires_grad_()
            for key, leaf in recurrence_inputs(family, 2, tokens, sizes, device, DTYPES[dtype]).items()
        }
        segments = None
        if case == "packed":
            segments = (torch.arange(tokens, device=device) * 5 // tokens).expand(2, -1).contiguous()
            segments[1] = segments[1].flip(0) // 2
        outputs = choose(OPERATIONS[family], name, device).kernel(**leaves, segments_BT=segments)
        results.append((outputs, gradients(outputs, leaves)))
    (wanted, wanted_gradients), (found, found_gradients) = results
    gradient, name = worst(found_gradients, wanted_gradients)
    errors = relative_error(found[0], wanted[0]), relative_error(found[1], wanted[1])
    return [Agreement(family, backend, dtype, case, tokens, *errors, gradient, name.split("_")[0])]


def mixer_config(backend: str, device: str) -> Mamba2Config:
    """A mixer with one recurrence backend and the convolution that goes with it."""
    conv = {"torch": "torch", "fla": "fla"}.get(backend, "causal_conv1d")
    if available_backends(device)[conv]:
        conv = "auto"
    return Mamba2Config(backend=backend, conv_backend=conv)  # type: ignore[arg-type]


def mixers(backend: str, dtype: str, sizes: Sizes, device: str) -> tuple[Mamba2Mixer, Mamba2Mixer]:
    """The reference in fp32 and the backend's mixer in ``dtype``, both of the weights that ``dtype`` can hold."""
    other = Mamba2Mixer(mixer_config(backend, device), sizes.site())
    other.initialize("scratch", torch.Generator().manual_seed(0))
    with torch.no_grad():
        other.A_log.fill_(1.0)
        dt = torch.logspace(0, 1, sizes.heads) ** 2 * DT_MIN
        other.dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))
        other.conv1d.bias.mul_(0.1)  # type: ignore[union-attr]
    other = other.to(device, DTYPES[dtype])
    reference = Mamba2Mixer(Mamba2Config(backend="torch", conv_backend="torch"), sizes.site()).to(device)
    reference.load_state_dict(copy.deepcopy(other.state_dict()))
    return reference, other


def compare_mixer(backend: str, dtype: str, tokens: int, sizes: Sizes, device: str) -> list[Agreement]:
    """The whole mixer: left padding and carried state with every gradient, then decode steps without."""
    valid = torch.ones(2, tokens, dtype=torch.bool, device=device)
    valid[0, : tokens // 3] = False
    runs = []
    for mixer, precision in zip(mixers(backend, dtype, sizes, device), (torch.float32, DTYPES[dtype]), strict=True):
        x = normal((2, tokens + DECODE_STEPS, sizes.hidden), 1, device, DTYPES[dtype]).to(precision).requires_grad_()
        with torch.no_grad():
            _, start = mixer(normal((2, 7, sizes.hidden), 2, device, DTYPES[dtype]).to(precision))
        y, state = mixer(x[:, :tokens], valid_BT=valid, state=start)
        y = y * valid[..., None, None]
        found = gradients((y, state["ssm"]), {"x": x, **dict(mixer.named_parameters())})
        steps, carried = [], {name: tensor.detach() for name, tensor in state.items()}
        with torch.no_grad():
            for index in range(DECODE_STEPS):
                step, carried = mixer(x[:, tokens + index : tokens + index + 1], state=carried)
                steps.append(step)
        runs.append((y, state["ssm"], found, torch.cat(steps, 1), carried["ssm"]))
    (y, ssm, wanted, steps_y, steps_ssm), (y2, ssm2, found, steps_y2, steps_ssm2) = runs
    gradient, name = worst(found, wanted)
    errors = relative_error(y2, y), relative_error(ssm2, ssm)
    step_errors = relative_error(steps_y2, steps_y), relative_error(steps_ssm2, steps_ssm)
    return [
        Agreement("mixer", backend, dtype, "left padding, carried state", tokens, *errors, gradient, name),
        Agreement("mixer", backend, dtype, f"then {DECODE_STEPS} decode steps", tokens, *step_errors, 0.0, ""),
    ]
