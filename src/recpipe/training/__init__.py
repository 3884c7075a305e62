"""Training: losses, optimisers, schedules, checkpoints, bundles, refitting, updates and hyper-parameter search."""
