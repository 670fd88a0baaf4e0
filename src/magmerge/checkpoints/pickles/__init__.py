"""torch files and plain pickles, read without running anything that they ask for."""
