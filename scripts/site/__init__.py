"""What the documentation site has beside the pages under docs/: made anew at each build."""
