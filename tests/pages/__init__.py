"""The project's pages: what they hold, and a terminal to follow them in."""
