"""reproduce(): a paper's pipeline from published checkpoints to its table."""

from magmerge.studies.reproduction.pipeline_run import reproduce

__all__ = ["reproduce"]
