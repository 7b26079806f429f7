"""User and password of a device on the local network: HTTP basic and digest answers (RFC 7617, RFC 7616)."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Callable
from urllib.parse import unquote, urlencode

__all__ = ["Credentials", "credentials_in", "without_password"]

_FIELD = re.compile(r'(\w+)=(?:"([^"]*)"|([^\s,]+))')
_HASHES: dict[str, Callable[[bytes], str]] = {
    "SHA-256": lambda data: hashlib.sha256(data).hexdigest(),
    "MD5": lambda data: hashlib.md5(data, usedforsecurity=False).hexdigest(),
}


def without_password(text: str) -> str:
    """The same text with user and password of the addresses in it left out, fit for messages and files."""
    return re.sub(r"(?<=//)\S*@", "", text)


def credentials_in(user: str | None, password: str | None) -> Credentials | None:
    """Credentials of a URL's parts, which are percent-encoded; None when it has none."""
    return None if user is None else Credentials(unquote(user), unquote(password or ""))


class Credentials:
    """Answers what a server asks for; a digest's challenge is used until the server gives another one."""

    def __init__(self, user: str, password: str) -> None:
        self._user, self._password = user, password
        self._challenge: dict[str, str] | None = None
        self._used = 0

    def __repr__(self) -> str:
        return "Credentials(…)"

    def accept(self, challenge: str) -> bool:
        """Take the ``WWW-Authenticate`` header of a refusal; whether it can be answered."""
        scheme, _, rest = challenge.strip().partition(" ")
        fields = {name.lower(): quoted or plain for name, quoted, plain in _FIELD.findall(rest)}
        if scheme.lower() == "basic":
            self._challenge = {}
            return True
        modes = [mode.strip() for mode in fields.get("qop", "").split(",")]
        known = fields.get("algorithm", "MD5").upper() in _HASHES and {"realm", "nonce"} <= fields.keys()
        if scheme.lower() != "digest" or not known or "auth" not in modes:
            return False
        self._challenge, self._used = fields, 0
        return True

    def header(self, method: str, path: str) -> dict[str, str]:
        """The header for a request; empty as long as nobody has asked."""
        if self._challenge is None:
            return {}
        if not self._challenge:
            token = base64.b64encode(f"{self._user}:{self._password}".encode()).decode()
            return {"Authorization": f"Basic {token}"}
        return {"Authorization": self._digest(self._challenge, method, path)}

    def query(self) -> str:
        """The form that Tasmota wants in the address."""
        return urlencode({"user": self._user, "password": self._password})

    def _digest(self, challenge: dict[str, str], method: str, path: str) -> str:
        algorithm = challenge.get("algorithm", "MD5")
        hashed = _HASHES[algorithm.upper()]
        self._used += 1
        count, own = f"{self._used:08x}", os.urandom(8).hex()
        secret = hashed(f"{self._user}:{challenge['realm']}:{self._password}".encode())
        asked = hashed(f"{method}:{path}".encode())
        response = hashed(f"{secret}:{challenge['nonce']}:{count}:{own}:auth:{asked}".encode())
        opaque = f', opaque="{challenge["opaque"]}"' if "opaque" in challenge else ""
        return (
            f'Digest username="{self._user}", realm="{challenge["realm"]}", nonce="{challenge["nonce"]}", '
            f'uri="{path}", algorithm={algorithm}, qop=auth, nc={count}, cnonce="{own}", response="{response}"{opaque}'
        )
