"""mergekit's recipes by both programs: tiny models, recipes, mergekit's side, the comparison."""
