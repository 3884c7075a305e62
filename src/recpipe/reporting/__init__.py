"""Reports: leaderboard, figures, examples, HTML page, terminal summary."""
