"""The processes in front of a recorded program: the one that a shell sees, and the recorder that it starts."""
