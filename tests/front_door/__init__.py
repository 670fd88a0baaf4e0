"""What a user sees at the command line and in Python, whatever is inside."""
