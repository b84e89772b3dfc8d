"""Files of episodes, ours and other people's, to and from `ringrl.episode.Episode`."""
