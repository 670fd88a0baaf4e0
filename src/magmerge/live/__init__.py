"""Models at work: a checkpoint as a torch module, what its layers are fed, what it changes."""
