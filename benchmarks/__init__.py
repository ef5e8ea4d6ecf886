"""Benchmarks of the library: the multi-task BERT benchmark and the speed suite."""
