"""The few Kedro datasets that do not exist yet, and the stock ones made to write whole files or nothing."""
