"""Hyper-parameter search with Optuna: TPE with pruning on the validation fold, in a storage that processes share."""
