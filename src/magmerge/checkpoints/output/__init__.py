"""The way to the disk: a target, a layout, a staging area, a writer, and the record of it all."""
