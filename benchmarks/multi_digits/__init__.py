"""Two overlaid digits, one network, two tasks: every method over many seeds in minutes."""
