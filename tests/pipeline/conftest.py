"""The hub on this machine."""

from tests.checkpoints.hub.conftest import hub

__all__ = ["hub"]
