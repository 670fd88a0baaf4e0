"""Runs on a file system that fails: killed at any change, out of space, unreadable, slow."""
