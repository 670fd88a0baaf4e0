"""Make suites of fully fine-tuned experts, with their heads and data, for the benchmarks."""

SET_ASIDE = ("vision-resnet", "language-overlap")
"""Suites that no rule or default is chosen by: what `auto` is judged on."""
