"""What the prefixes of names stand for; each module is imported when a name asks for it."""
