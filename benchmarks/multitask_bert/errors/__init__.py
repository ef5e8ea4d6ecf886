"""Where a run goes wrong: features of texts, exact tests, and the pages made of them."""
