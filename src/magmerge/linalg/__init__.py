"""Linear algebra and selection on one layer's tensors; pure."""
