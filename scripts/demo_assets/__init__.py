"""Make the demonstration's assets: six LoRA experts, their heads and their test data."""
