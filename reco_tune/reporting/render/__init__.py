"""One renderer for each format of a table. It knows columns and rows, but not their meaning."""
