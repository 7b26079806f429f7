"""The activation cache: what comes back, what is missing after a cut, a kill or a change, and how large it gets."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from greentrain.errors import RunError, UsageError
from greentrain.parallel.adapters import CacheDtype, CacheShape, record_bytes
from greentrain.runtime import activation_cache
from greentrain.runtime.activation_cache import ActivationCache, CacheHeader, CacheKey, make_room, open_cache
from greentrain.runtime.cache_cipher import CacheCipher, read_or_make_key

KEY = CacheKey(model_sha256="m", data_sha256="d", lengths_sha256="l")
LAYERS, WIDTH, TOKENS = (0, 2), 24, 7
SAMPLES = np.array([3, 4, 9, 20])
LENGTHS = np.array([[7, 1, 4, 5], [7, 1, 4, 5]])
BOUNDS: dict[CacheDtype, float] = {"float32": 0.0, "float16": 4e-4, "int8": 1e-2}


def header(dtype: CacheDtype = "float32", *, encrypted: bool = False, key: CacheKey = KEY) -> CacheHeader:
    return CacheHeader(
        key=key, layers=LAYERS, widths=(WIDTH, WIDTH), decoder=(False, False), dtype=dtype, encrypted=encrypted,
        samples_n=len(SAMPLES), samples_sha256="s",
    )  # fmt: skip


def opened(folder: Path | None, dtype: CacheDtype = "float32", cipher: CacheCipher | None = None) -> ActivationCache:
    return open_cache(folder, header(dtype, encrypted=cipher is not None), SAMPLES, LENGTHS, cipher).cache


def outputs(layer: int) -> np.ndarray:
    values = np.random.default_rng(layer).normal(size=(len(SAMPLES), TOKENS, WIDTH)).astype(np.float32)
    for row, length in zip(values, LENGTHS[0], strict=True):
        row[length:] = 0
    return values


def filled(folder: Path | None, dtype: CacheDtype = "float32", cipher: CacheCipher | None = None) -> ActivationCache:
    cache = opened(folder, dtype, cipher)
    for layer in LAYERS:
        cache.put(layer, SAMPLES, outputs(layer))
    cache.flush()
    return cache


def read(cache: ActivationCache, layer: int, samples: np.ndarray = SAMPLES) -> np.ndarray:
    into = np.zeros((len(samples), TOKENS, WIDTH), dtype=np.float32)
    assert not len(cache.rows(layer, samples, into))
    return into


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("where", ["disk", "memory", "encrypted"])
def test_what_is_kept_comes_back_within_the_stated_error(tmp_path: Path, dtype: CacheDtype, where: str) -> None:
    cipher = CacheCipher(bytes(range(32))) if where == "encrypted" else None
    folder = None if where == "memory" else tmp_path / "cache"
    cache = filled(folder, dtype, cipher)
    if folder is not None:
        written = cache.rms_error_ratio
        cache = opened(folder, dtype, cipher)
    else:
        written = cache.rms_error_ratio
    assert written is not None
    found = np.stack([read(cache, layer) for layer in LAYERS])
    expected = np.stack([outputs(layer) for layer in LAYERS])
    error = np.sqrt(np.square(found - expected).sum() / np.square(expected).sum())
    assert error <= BOUNDS[dtype]
    assert written == pytest.approx(error, rel=1e-3, abs=1e-9)
    assert (read(cache, 2, SAMPLES[[2, 0]]) == found[1][[2, 0]]).all()


@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize("dtype", BOUNDS)
def test_bytes_are_exact(tmp_path: Path, dtype: CacheDtype, encrypted: bool) -> None:
    cache = filled(tmp_path / "cache", dtype, CacheCipher(bytes(32)) if encrypted else None)
    predicted = sum(
        record_bytes(int(tokens), WIDTH, dtype, encrypted=encrypted) for row in LENGTHS for tokens in row
    )  # fmt: skip
    assert cache.size_bytes == cache.written_bytes == predicted
    assert sum(file.stat().st_size for file in (tmp_path / "cache").glob("layer-*.bin")) == predicted
    mean = tuple(float(row.mean()) for row in LENGTHS)
    shape = CacheShape(layers=LAYERS, widths=(WIDTH, WIDTH), tokens=mean, dtype=dtype, encrypted=encrypted)
    assert shape.sample_bytes() * len(SAMPLES) == pytest.approx(predicted)
    read(cache, 0)
    assert cache.read_bytes == pytest.approx(predicted / 2)


def test_a_cut_file_is_noticed_and_only_its_output_is_missing(tmp_path: Path) -> None:
    filled(tmp_path / "cache")
    with (tmp_path / "cache" / "layer-2.bin").open("r+b") as stream:
        stream.truncate(100)
    found = open_cache(tmp_path / "cache", header(), SAMPLES, LENGTHS)
    assert "cut short" in found.remark
    assert found.remark.count(".") <= 2
    assert found.cache.missing().keys() == {2}
    assert (found.cache.missing()[2] == SAMPLES).all()
    assert (read(found.cache, 0) == outputs(0)).all()


def test_a_changed_byte_is_noticed(tmp_path: Path) -> None:
    filled(tmp_path / "cache")
    with (tmp_path / "cache" / "layer-0.bin").open("r+b") as stream:
        stream.seek(7 * WIDTH * 4 + 3)
        stream.write(b"\xff")
    cache = opened(tmp_path / "cache")
    assert not cache.missing()
    assert {layer: list(lost) for layer, lost in cache.missing(look=True).items()} == {0: [4]}
    into = np.zeros((1, TOKENS, WIDTH), dtype=np.float32)
    assert list(cache.rows(0, np.array([4]), into)) == [4]
    cache.put(0, np.array([4]), outputs(0)[1:2])
    assert not cache.missing(look=True)


@pytest.mark.parametrize(
    ("field", "words"),
    [("model_sha256", "another model"), ("data_sha256", "other data"), ("lengths_sha256", "other lengths")],
)
def test_a_cache_of_something_else_is_not_used(tmp_path: Path, field: str, words: str) -> None:
    filled(tmp_path / "cache")
    other = header(key=msgspec.structs.replace(KEY, **{field: "x"}))
    found = open_cache(tmp_path / "cache", other, SAMPLES, LENGTHS)
    assert words in found.remark
    assert found.cache.missing().keys() == set(LAYERS)


def test_a_damaged_header_is_said(tmp_path: Path) -> None:
    filled(tmp_path / "cache")
    (tmp_path / "cache" / "header.json").write_text("{")
    assert "header is damaged" in open_cache(tmp_path / "cache", header(), SAMPLES, LENGTHS).remark


def test_with_another_key_nothing_is_read(tmp_path: Path) -> None:
    filled(tmp_path / "cache", cipher=CacheCipher(bytes(32)))
    raw = (tmp_path / "cache" / "layer-0.bin").read_bytes()
    assert outputs(0)[0, :1].tobytes()[:16] not in raw
    cache = opened(tmp_path / "cache", cipher=CacheCipher(bytes(31) + b"x"))
    assert cache.missing(look=True).keys() == set(LAYERS)


def test_sealed_records_cannot_change_places(tmp_path: Path) -> None:
    cipher = CacheCipher(bytes(32))
    sealed = cipher.seal(b"secret", b"a")
    assert cipher.open(sealed, b"a") == b"secret"
    assert cipher.open(sealed, b"b") is None


def test_a_key_file_is_private_and_stays(tmp_path: Path) -> None:
    key = read_or_make_key(tmp_path / "key")
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert read_or_make_key(tmp_path / "key") == key
    (tmp_path / "key").write_bytes(b"short")
    with pytest.raises(UsageError, match="5 bytes"):
        read_or_make_key(tmp_path / "key")


def test_a_full_disk_is_known_before_anything_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(activation_cache.os, "posix_fallocate", full)
    with pytest.raises(RunError, match="the disk is full"):
        opened(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_caches_used_longest_ago_make_room(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("old", "older", "new")]
    for folder, age_s in zip(folders, (50, 100, 0), strict=True):
        filled(folder)
        os.utime(folder / "header.json", (1e9 - age_s, 1e9 - age_s))
    size = sum(file.stat().st_size for file in folders[0].iterdir())
    assert make_room(tmp_path, size, 10 * size) == ()
    assert make_room(tmp_path, size, int(2.1 * size)) == (tmp_path / "older", tmp_path / "old")
    assert make_room(tmp_path, size, size, keep=[folders[2]]) == ()
    with pytest.raises(UsageError, match="its limit is"):
        make_room(tmp_path, size, size - 1)


def test_records_move_from_one_cache_to_another(tmp_path: Path) -> None:
    source, target = filled(tmp_path / "a", cipher=CacheCipher(bytes(32))), opened(None)
    for layer in LAYERS:
        record = source.record(layer, 9)
        assert record is not None
        target.put_record(layer, 9, record)
    assert (read(target, 2, np.array([9])) == outputs(2)[2:3]).all()
    assert list(target.holds(2, SAMPLES)) == [False, False, True, False]
    assert source.record(0, 3) is not None
    assert target.record(0, 3) is None


FILL = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_activation_cache as t
cache = t.opened(Path({folder!r}))
cache.put(0, t.SAMPLES[:2], t.outputs(0)[:2])
print("half", flush=True)
sys.stdin.read()
"""


def test_a_killed_writer_leaves_what_it_has_written(tmp_path: Path) -> None:
    code = FILL.format(tests=str(Path(__file__).parent), folder=str(tmp_path / "cache"))
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
        process.send_signal(signal.SIGKILL)
    found = open_cache(tmp_path / "cache", header(), SAMPLES, LENGTHS)
    assert found.remark == ""
    assert {layer: list(lost) for layer, lost in found.cache.missing(look=True).items()} == {
        0: [9, 20],
        2: [3, 4, 9, 20],
    }
    assert (read(found.cache, 0, SAMPLES[:2]) == outputs(0)[:2]).all()
