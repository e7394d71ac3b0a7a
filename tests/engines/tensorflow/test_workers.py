import numpy as np

from spectral_density.engines.tensorflow.workers import checksum


def test_checksums_tell_vectors_apart():
    rng = np.random.default_rng(0)
    for size in (1, 31, 4096, 10_001):
        vector = rng.normal(size=size)
        other = vector.copy()
        other[-1] = np.nextafter(other[-1], np.inf)
        assert checksum(vector, "product") == checksum(vector.copy(), "product")
        assert checksum(vector, "product") != checksum(other, "product")
        assert checksum(vector, "product") != checksum(vector, "gradient")
    swapped = np.arange(3.0)
    assert checksum(swapped, "") != checksum(swapped[::-1].copy(), "")
