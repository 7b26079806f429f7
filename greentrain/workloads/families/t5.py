"""T5: token ids (n, t), mask (n, t) and decoder ids (n, u) → scores of the next token (n, u, tokens known).

One list of blocks for both halves: encoder blocks carry the decoder's ids along, decoder blocks the encoder's states
and mask. T5's layers share the first layer's table of relative places; here each has its own, so that blocks on
different devices share nothing.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from greentrain.workloads.families.shared import twin
from greentrain.workloads.parts import AttentionParts, FeedForwardParts, LayerParts, Matrix

__all__ = ["blocks"]


class EncoderEmbeddings(nn.Module):
    """Token ids (n, t), mask (n, t), decoder ids (n, u) → hidden states (n, t, width), mask, decoder ids."""

    def __init__(self, tokens: nn.Module) -> None:
        super().__init__()
        self.block_name = "embeddings"
        self.tokens = tokens

    def forward(self, ids: Tensor, mask: Tensor, decoder_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.tokens(ids), mask, decoder_ids


class Layer(nn.Module):
    """What encoder and decoder layers have in common."""

    def __init__(self, name: str, layer: Any) -> None:
        super().__init__()
        self.block_name = name
        self.layer = layer

    def _attention(self, index: int, part: str, attention: Any) -> AttentionParts:
        prefix = f"layer.layer.{index}.{part}"
        has_table = attention.has_relative_attention_bias

        def buckets(query_places: Tensor, key_places: Tensor) -> Tensor:
            return attention._relative_position_bucket(
                key_places[None, :] - query_places[:, None],
                bidirectional=not attention.is_decoder,
                num_buckets=attention.relative_attention_num_buckets,
                max_distance=attention.relative_attention_max_distance,
            )

        return AttentionParts(
            norm=f"layer.layer.{index}.layer_norm",
            query=Matrix(weight=f"{prefix}.q.weight"),
            key=Matrix(weight=f"{prefix}.k.weight"),
            value=Matrix(weight=f"{prefix}.v.weight"),
            out=Matrix(weight=f"{prefix}.o.weight"),
            heads=attention.n_heads,
            key_value_heads=attention.n_heads,
            causal=attention.is_causal,
            scale=attention.scaling,
            bias_table=f"{prefix}.relative_attention_bias.weight" if has_table else None,
            buckets=buckets if has_table else None,
        )

    def _feed_forward(self) -> FeedForwardParts:
        index = len(self.layer.layer) - 1
        dense = self.layer.layer[index].DenseReluDense
        prefix = f"layer.layer.{index}.DenseReluDense"
        gated = hasattr(dense, "wi_0")
        return FeedForwardParts(
            norm=f"layer.layer.{index}.layer_norm",
            widen=Matrix(weight=f"{prefix}.{'wi_1' if gated else 'wi'}.weight"),
            gate=Matrix(weight=f"{prefix}.wi_0.weight") if gated else None,
            narrow=Matrix(weight=f"{prefix}.wo.weight"),
            columns=dense.wo.in_features,
            activation=dense.act,
        )


class Encoder(Layer):
    """One encoder layer: (n, t, width), mask, decoder ids → the same."""

    def forward(self, hidden: Tensor, mask: Tensor, decoder_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.layer(hidden, attention_mask=mask[:, None, None, :].bool())[0], mask, decoder_ids

    def parts(self) -> LayerParts:
        """Names of the parts, for sharing out heads and columns."""
        return LayerParts(
            attention=self._attention(0, "SelfAttention", self.layer.layer[0].SelfAttention),
            feed_forward=self._feed_forward(),
            norm_first=True,
            mask=1,
        )


class Bridge(nn.Module):
    """End of the encoder, begin of the decoder: hidden, mask, decoder ids → decoder hidden, states, mask."""

    def __init__(self, norm: nn.Module, tokens: nn.Module) -> None:
        super().__init__()
        self.block_name = "bridge"
        self.norm = norm
        self.tokens = tokens

    def forward(self, hidden: Tensor, mask: Tensor, decoder_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.tokens(decoder_ids), self.norm(hidden), mask


class Decoder(Layer):
    """One decoder layer: decoder hidden (n, u, width), encoder states (n, t, width), mask (n, t) → the same."""

    def forward(self, hidden: Tensor, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        seen = mask[:, None, None, :].bool()
        hidden = self.layer(hidden, encoder_hidden_states=states, encoder_attention_mask=seen)[0]
        return hidden, states, mask

    def parts(self) -> LayerParts:
        """Names of the parts, for sharing out heads and columns."""
        return LayerParts(
            attention=self._attention(0, "SelfAttention", self.layer.layer[0].SelfAttention),
            cross=self._attention(1, "EncDecAttention", self.layer.layer[1].EncDecAttention),
            feed_forward=self._feed_forward(),
            norm_first=True,
            cross_states=1,
            cross_mask=2,
        )


class Head(nn.Module):
    """Decoder hidden (n, u, width), states, mask → scores of the next token (n, u, tokens known)."""

    def __init__(self, norm: nn.Module, linear: nn.Module, scale: float) -> None:
        super().__init__()
        self.block_name = "head"
        self.norm = norm
        self.linear = linear
        self.scale = scale

    def forward(self, hidden: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        return self.linear(self.norm(hidden) * self.scale)


def blocks(model: Any) -> list[nn.Module]:
    """Embeddings, layers, bridge and head of a model, which they share their weights with."""
    for stack in (model.encoder, model.decoder):
        _give_tables(stack)
    scale = model.model_dim**-0.5 if model.config.scale_decoder_outputs else 1.0
    return [
        EncoderEmbeddings(model.encoder.embed_tokens),
        *(Encoder(f"encoder{index}", layer) for index, layer in enumerate(model.encoder.block)),
        Bridge(model.encoder.final_layer_norm, twin(model.decoder.embed_tokens)),
        *(Decoder(f"decoder{index}", layer) for index, layer in enumerate(model.decoder.block)),
        Head(model.decoder.final_layer_norm, model.lm_head, scale),
    ]


def _give_tables(stack: Any) -> None:
    """Copy the first layer's table of relative places into every other layer."""
    first = stack.block[0].layer[0].SelfAttention.relative_attention_bias
    for layer in stack.block[1:]:
        attention = layer.layer[0].SelfAttention
        attention.relative_attention_bias = nn.Embedding.from_pretrained(first.weight.detach().clone(), freeze=False)
        attention.has_relative_attention_bias = True
