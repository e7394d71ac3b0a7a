"""Started twice by test_several_devices.py: one of two processes; prints figures as JSON.

python two_processes.py INDEX PORT OUT CHECKPOINT
"""

import hashlib
import json
import sys
from pathlib import Path

import jax

index, port = int(sys.argv[1]), int(sys.argv[2])
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"127.0.0.1:{port}", 2, index, initialization_timeout=60)

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from spectral_density import HessianOperator, lanczos  # noqa: E402

RNG = np.random.default_rng(0)
X = RNG.normal(size=(23, 4)).astype(np.float32)
Y = RNG.normal(size=(23, 2)).astype(np.float32)
PARAMS = {"w": jnp.asarray(RNG.normal(size=(4, 2)), np.float32)}
DATA = [(X[a : a + 4], Y[a : a + 4]) for a in range(0, 23, 4)]


def loss(params, batch):
    """Half a mean square: the Hessian is I x X'X / N."""
    return jnp.mean(jnp.sum((batch[0] @ params["w"] - batch[1]) ** 2, axis=1)) / 2


def raised(function):
    """Return what a function raises."""
    try:
        function()
    except (RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return None


operator = HessianOperator(PARAMS, loss, DATA)
block = RNG.normal(size=(8, 2))
products = operator @ block
x = X.astype(np.float64)
true = np.kron(x.T @ x / 23, np.eye(2)) @ block
run = lanczos(operator, 6, seed=0, checkpoint=sys.argv[4])
again = lanczos(operator, 8, seed=0, checkpoint=sys.argv[4])
other = block.copy()
other[index] += 1e-3
mine = DATA[3 * index : 3 * index + 3]
figures = {
    "repr": repr(operator),
    "error": float(np.linalg.norm(products - true) / np.linalg.norm(true)),
    "bits": hashlib.sha256(products.tobytes() + again.alpha.tobytes()).hexdigest(),
    "goes on": bool(np.array_equal(run.alpha, again.alpha[..., : run.alpha.shape[-1]])),
    "fingerprint": hashlib.sha256(json.dumps(operator.fingerprint()).encode()).hexdigest(),
    "vectors": raised(lambda: operator @ other),
    "data": raised(lambda: HessianOperator(PARAMS, loss, mine)),
    "afterwards": raised(lambda: operator @ block),
    "verdict": operator.check().verdict,
}
Path(sys.argv[3]).write_text(json.dumps(figures))
