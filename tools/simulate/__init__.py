"""Federated training without a network: the aggregator's coordinator and averaging, the agents' training, many clients
in a few processes.

`driver.simulate` runs one job; `pool` and the lanes beside it say where the work is done.
"""
