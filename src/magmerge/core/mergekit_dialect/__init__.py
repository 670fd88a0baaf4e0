"""mergekit's YAML: a dialect of recipes, told by `merge_method`, and what it means here.

A document is read into nodes that know their lines (`nodes`), then into modules, slices and sources
(`document`), whose models get their roles and names (`roles`). Parameters are looked up level by
level (`settings`) and put into the words of the methods here (`parameters`), by the tables of
methods and of rules. `translation` makes the recipe.
"""
