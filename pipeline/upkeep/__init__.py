"""`qedit status`, `verify`, `gc` and `unlock`: what is there, what is damaged, what may go."""
