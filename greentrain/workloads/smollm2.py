"""smollm2: the pretrained language model SmolLM2-135M, fine-tuned on movie reviews."""

from __future__ import annotations

import torch
from torch import nn

from greentrain.workloads.families import from_transformers, transformers
from greentrain.workloads.losses import next_token_loss
from greentrain.workloads.workload import Tensors, Workload
from greentrain_datasets.smollm2 import TOKENS_N, model_folder

__all__ = ["WORKLOAD", "build", "example"]

TRAINED_LAYERS_N = 10
_TOKENS_KNOWN_N = 49152


def build(seed: int) -> list[nn.Module]:
    """The blocks with pretrained weights, whatever the seed.

    Raises:
        UnavailableError: transformers, or the package with the weights, is not installed.
    """
    library = transformers()
    folder = model_folder()
    config = library.LlamaConfig.from_pretrained(folder)
    # A bar of every worker would be noise.
    bar_shown = library.utils.logging.is_progress_bar_enabled()
    library.utils.logging.disable_progress_bar()
    try:
        model = library.LlamaForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32)
    finally:
        if bar_shown:
            library.utils.logging.enable_progress_bar()
    blocks = from_transformers(model, seed)
    for block in blocks[: 1 + config.num_hidden_layers - TRAINED_LAYERS_N]:
        block.requires_grad_(False)
    return blocks


def example(n: int) -> tuple[Tensors, torch.Tensor]:
    """Random token ids (n, 32), to each the token that follows (n, 32)."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(_TOKENS_KNOWN_N, (n, TOKENS_N + 1), generator=generator)
    return (ids[:, :-1],), ids[:, 1:]


WORKLOAD = Workload(
    name="smollm2",
    description=(
        f"Pretrained SmolLM2-135M (LLaMA, 30 layers) on the next token of movie reviews; {TRAINED_LAYERS_N} layers "
        "learn, the first 20, the embeddings and the output matrix that is tied to them are frozen."
    ),
    dataset="review-next-tokens-smollm2",
    build=build,
    example=example,
    loss=next_token_loss,
    optimizer="adam",
    learning_rate=5e-5,
    batch=8,
    micro_batches=(1, 2, 4, 8),
    epochs=1,
    target_accuracy=None,
)
