"""The demo's report: one HTML file that opens from disk, with every figure of a run and where it comes from."""
