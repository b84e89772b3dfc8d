"""The data-set card: a page about an episode store."""
