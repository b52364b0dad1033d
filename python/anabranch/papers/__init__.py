"""One file per paper: the method, built from the rooms, with its source and the experiment that shows it."""
