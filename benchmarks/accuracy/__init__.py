"""Updates against solutions in 80 digits, beside the peers' on the same gradients."""
