"""The commands: the order of work and what is said on the way; not what a stage computes."""
