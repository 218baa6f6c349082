"""The functions behind fastops.functional, one file per family."""
