"""Models of transformers as lists of blocks: BERT, GPT-2, OPT, LLaMA, T5, BART, ViT, ResNet, MobileNetV2, EfficientNet.

One module per family, each with one function ``blocks(model)`` that wraps the model's own layers; a test holds every
list against transformers' model, outputs and gradients. transformers is imported when blocks are made, not before.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from greentrain.errors import UnavailableError, UsageError
from greentrain.workloads._own import BRING_YOUR_OWN
from greentrain.workloads.families.shared import (
    batch_norm_to_fixed,
    batch_norm_to_group_norm,
    draw_uniform,
    drop_nothing,
    separate_shared_weights,
    with_plain_rms_norm,
)
from greentrain.workloads.workload import build_seeded

__all__ = ["TRANSFORMERS_HINT", "from_sequential", "from_transformers", "supported_models", "transformers"]

TRANSFORMERS_HINT = "Run: pip install 'transformers>=5.23' (it needs Python 3.11 or newer)"
_LEAST_VERSION = (5, 23)

# Model class of transformers → module of this package, which is also the model_type of its configuration.
_MODULES: dict[str, str] = {
    "BertForSequenceClassification": "bert",
    "GPT2LMHeadModel": "gpt2",
    "OPTForCausalLM": "opt",
    "LlamaForCausalLM": "llama",
    "T5ForConditionalGeneration": "t5",
    "BartForConditionalGeneration": "bart",
    "ViTForImageClassification": "vit",
    "ResNetForImageClassification": "resnet",
    "MobileNetV2ForImageClassification": "mobilenet_v2",
    "EfficientNetForImageClassification": "efficientnet",
}


def supported_models() -> tuple[str, ...]:
    """Model classes of transformers that :func:`from_transformers` takes."""
    return tuple(_MODULES)


def from_transformers(source: Any, seed: int = 0) -> list[nn.Module]:
    """The blocks of a model of transformers.

    A configuration gets fresh weights: uniform, from the seed only, with the same bits on every processor; output
    matrices are not tied to embeddings, and group normalisation takes the place of batch normalisation, which would
    tie rows together. A model is copied and keeps its weights: matrices that it ties (embeddings and output) are
    copied to each place and frozen, and batch normalisation keeps its running statistics. In both, dropout is off,
    so that the result does not depend on how the work is shared out, and every layer of a T5 has a table of relative
    places of its own, where T5 shares the first layer's.

    Args:
        source: A model of one of :func:`supported_models`, or a configuration of one.
        seed: Of fresh weights.

    Raises:
        UnavailableError: transformers is not installed.
        UsageError: No family for this model.
    """
    library = transformers()
    name = type(source).__name__
    fresh = isinstance(source, library.PreTrainedConfig)
    if fresh:
        name = next((known for known, family in _MODULES.items() if family == source.model_type), name)
    if name not in _MODULES:
        raise UsageError(f"{name} has no blocks here, expected one of: {', '.join(_MODULES)}.", hint=BRING_YOUR_OWN)
    model: nn.Module = _uninitialised(getattr(library, name), source) if fresh else copy.deepcopy(source)
    drop_nothing(model)
    with_plain_rms_norm(model)
    (batch_norm_to_group_norm if fresh else batch_norm_to_fixed)(model)
    family = importlib.import_module(f"{__name__}.{_MODULES[name]}")
    blocks: list[nn.Module] = family.blocks(model)
    separate_shared_weights(blocks, freeze=not fresh)
    if fresh:
        build_seeded([partial(draw_uniform, block) for block in blocks], seed)
    return blocks


def transformers() -> Any:
    """The package transformers, imported on first use.

    Raises:
        UnavailableError: It is not installed, or too old.
    """
    if importlib.util.find_spec("transformers") is None:
        raise UnavailableError("the Python package 'transformers' is not installed.", hint=TRANSFORMERS_HINT)
    library = importlib.import_module("transformers")
    # The layers of older ones have other names.
    if tuple(int(part) for part in library.__version__.split(".")[:2]) < _LEAST_VERSION:
        raise UnavailableError(
            f"the Python package 'transformers' is version {library.__version__}, expected at least 5.23.",
            hint=TRANSFORMERS_HINT,
        )
    return library


def _uninitialised(make: Callable[[Any], nn.Module], config: Any) -> nn.Module:
    """The model of a configuration without the time for weights that are drawn anew anyway."""
    from transformers.initialization import no_init_weights

    config = copy.deepcopy(config)
    config.tie_word_embeddings = False
    with torch.random.fork_rng(devices=[]), no_init_weights():
        return make(config)


def from_sequential(net: nn.Sequential | Callable[[], nn.Sequential], seed: int = 0) -> list[nn.Module]:
    """The blocks of a plain ``nn.Sequential``: one per child with weights, those without join the block before.

    Args:
        net: The net, whose weights are kept; or a function that makes it, which is called under the seed.
        seed: Of the weights that the function draws.

    Raises:
        UsageError: It is no Sequential, has no weights, normalises over the batch, or uses a weight twice.
    """
    found = net if isinstance(net, nn.Module) else build_seeded([net], seed)[0]
    if not isinstance(found, nn.Sequential):
        raise UsageError(f"the net is a {type(found).__name__}, expected an nn.Sequential.", hint=BRING_YOUR_OWN)
    groups: list[list[nn.Module]] = []
    for child in copy.deepcopy(found):
        has_weights = any(True for _ in child.parameters())
        if not groups or (has_weights and _has_weights(groups[-1])):
            groups.append([])
        groups[-1].append(child)
    if not groups or not _has_weights(groups[0]):
        raise UsageError("the net has no weights, expected at least one layer that learns.")
    _check_independent(groups)
    return [group[0] if len(group) == 1 else nn.Sequential(*group) for group in groups]


def _has_weights(modules: Sequence[nn.Module]) -> bool:
    return any(True for module in modules for _ in module.parameters())


def _check_independent(groups: Sequence[Sequence[nn.Module]]) -> None:
    """Rows must not see each other, and blocks must not share weights."""
    seen: set[int] = set()
    for group in groups:
        own: set[int] = set()
        for child in group:
            for module in child.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):  # pyright: ignore[reportPrivateUsage]
                    raise UsageError(
                        f"the net has a {type(module).__name__}, which ties the rows of a batch together.",
                        hint="Take nn.GroupNorm, so that rows can be shared out among devices.",
                    )
            own |= {id(parameter) for parameter in child.parameters()}
        if own & seen:
            raise UsageError(
                "two layers of the net share a weight, expected each to have its own.", hint="Give each a copy."
            )
        seen |= own
