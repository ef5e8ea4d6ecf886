"""Which task a batch comes from: samplers, and the loader that they drive."""
