"""From a recipe to a result: open, plan, run pass by pass, publish. All verbs go this one way."""
