"""Tiny models of every family that transformers has and greentrain takes, of odd sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

__all__ = ["FAMILIES", "Tiny", "tiny"]

TOKENS_KNOWN_N = 37
ROWS_N = 5


@dataclass(frozen=True, kw_only=True)
class Tiny:
    """A small configuration, its model class and inputs.

    Attributes:
        config: Of transformers.
        model: Class with the head.
        inputs: Of the blocks.
        arguments: The same inputs, as the model's forward names them.
    """

    config: Any
    model: Callable[[Any], nn.Module]
    inputs: tuple[Tensor, ...]
    arguments: dict[str, Tensor]


def _text() -> tuple[Tensor, Tensor]:
    ids = torch.randint(3, TOKENS_KNOWN_N, (ROWS_N, 7), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(ROWS_N, 7, dtype=torch.uint8)
    mask[1, 4:] = 0
    mask[3, 1:] = 0
    return ids, mask


def _images(side: int) -> Tensor:
    return torch.rand(ROWS_N, 3, side, side, generator=torch.Generator().manual_seed(2))


def _bert(t: Any) -> Tiny:
    config = t.BertConfig(
        vocab_size=TOKENS_KNOWN_N, hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=22,
        max_position_embeddings=9, num_labels=3,
    )  # fmt: skip
    ids, mask = _text()
    arguments = {"input_ids": ids, "attention_mask": mask.long()}
    return Tiny(config=config, model=t.BertForSequenceClassification, inputs=(ids, mask), arguments=arguments)


def _causal(config: Any, model: Callable[[Any], nn.Module]) -> Tiny:
    ids, _ = _text()
    return Tiny(config=config, model=model, inputs=(ids,), arguments={"input_ids": ids})


def _gpt2(t: Any) -> Tiny:
    config = t.GPT2Config(
        vocab_size=TOKENS_KNOWN_N, n_embd=12, n_layer=2, n_head=3, n_positions=9, tie_word_embeddings=False,
        scale_attn_by_inverse_layer_idx=True, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return _causal(config, t.GPT2LMHeadModel)


def _opt(t: Any, **changes: Any) -> Tiny:
    config = t.OPTConfig(
        vocab_size=TOKENS_KNOWN_N, hidden_size=12, num_hidden_layers=2, num_attention_heads=3, ffn_dim=22,
        max_position_embeddings=9, tie_word_embeddings=False, **{"word_embed_proj_dim": 12, **changes},
    )  # fmt: skip
    return _causal(config, t.OPTForCausalLM)


def _opt_350m(t: Any) -> Tiny:
    return _opt(t, word_embed_proj_dim=8, do_layer_norm_before=False, enable_bias=False)


def _llama(t: Any) -> Tiny:
    config = t.LlamaConfig(
        vocab_size=TOKENS_KNOWN_N, hidden_size=24, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2,
        intermediate_size=22, tie_word_embeddings=False,
    )  # fmt: skip
    return _causal(config, t.LlamaForCausalLM)


def _t5(t: Any, feed_forward: str = "relu") -> Tiny:
    config = t.T5Config(
        vocab_size=TOKENS_KNOWN_N, d_model=12, d_kv=5, num_heads=3, d_ff=22, num_layers=2, num_decoder_layers=3,
        relative_attention_num_buckets=8, relative_attention_max_distance=12, feed_forward_proj=feed_forward,
    )  # fmt: skip
    ids, mask = _text()
    decoder_ids = torch.randint(3, TOKENS_KNOWN_N, (ROWS_N, 6), generator=torch.Generator().manual_seed(3))
    arguments = {"input_ids": ids, "attention_mask": mask.long(), "decoder_input_ids": decoder_ids}
    model = t.T5ForConditionalGeneration
    return Tiny(config=config, model=model, inputs=(ids, mask, decoder_ids), arguments=arguments)


def _t5_gated(t: Any) -> Tiny:
    return _t5(t, "gated-gelu")


def _bart(t: Any) -> Tiny:
    config = t.BartConfig(
        vocab_size=TOKENS_KNOWN_N, d_model=12, encoder_layers=2, decoder_layers=3, encoder_attention_heads=3,
        decoder_attention_heads=3, encoder_ffn_dim=22, decoder_ffn_dim=22, max_position_embeddings=32,
        scale_embedding=True,
    )  # fmt: skip
    ids, mask = _text()
    decoder_ids = torch.randint(3, TOKENS_KNOWN_N, (ROWS_N, 6), generator=torch.Generator().manual_seed(3))
    arguments = {"input_ids": ids, "attention_mask": mask.long(), "decoder_input_ids": decoder_ids}
    model = t.BartForConditionalGeneration
    return Tiny(config=config, model=model, inputs=(ids, mask, decoder_ids), arguments=arguments)


def _vit(t: Any) -> Tiny:
    config = t.ViTConfig(
        hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=22, image_size=12, patch_size=4,
        num_labels=3,
    )  # fmt: skip
    return _cnn(config, t.ViTForImageClassification, 12)


def _cnn(config: Any, model: Callable[[Any], nn.Module], side: int) -> Tiny:
    images = _images(side)
    return Tiny(config=config, model=model, inputs=(images,), arguments={"pixel_values": images})


def _resnet(t: Any) -> Tiny:
    config = t.ResNetConfig(embedding_size=8, hidden_sizes=[16, 24], depths=[1, 2], num_labels=3)
    return _cnn(config, t.ResNetForImageClassification, 20)


def _mobilenet_v2(t: Any) -> Tiny:
    config = t.MobileNetV2Config(num_labels=3, depth_multiplier=0.25)
    return _cnn(config, t.MobileNetV2ForImageClassification, 40)


def _efficientnet(t: Any) -> Tiny:
    config = t.EfficientNetConfig(num_labels=3, width_coefficient=0.25, depth_coefficient=0.5, hidden_dim=320)
    return _cnn(config, t.EfficientNetForImageClassification, 40)


_MAKERS: dict[str, Callable[[Any], Tiny]] = {
    "bert": _bert,
    "gpt2": _gpt2,
    "opt": _opt,
    "opt-350m": _opt_350m,
    "llama": _llama,
    "t5": _t5,
    "t5-gated": _t5_gated,
    "bart": _bart,
    "vit": _vit,
    "resnet": _resnet,
    "mobilenet-v2": _mobilenet_v2,
    "efficientnet": _efficientnet,
}
FAMILIES = tuple(_MAKERS)


def tiny(name: str) -> Tiny:
    """The tiny model of a family; the test is skipped where transformers is missing."""
    return _MAKERS[name](pytest.importorskip("transformers", reason="transformers is not installed"))
