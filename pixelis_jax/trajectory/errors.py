"""The one error of this package."""

from __future__ import annotations


class TrajectoryError(ValueError):
    """A trace, a token record or a turn is not what its schema says; the message is one line for the user."""
