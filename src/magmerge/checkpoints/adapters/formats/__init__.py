"""LoRA files in every common format: read as low-rank task vectors, written as plain LoRA."""
