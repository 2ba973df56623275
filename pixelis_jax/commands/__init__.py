"""One file a command.

Each has `add_arguments(parser)` and `run(args) -> exit status`, and imports what is heavy in `run`.
"""
