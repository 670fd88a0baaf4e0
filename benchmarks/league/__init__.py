"""Every merge, calibration and number of unlabelled rows, on the suites of experts."""
