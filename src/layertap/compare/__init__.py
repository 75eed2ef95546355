"""`layertap compare`: dumps of other tools, held against our float32 truth."""
