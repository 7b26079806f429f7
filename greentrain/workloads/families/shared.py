"""What the families share: weights from a seed, normalisation that keeps rows independent, no dropout."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = [
    "FixedBatchNorm",
    "batch_norm_to_fixed",
    "batch_norm_to_group_norm",
    "draw_uniform",
    "drop_nothing",
    "named",
    "separate_shared_weights",
    "twin",
    "with_plain_rms_norm",
]

_GROUPS_N = 8
# Uniform in ±this has the standard deviation 0.02 that BERT and GPT-2 take for embeddings.
_EMBEDDING_BOUND = 0.02 * math.sqrt(3)

_Norms = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_Module = TypeVar("_Module", bound=nn.Module)


class FixedBatchNorm(nn.BatchNorm2d):
    """Batch normalisation with the statistics that it was trained with, so that rows stay independent."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return functional.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
        )


def named(module: _Module, name: str) -> _Module:
    """Give a module the name that it has as a block."""
    setattr(module, "block_name", name)  # noqa: B010
    return module


def twin(module: _Module) -> _Module:
    """A second module with the same parameters, so that one of them can be replaced in one module only."""
    other = copy.copy(module)
    other._parameters = dict(module._parameters)  # pyright: ignore[reportPrivateUsage]
    return other


def draw_uniform(block: nn.Module) -> nn.Module:
    """Draw all weights under the present seed: torch's bounds for linear maps and convolutions, small embeddings."""
    with torch.no_grad():
        for module in block.modules():
            own = dict(module.named_parameters(recurse=False))
            if isinstance(module, _Norms):
                module.reset_parameters()
                continue
            bound = _bound(module)
            for parameter in own.values():
                parameter.uniform_(-bound, bound)
    return block


def _bound(module: nn.Module) -> float:
    if isinstance(module, nn.Embedding):
        return _EMBEDDING_BOUND
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        # A bare parameter: the places of ViT, as large as normalised tokens, else they are found late.
        return 1.0
    # GPT-2's Conv1D stores (in, out), all others (out, in, ...).
    inputs_n = weight.shape[0] if type(module).__name__ == "Conv1D" else weight[0].numel()
    return 1 / math.sqrt(inputs_n)


def batch_norm_to_group_norm(model: nn.Module) -> None:
    """Put group normalisation in the place of batch normalisation: a row's result is its own."""
    for parent, name, norm in _children(model, nn.BatchNorm2d):
        groups_n = math.gcd(_GROUPS_N, norm.num_features)
        setattr(parent, name, nn.GroupNorm(groups_n, norm.num_features, eps=norm.eps))


def batch_norm_to_fixed(model: nn.Module) -> None:
    """Let batch normalisation keep its running statistics in training too."""
    for parent, name, norm in _children(model, nn.BatchNorm2d):
        fixed = FixedBatchNorm(norm.num_features, eps=norm.eps)
        fixed.load_state_dict(norm.state_dict(), assign=True)
        setattr(parent, name, fixed)


def with_plain_rms_norm(model: nn.Module) -> None:
    """Put torch's RMSNorm in the place of T5's and LLaMA's: the same, but with all digits of float64."""
    for parent, name, norm in _children(model, nn.Module):
        weight, eps = getattr(norm, "weight", None), getattr(norm, "variance_epsilon", None)
        if isinstance(weight, nn.Parameter) and isinstance(eps, float):
            plain = nn.RMSNorm(len(weight), eps=eps)
            plain.weight = weight
            setattr(parent, name, plain)


def _children(model: nn.Module, kind: type[_Module]) -> list[tuple[nn.Module, str, _Module]]:
    """Parent, name and module of every module of a kind; a list, since they are replaced."""
    return [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, kind)
    ]


def drop_nothing(model: nn.Module) -> None:
    """Turn dropout off and attention to torch's own kernel, whose causal mask needs no tensor."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)
        config = getattr(module, "config", None)
        if config is not None:
            config._attn_implementation = "sdpa"


def separate_shared_weights(blocks: Sequence[nn.Module], *, freeze: bool) -> None:
    """Give each block a copy of a weight that several of them use; frozen, the copies stay equal."""
    seen: dict[int, nn.Parameter] = {}
    for block in blocks:
        own: dict[int, nn.Parameter] = {}
        for module in block.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if id(parameter) in seen:
                    copied = nn.Parameter(parameter.detach().clone())
                    for one in (copied, seen[id(parameter)]):
                        one.requires_grad_(not freeze)
                    setattr(module, name, copied)
                else:
                    own[id(parameter)] = parameter
        seen |= own
