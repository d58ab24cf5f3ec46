"""The installed commands, from end to end."""
