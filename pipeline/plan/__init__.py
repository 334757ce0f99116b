"""`qedit plan`: disk, memory and time put together; the estimates are in stages/."""
