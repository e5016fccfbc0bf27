"""`mas demo`: a whole fleet on one machine, three schemes side by side, and a report."""
