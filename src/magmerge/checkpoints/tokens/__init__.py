"""Vocabularies: which row of a table is which token, models seen with one vocabulary, and the
tokenizer that the result has. Loaded only where models' vocabularies are not the same.
"""
