"""A table in each format: one renderer a format, which knows columns and rows and nothing of what they mean."""
