"""The same arithmetic in C, over stored bytes: compiled, loaded, called by ctypes."""
