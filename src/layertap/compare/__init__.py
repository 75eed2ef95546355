"""`layertap compare`: compare other tools' dumps with our float32 activations."""
