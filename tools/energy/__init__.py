"""`mas energy compare`: schemes compared in joules on real boards, by a protocol that is written down and checked."""
