"""TensorFlow without its greeting."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Around an import of Keras or TensorFlow: what the library writes to standard error while it
    is loaded, which since 2.20 no setting of its own silences, is dropped. Exceptions pass."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # after it is loaded: warnings and below
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
