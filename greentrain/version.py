"""The version of greentrain, without any import."""

VERSION = "0.1.0"
