"""The systems of the reports, each as a complete configuration of a run."""
