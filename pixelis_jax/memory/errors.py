"""The error of this package."""

from __future__ import annotations


class StoreError(ValueError):
    """A memory that cannot be read or written as asked; the message is one line that says what to do."""
