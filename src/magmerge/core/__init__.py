"""The nouns, without torch: types, errors, recipe, machine, names, formats and filters."""
