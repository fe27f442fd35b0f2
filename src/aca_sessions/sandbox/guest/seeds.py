"""Random state that a fork must not inherit: all forks of one parent would draw the same numbers and use the same temporary file names."""

import random
import sys
import tempfile


def differ() -> None:
    """Give this process random numbers and temporary file names of its own."""
    random.seed()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    tempfile._name_sequence = None  # type: ignore[attr-defined]
