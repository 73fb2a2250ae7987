"""Errors that keep a program from starting."""

from __future__ import annotations


class StartRefusedError(Exception):
    """The program cannot start; the text names the cause and the remedy."""
