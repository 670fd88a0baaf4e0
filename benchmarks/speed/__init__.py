"""What the speed benchmark runs in processes of its own."""
