"""How stages are run: the commands, the order of work, what is said on the way."""
