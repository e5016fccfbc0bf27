"""Local training as a child process of the daemon, so that torch's memory ends with the work.

`protocol` is what both sides import (no torch); `python -m edge_agent.trainer` is the child.
"""
