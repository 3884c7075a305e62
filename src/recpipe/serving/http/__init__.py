"""HTTP service of bundles, with the explorer page."""
