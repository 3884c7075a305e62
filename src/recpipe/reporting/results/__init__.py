"""Paper-parity pages: published results of every data set beside our own, protocol by protocol (docs/results)."""
