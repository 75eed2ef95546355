"""Several workers, started again when they die: as processes of this machine, or as tasks of a Ray cluster."""
