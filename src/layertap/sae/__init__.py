"""Read sparse autoencoders that other tools trained, and encode with them to look at features."""
