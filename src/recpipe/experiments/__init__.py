"""A model, its data and its training put together: under Kedro, or on a machine that has not got it."""
