"""Joules of a device: one small interface, one file per source. Estimates are never shown as measurements."""
