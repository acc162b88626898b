"""What tracing may cost, what it does cost, and what is disabled to keep within that."""
