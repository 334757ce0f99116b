"""The commands: the order of work and the messages on the way; not what a stage computes."""
