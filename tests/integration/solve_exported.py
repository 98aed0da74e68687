"""Solve an exported layer of one tanh or ReLU stage: python solve_exported.py OPERATORS.npz STATE.npy RESULT.npy."""

import sys

import numpy as np
from scipy.integrate import solve_ivp

o = np.load(sys.argv[1])
print(o["equation"], o["shapes"], sep="\n\n")
sigma = {"tanh": np.tanh, "relu": lambda a: np.maximum(a, 0.0)}[str(o["equation"]).split("g1 = ")[1].split("(")[0]]
linear = o["B_z"] if "B_z" in o else 0.0 * np.eye(len(o["b"]))


def f(t, z):
    return o["B_g1"] @ sigma(o["A1_z"] @ z + o["b1"]) + linear @ z + o["b"]


y0 = np.load(sys.argv[2])
solution = solve_ivp(f, o["times"][[0, -1]], o["E"] @ y0 + o["e"], "DOP853", o["times"], rtol=1e-11, atol=1e-12)
np.save(sys.argv[3], o["D"] @ solution.y + o["d"][:, np.newaxis])
