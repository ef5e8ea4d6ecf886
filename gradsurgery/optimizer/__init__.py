"""The optimizer that a user calls, and its parts."""
