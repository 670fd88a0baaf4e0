"""LoRA adapters as what is merged: low-rank task vectors in, low-rank task vectors out."""
