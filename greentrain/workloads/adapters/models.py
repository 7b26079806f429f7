"""Models that can be fine-tuned on a person's own texts: where their blocks and their tokens come from."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from greentrain.errors import UnavailableError, UsageError
from greentrain.workloads.adapters.pairs import StartsDecoder

__all__ = ["MODELS", "Source", "load_source"]

MODELS = ("minilm", "smollm2")
_TOKENIZERS_HINT = "Run: pip install tokenizers"


@dataclass(frozen=True, kw_only=True)
class Source:
    """A pretrained model.

    Attributes:
        name: Name of the model, or its folder.
        blocks: The blocks with their weights.
        skeleton: The same blocks without memory, for their shapes.
        tokenizer: File of its tokenizer, in the form of the package tokenizers.
        longest: Most tokens of a text.
    """

    name: str
    blocks: Callable[[], list[nn.Module]]
    skeleton: Callable[[], list[nn.Module]]
    tokenizer: Callable[[], Path]
    longest: int

    def encode(self, texts: Sequence[str], tokens_n: int) -> tuple[np.ndarray, np.ndarray]:
        """Token ids (n, tokens) int64 and masks (n, tokens) uint8; longer texts are cut, none is empty.

        Raises:
            UnavailableError: The package tokenizers is not installed.
        """
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise UnavailableError(
                "the Python package 'tokenizers' is not installed.", hint=_TOKENIZERS_HINT
            ) from error
        tokenizer = Tokenizer.from_file(str(self.tokenizer()))
        tokenizer.no_padding()
        tokenizer.enable_truncation(tokens_n)
        ids = np.zeros((len(texts), tokens_n), dtype=np.int64)
        mask = np.zeros((len(texts), tokens_n), dtype=np.uint8)
        for row, encoding in enumerate(tokenizer.encode_batch(list(texts))):
            # A text without any token still has one place to look at.
            length = max(len(encoding.ids), 1)
            ids[row, : len(encoding.ids)] = encoding.ids
            mask[row, :length] = 1
        return ids, mask


def load_source(name: str) -> Source:
    """A pretrained model by its name, or by the folder that ``save_pretrained`` of transformers wrote.

    Raises:
        UsageError: No such model or folder.
        UnavailableError: A package that holds or reads it is not installed.
    """
    if name == "minilm":
        from greentrain.workloads import minilm_reviews

        def skeleton() -> list[nn.Module]:
            with torch.device("meta"):
                layers = [minilm_reviews.EncoderLayer(index) for index in range(minilm_reviews.LAYERS_N)]
                return [minilm_reviews.Embeddings(), *layers, minilm_reviews.PoolAndClassify()]

        return Source(
            name=name,
            blocks=partial(minilm_reviews.build, 0),
            skeleton=skeleton,
            tokenizer=lambda: minilm_reviews.weights_file().parent / "tokenizer.json",
            longest=minilm_reviews.POSITIONS_N,
        )
    if name == "smollm2":
        from greentrain_datasets import smollm2

        return _of_folder(name, smollm2.model_folder)
    folder = Path(name).expanduser()
    if not (folder / "config.json").is_file():
        known = ", ".join(MODELS)
        raise UsageError(
            f"{name!r} is not a model that can be fine-tuned, expected {known}, or a folder with a model of "
            "transformers (config.json, model.safetensors, tokenizer.json).",
            hint="Write one with save_pretrained(FOLDER) of the model and of its tokenizer.",
        )
    return _of_folder(name, lambda: folder)


def _of_folder(name: str, find: Callable[[], Path]) -> Source:
    if importlib.util.find_spec("transformers") is None:
        raise UnavailableError(
            "the Python package 'transformers' is not installed, this model needs it.",
            hint="Run: pip install 'transformers>=5.23'",
        )

    def skeleton() -> list[nn.Module]:
        from greentrain.workloads.families import from_transformers

        with torch.device("meta"):
            config = _config(find())
            return _classifying(from_transformers(config), config)

    longest = getattr(_config(find()), "max_position_embeddings", None) or 512
    return Source(
        name=name,
        blocks=lambda: _pretrained(find()),
        skeleton=skeleton,
        tokenizer=lambda: _tokenizer_of(find()),
        longest=min(int(longest), 1024),
    )


def _config(folder: Path) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder, local_files_only=True)


def _pretrained(folder: Path) -> list[nn.Module]:
    import transformers

    from greentrain.workloads.families import from_transformers

    config = _config(folder)
    # The class with the head that the families know; a head that is not in the file is drawn anew and not used.
    classes = {
        "bert": "BertForSequenceClassification",
        "t5": "T5ForConditionalGeneration",
        "bart": "BartForConditionalGeneration",
    }
    name = classes.get(config.model_type)
    maker = getattr(transformers, name) if name else transformers.AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        model = maker.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    return _classifying(from_transformers(model), config)


def _classifying(blocks: list[nn.Module], config: Any) -> list[nn.Module]:
    """Behind an encoder the decoder begins with one token, whose state says the class."""
    if getattr(config, "is_encoder_decoder", False):
        start = config.decoder_start_token_id
        blocks[0] = StartsDecoder(blocks[0], config.pad_token_id if start is None else start)
    return blocks


def _tokenizer_of(folder: Path) -> Path:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UsageError(
            f"{folder}: has no tokenizer.json.", hint="Write it with save_pretrained(FOLDER) of the tokenizer."
        )
    return path
