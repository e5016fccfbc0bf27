"""Experiments: a grid of rows and seeds, each run a process of its own with a record of its own."""
