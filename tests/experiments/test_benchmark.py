"""The benchmark's tables, at one repeat."""

from torchmor.experiments import benchmark


def test_layer_times(monkeypatch):
    monkeypatch.setattr(benchmark, "BATCHES", (1, 8))
    monkeypatch.setattr(benchmark, "SIZES", ((4, 6),))
    rows = benchmark.layer_times("cpu", 1, repeats=1)
    assert len(rows) == 2 * 2 * len(benchmark.SOLVERS)
    assert all(row["wall_s"] > 0 and row["threads"] == 1 for row in rows)
    assert {row["gain_same_solver"] for row in rows if row["layer"] == "full"} == {1.0}
