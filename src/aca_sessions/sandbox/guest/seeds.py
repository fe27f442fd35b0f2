"""What a fork must not inherit: all forks of one parent would draw the same numbers and invent the same file names."""

import random
import sys
import tempfile


def differ() -> None:
    """From here on this process draws its own."""
    random.seed()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    tempfile._name_sequence = None  # type: ignore[attr-defined]
