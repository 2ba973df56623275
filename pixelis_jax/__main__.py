"""`python -m pixelis_jax` is `pixelis`."""

import sys

from pixelis_jax.cli import main

# A spawned tool worker imports this module again under another name, and must not start the command anew.
if __name__ == "__main__":
    sys.exit(main())
