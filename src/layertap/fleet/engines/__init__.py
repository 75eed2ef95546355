"""Several workers, restarted if they die: as local processes, or as tasks of a Ray cluster."""
