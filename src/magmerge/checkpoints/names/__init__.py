"""The same tensors under other names: tables of renamings, and what pairs two models by them."""
