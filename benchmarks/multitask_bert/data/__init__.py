"""The tasks' examples: data files, the built-in corpus, the download."""
