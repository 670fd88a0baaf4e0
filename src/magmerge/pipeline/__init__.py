"""The verbs that make models: each builds a recipe, and every recipe goes the same way."""
