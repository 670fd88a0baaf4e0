"""Make suites of fully fine-tuned experts, with their heads and data, for the benchmarks."""
