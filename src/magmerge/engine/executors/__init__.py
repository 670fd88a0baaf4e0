"""Ways of running jobs. They know nothing of what a job computes."""
