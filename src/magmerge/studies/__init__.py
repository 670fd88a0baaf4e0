"""What is done with merges: papers' pipelines, the demonstration, and plots."""
