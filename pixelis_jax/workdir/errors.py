"""The error of a work directory."""


class WorkdirError(ValueError):
    """A directory that cannot be used as asked; the message is one line that says what to do."""
