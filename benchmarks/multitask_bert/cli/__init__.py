"""The command line: its arguments, its exit statuses, the command `run`."""
