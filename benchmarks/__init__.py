"""Programs that measure; each prints its table and writes one JSON line to benchmarks/results/."""
