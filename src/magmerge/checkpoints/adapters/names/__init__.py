"""Modules' names in one naming and in another: tables and rules, no tensors."""
