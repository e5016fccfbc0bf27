"""The `mas` command. Heavy imports happen inside the commands, so that `mas --help` and the daemons start light."""
