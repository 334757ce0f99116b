"""export: results under the names, in the files and in the graphs that other tools read."""
