"""Methods, and a problem whose minimum SciPy knows, shared by the tests of `minimize`."""

import numpy as np
import scipy.optimize
from sklearn.datasets import load_breast_cancer

from spectral_density.training import LowRankSaddleFreeNewton, NewtonCG, NewtonGMRES, NewtonMINRES


def saddle_free(**options):
    defaults = {"refresh": 1, "learning_rate": 1.0, "damping": 1e-3, "globalization": "armijo"}
    return LowRankSaddleFreeNewton(**(defaults | options))


DESCENDING = {
    "saddle-free": saddle_free,
    "saddle-free, lanczos": lambda: saddle_free(factorization="lanczos"),
    "saddle-free, adaptive": lambda: saddle_free(range_finder="adaptive"),
    "saddle-free, trust region": lambda: saddle_free(globalization="trust_region"),
    "saddle-free, Levenberg-Marquardt": lambda: saddle_free(globalization="levenberg_marquardt"),
    "cg": NewtonCG,
    "cg, trust region": lambda: NewtonCG(globalization="trust_region"),
    "cg, armijo, cold": lambda: NewtonCG(globalization="armijo", warm_start=0.0),
    "minres": NewtonMINRES,
    "minres, armijo": lambda: NewtonMINRES(globalization="armijo"),
}
METHODS = DESCENDING | {"gmres": NewtonGMRES}
L2 = 1e-3


def logistic_regression():
    """Features (569, 31), labels -1 and 1, and SciPy's optimum with L2: its value and place."""
    data = load_breast_cancer()
    x = (data.data - data.data.mean(0)) / data.data.std(0)
    x = np.column_stack([x, np.ones(len(x))])
    signs = 2.0 * data.target - 1

    def value(w):
        return np.mean(np.logaddexp(0, -signs * (x @ w))) + L2 * w @ w

    def gradient(w):
        pull = -signs / (1 + np.exp(signs * (x @ w)))
        return x.T @ pull / len(x) + 2 * L2 * w

    true = scipy.optimize.minimize(value, np.zeros(31), jac=gradient, method="BFGS", tol=1e-10)
    return x, signs, true.fun, true.x
