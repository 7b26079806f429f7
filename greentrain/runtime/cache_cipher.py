"""AES-GCM over records of the activation cache (optional package ``cryptography``)."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from greentrain.errors import UnavailableError, UsageError
from greentrain.files import writing
from greentrain.parallel.adapters import ENCRYPTION_BYTES

__all__ = ["CacheCipher", "read_or_make_key"]

_KEY_BYTES = 32
_NONCE_BYTES = 12


@dataclass
class CacheCipher:
    """Encrypts records, each with a nonce of its own; a record that was moved or changed is not accepted.

    Attributes:
        key: 32 bytes.
    """

    key: bytes
    _aes: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        try:
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        except ImportError as error:
            raise UnavailableError(
                "an encrypted cache needs the Python package 'cryptography', which is not installed.",
                hint="Run: pip install cryptography",
            ) from error
        if len(self.key) != _KEY_BYTES:
            raise UsageError(f"the key of the cache has {len(self.key)} bytes, expected {_KEY_BYTES}.")
        self._aes = AESGCM(self.key)

    def seal(self, data: bytes, place: bytes) -> bytes:
        """Nonce, ciphertext and tag of a record at a place."""
        nonce = os.urandom(_NONCE_BYTES)
        sealed = nonce + self._aes.encrypt(nonce, data, place)
        assert len(sealed) == len(data) + ENCRYPTION_BYTES
        return sealed

    def open(self, sealed: bytes, place: bytes) -> bytes | None:
        """The record; None where it is not what was sealed with this key at this place."""
        from cryptography.exceptions import InvalidTag

        try:
            return self._aes.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], place)
        except InvalidTag:
            return None


def read_or_make_key(path: Path) -> bytes:
    """The key in a file that only its owner may read; made where there is none.

    Raises:
        UsageError: The file holds something else.
    """
    if path.exists():
        key = path.read_bytes()
        if len(key) != _KEY_BYTES:
            raise UsageError(f"{path}: holds {len(key)} bytes, expected a key of {_KEY_BYTES}.", hint="Name another.")
        return key
    key = os.urandom(_KEY_BYTES)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as stream:
            stream.write(key)
    return key
