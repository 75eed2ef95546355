"""Several workers, started again when they die: as processes here, or as tasks of a Ray cluster."""
