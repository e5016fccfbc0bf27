"""Training schemes: how a job spends its rounds. A new one is a new file here."""
