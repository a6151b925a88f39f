"""What an intervention does, when, and how it is written into a trace."""
