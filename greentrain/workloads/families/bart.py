"""BART: token ids (n, t), mask (n, t) and decoder ids (n, u) → scores of the next token (n, u, tokens known).

One list of blocks for both halves, as T5's: encoder blocks carry the decoder's ids along, decoder blocks the encoder's
states and mask. Every layer normalises the sums around its parts.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from greentrain.workloads.parts import AttentionParts, FeedForwardParts, LayerParts, Matrix

__all__ = ["blocks"]


class Embeddings(nn.Module):
    """Token ids (n, t) → normalised tokens with learnt places (n, t, width)."""

    def __init__(self, stack: Any) -> None:
        super().__init__()
        self.tokens = stack.embed_tokens
        self.places = stack.embed_positions
        self.norm = stack.layernorm_embedding

    def forward(self, ids: Tensor) -> Tensor:
        first = self.places.offset
        return self.norm(self.tokens(ids) + self.places.weight[first : first + ids.shape[1]])


class EncoderEmbeddings(nn.Module):
    """Token ids (n, t), mask (n, t), decoder ids (n, u) → hidden states (n, t, width), mask, decoder ids."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.block_name = "embeddings"
        self.embeddings = Embeddings(encoder)

    def forward(self, ids: Tensor, mask: Tensor, decoder_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.embeddings(ids), mask, decoder_ids


class Layer(nn.Module):
    """What encoder and decoder layers have in common."""

    def __init__(self, name: str, layer: Any) -> None:
        super().__init__()
        self.block_name = name
        self.layer = layer

    def _attention(self, name: str, *, causal: bool = False) -> AttentionParts:
        heads = getattr(self.layer, name).num_heads
        query, key, value, out = (
            Matrix(weight=f"layer.{name}.{part}.weight", bias=f"layer.{name}.{part}.bias")
            for part in ("q_proj", "k_proj", "v_proj", "out_proj")
        )
        return AttentionParts(
            norm=f"layer.{name}_layer_norm", query=query, key=key, value=value, out=out, heads=heads,
            key_value_heads=heads, causal=causal,
        )  # fmt: skip

    def _feed_forward(self) -> FeedForwardParts:
        return FeedForwardParts(
            norm="layer.final_layer_norm",
            widen=Matrix(weight="layer.fc1.weight", bias="layer.fc1.bias"),
            narrow=Matrix(weight="layer.fc2.weight", bias="layer.fc2.bias"),
            columns=self.layer.fc1.out_features,
            activation=self.layer.activation_fn,
        )


class Encoder(Layer):
    """One encoder layer: (n, t, width), mask, decoder ids → the same."""

    def forward(self, hidden: Tensor, mask: Tensor, decoder_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.layer(hidden, mask[:, None, None, :].bool()), mask, decoder_ids

    def parts(self) -> LayerParts:
        """Names of the parts, for sharing out heads and columns."""
        return LayerParts(
            attention=self._attention("self_attn"), feed_forward=self._feed_forward(), norm_first=False, mask=1
        )


class Bridge(nn.Module):
    """End of the encoder, begin of the decoder: hidden, mask, decoder ids → decoder hidden, states, mask."""

    def __init__(self, decoder: Any) -> None:
        super().__init__()
        self.block_name = "bridge"
        self.embeddings = Embeddings(decoder)

    def forward(self, hidden: Tensor, mask: Tensor, decoder_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.embeddings(decoder_ids), hidden, mask


class Decoder(Layer):
    """One decoder layer: decoder hidden (n, u, width), encoder states (n, t, width), mask (n, t) → the same."""

    def forward(self, hidden: Tensor, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        seen = mask[:, None, None, :].bool()
        hidden = self.layer(hidden, None, states, encoder_attention_mask=seen, use_cache=False)
        return hidden, states, mask

    def parts(self) -> LayerParts:
        """Names of the parts, for sharing out heads and columns."""
        return LayerParts(
            attention=self._attention("self_attn", causal=True),
            cross=self._attention("encoder_attn"),
            feed_forward=self._feed_forward(),
            norm_first=False,
            cross_states=1,
            cross_mask=2,
        )


class Head(nn.Module):
    """Decoder hidden (n, u, width), states, mask → scores of the next token (n, u, tokens known)."""

    offset: Tensor

    def __init__(self, linear: nn.Module, offset: Tensor) -> None:
        super().__init__()
        self.block_name = "head"
        self.linear = linear
        self.register_buffer("offset", offset)

    def forward(self, hidden: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        return self.linear(hidden) + self.offset


def blocks(model: Any) -> list[nn.Module]:
    """Embeddings, layers, bridge and head of a model, which they share their weights with."""
    encoder, decoder = model.model.encoder, model.model.decoder
    return [
        EncoderEmbeddings(encoder),
        *(Encoder(f"encoder{index}", layer) for index, layer in enumerate(encoder.layers)),
        Bridge(decoder),
        *(Decoder(f"decoder{index}", layer) for index, layer in enumerate(decoder.layers)),
        Head(model.lm_head, model.final_logits_bias),
    ]
