"""Where tensors come from and go to: one file for each kind of checkpoint."""

from magmerge.checkpoints.loader import open_checkpoint

__all__ = ["open_checkpoint"]
