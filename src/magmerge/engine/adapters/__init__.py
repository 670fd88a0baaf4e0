"""Adapters as results: of adapters alone, and of models or merges on a base."""
