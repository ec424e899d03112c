"""Files, documents and the terminal: what every package writes and shows."""
