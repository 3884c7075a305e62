"""Index of item vectors beside a bundle, for large catalogues."""
