"""Layertap reads transformer activations out of Qwen 2.5 models and stores them, exactly once, for training SAEs."""

__version__ = "0.1.0"
