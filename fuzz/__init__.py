"""Files of strangers, bent and broken: each is read, or refused by an error of magmerge's."""
