"""What reinforcement learners are built of: networks, a replay of transitions, curiosity; the learners are recipes."""
