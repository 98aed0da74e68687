"""The benchmark's times, on small layers."""

from torchmor.experiments import benchmark


def test_layer_times(monkeypatch):
    for name, value in {"BATCHES": (1, 8), "STATE": (2, 4, 4), "SIZES": ((4, 6),)}.items():
        monkeypatch.setattr(benchmark, name, value)
    timed = benchmark.layers()
    rows = benchmark.layer_times(timed, "cpu", 1, 1)
    assert len(rows) == 2 * len(timed)
    assert {(row["layer"], row["solver"]) for row in rows} == set(timed)
    assert all(row["wall_s"] > 0 and row["threads"] == 1 for row in rows)
