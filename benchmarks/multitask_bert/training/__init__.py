"""A run: its steps, its evaluations, the state that it resumes from."""
