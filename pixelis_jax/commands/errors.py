"""The error of the commands themselves."""


class UserError(Exception):
    """Bad input that only the command line can meet; the message is one line for the user."""
