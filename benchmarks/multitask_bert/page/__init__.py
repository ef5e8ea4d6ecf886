"""A document as blocks, written as Markdown and as a self-contained HTML page."""
