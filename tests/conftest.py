"""What makes the tests fast: seldom looking for garbage, and one BLAS thread for each worker."""

import gc
import os

# As many workers as cores share the tests: more threads would only wait for each other, spinning.
# A run without workers (-n 0) keeps them all.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def pytest_collection_finish():
    """Let the collector pass by what is imported, and look at the rest less often.

    Tracing makes millions of objects that stay for a while, among those of TensorFlow and Keras: to
    look through them all again and again takes a fifth of the time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 10)
