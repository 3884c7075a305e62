"""What people read: leaderboard, figures, examples, the HTML page and the summary on the terminal."""
