"""Raw files: fetching, archives, and rows of delimited, JSON and Parquet files as SQL sources."""
