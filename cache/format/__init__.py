"""The format of docs/cache-format.md: arrays, tables, parts; not which rows are wanted."""
