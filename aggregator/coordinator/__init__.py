"""The job's state machine: pure, no torch, no I/O, no clock."""
