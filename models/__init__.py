"""What devices and the aggregator share: tasks, losses, networks, model state, and the wire.

Importing this package imports no torch; only `models.losses` and `models.networks` do.
"""
