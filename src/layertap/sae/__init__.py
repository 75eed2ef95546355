"""Sparse autoencoders that were trained elsewhere, read and encoded with: to look at features."""
