"""What people run beside the two services: the `mas` command, demo, data makers, report and benchmarks."""
