"""What can be known of a run before it: each file looks at one thing, and says what it found."""
