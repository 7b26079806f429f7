"""Parallel adapters: a small side network beside a frozen Transformer, trained with it or from its cached outputs."""
